"""A training that is killed, stopped by a scheduler or out of room goes on as if nothing had been, and leaves nothing."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from fss_svf.checkpoint import keep_checkpoint, load_checkpoint, save_checkpoint
from fss_svf.errors import Stopped, TrainingError
from fss_svf.page.curves import read_curves
from fss_svf.training import stopping
from fss_svf.training.log_table import LogTable
from fss_svf.training.step import Step
from fss_svf.training.stopping import StopSignal
from fss_svf.training.validation import Validation
from tests.conftest import TOY
from tests.processes import ended, starting

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes that are killed have one

# fss-svf whose steps and, where asked for, validations and writing of checkpoints take some time.
SLOW = """
import os, time
import torch
from fss_svf.cli import main
from fss_svf.evaluation.engine import Engine
from fss_svf.training.step import Step

seconds = {name: float(os.environ.get(name, 0)) for name in ("STEP", "GROUP", "WRITE")}
call, run, save = Step.__call__, Engine.run, torch.save

def slow_step(self, step, parts, **how):
    time.sleep(seconds["STEP"])
    call(self, step, parts, **how)
    with open("steps", "a") as file:
        file.write(".")

def slow_run(self, group):
    time.sleep(seconds["GROUP"])
    return run(self, group)

def slow_save(content, file):
    if seconds["WRITE"]:
        file.write(b"half of it")
        file.flush()
        time.sleep(seconds["WRITE"])
        file.seek(0)
    save(content, file)

Step.__call__, Engine.run, torch.save = slow_step, slow_run, slow_save
main()
"""


@pytest.fixture
def start(tmp_path):
    """Start Python with arguments in tmp_path, where slow.py lies."""
    (tmp_path / "slow.py").write_text(SLOW)
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def small(toy_root):
    """A training of eight steps with two loader processes, and checkpoints between its validations."""
    return ("train", *TOY, f"dataset.root={toy_root}", "backbone=tiny", "backbone.width=8", "method.width=8",
            "recipe=toy", "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=8", "workers=2", "device=cpu",
            "cache_gb=0.01", "validate.every=4", "validate.episodes=6", "save_every=1", "tuning=svf",
            "hydra.run.dir=run")  # fmt: skip


def last(folder):
    return load_checkpoint(folder, "train")


def assert_same(found, expected):
    assert (found["step"], found["best"]) == (expected["step"], expected["best"])
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    states = [content["optimizer"]["state"] for content in (found, expected)]
    for number, state in states[1].items():
        assert all(torch.equal(torch.as_tensor(states[0][number][k]), torch.as_tensor(v)) for k, v in state.items())


def drawn(folder):
    """What the curves of a run show at each step, but for the times."""
    return {name: dict(curve) for name, curve in read_curves(folder).items() if not name.startswith("time/")}


def to_the_end(fss, *arguments):
    """In this process: it starts sooner."""
    status, _, err = fss(*arguments)
    assert status == 0, err


def wait_for(holds, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------------
# kill -9


def kill_at_random(start, fss, small, tmp_path, trials):
    draw, small = random.Random(0), (*small, "log_every=1")
    to_the_end(fss, *small, "hydra.run.dir=whole")
    whole = last(tmp_path / "whole")
    interrupted = set()
    for trial in range(trials):
        folder = tmp_path / f"run{trial}"
        arguments = (*small, f"hydra.run.dir={folder}")
        # Every other one while a checkpoint is being written.
        writing = trial % 2 == 0
        process = start("slow.py", *arguments, STEP="0.1", GROUP="0.05", WRITE="0.3" if writing else "0")
        if writing:
            count, partial = draw.randint(1, 6), folder / "checkpoints" / "last.pt.partial"
            for _ in range(count):
                wait_for(partial.exists, process)
                wait_for(lambda partial=partial: not partial.exists(), process)
            wait_for(partial.exists, process)
        else:
            wait_for((folder / "config.yaml").exists, process)
            time.sleep(draw.uniform(0, 2.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        saved = (folder / "checkpoints" / "last.pt").exists()
        interrupted.add(last(folder)["step"] if saved else 0)
        time.sleep(1)  # TensorBoard orders files by their second; a process of its own would take longer to start
        to_the_end(fss, *(("train", f"resume={folder}") if saved else arguments))
        assert_same(last(folder), whole)
        assert drawn(folder) == drawn(tmp_path / "whole")
        assert (folder / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
        assert not list(folder.rglob("*.partial"))
    return interrupted


@pytest.mark.long  # that a run goes on bit for bit is in test_training.py too
def test_killed_while_a_checkpoint_is_written(start, fss, small, tmp_path):
    kill_at_random(start, fss, small, tmp_path, 1)


@pytest.mark.long
def test_killed_twenty_times_at_random(start, fss, small, tmp_path):
    assert len(kill_at_random(start, fss, small, tmp_path, 20)) > 3


def test_log_csv_goes_on_where_the_checkpoint_is(tmp_path):
    path = tmp_path / "log.csv"
    table = LogTable(path, 0, True)
    for step in (10, 20, 30):
        table.add({"loss/main": 1 / step, "rate/head": 0.1}, step)
        if step > 10:
            table.add({"score": 0.5}, step)
    assert path.read_text().splitlines() == [
        "step,loss/main,rate/head,score", "10,0.1,0.1,", "20,0.05,0.1,", "20,,,0.5", "30,0.0333333,0.1,", "30,,,0.5"
    ]  # fmt: skip
    whole = path.read_text()
    for step, validated, rows in ((30, True, 5), (30, False, 4), (20, True, 3), (20, False, 2), (0, True, 0)):
        path.write_text(f"{whole}4")  # of a row that a kill has cut
        LogTable(path, step, validated)
        assert len(path.read_text().splitlines()) == 1 + rows
    LogTable(path, 0, True).add({"other": 1}, 1)
    assert path.read_text().splitlines() == ["step,loss/main,rate/head,score,other", "1,,,,1"]
    path.write_text("step;score\n1;2\n")
    with pytest.raises(TrainingError, match=r"log\.csv: another program has changed it"):
        LogTable(path, 1, True)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "status"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        pytest.param(signal.SIGUSR1, "SIGUSR1", 75, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "Ctrl+C", 130, marks=pytest.mark.long),
    ],
)
def test_a_signal_stops_a_run_between_its_checkpoints(start, fss, small, tmp_path, number, name, status):
    """All processes of the job hear the signal, loader processes too."""
    arguments = (*small, "save_every=null", "log_every=1")
    to_the_end(fss, *arguments, "hydra.run.dir=whole")
    process = start("slow.py", *arguments, STEP="0.4")
    run = tmp_path / "run"
    wait_for((tmp_path / "steps").exists, process)
    os.killpg(process.pid, number)
    _, err = ended(process, status=status)
    assert f"fss-svf train: stopped by {name} after step " in err
    assert "Traceback" not in err
    assert 0 < last(run)["step"] < 4
    to_the_end(fss, "train", "resume=run")
    assert_same(last(run), last(tmp_path / "whole"))


@pytest.mark.long
def test_a_scheduler_stops_a_run_before_its_first_step(start, small, tmp_path):
    process = start("-m", "fss_svf", *small)
    wait_for((tmp_path / "run" / ".hydra").exists, process)
    os.killpg(process.pid, signal.SIGUSR1)
    _, err = ended(process, status=75)
    assert "Traceback" not in err
    ended(start("-m", "fss_svf", *small, "resume=auto"))
    assert last(tmp_path / "run")["step"] == 8


@pytest.mark.long
def test_a_scheduler_stops_a_validation(start, fss, small, tmp_path):
    to_the_end(fss, *small, "hydra.run.dir=whole")
    process = start("slow.py", *small, GROUP="3")
    run = tmp_path / "run"
    wait_for((run / "checkpoints" / "last.pt").exists, process)
    wait_for(lambda: last(run)["step"] == 4, process)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = ended(process, status=75, seconds=60)
    assert "fss-svf train: stopped by SIGTERM after step 4 of 8, which is saved; go on with resume=" in err
    assert not last(run)["validated"]
    assert not list(run.glob("features-*"))
    to_the_end(fss, "train", "resume=run")
    assert_same(last(run), last(tmp_path / "whole"))


def test_a_signal_just_before_a_validation_does_not_wait_for_it(fss, small, tmp_path, monkeypatch):
    call, validate = Step.__call__, Validation.__call__

    def stopped_step(self, step, parts, **how):
        call(self, step, parts, **how)
        if step == 3:  # the first validation comes after step 4
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Step, "__call__", stopped_step)
    monkeypatch.setattr(Validation, "__call__", lambda *_: pytest.fail("it is validated"))
    status, _, err = fss(*small, "workers=0")
    assert status == 75, err
    assert "fss-svf train: stopped by SIGTERM after step 4 of 8, which is saved" in err
    assert (last(tmp_path / "run")["step"], last(tmp_path / "run")["validated"]) == (4, False)
    steps = []
    monkeypatch.setattr(
        Step, "__call__", lambda self, step, parts, **how: (steps.append(step), call(self, step, parts, **how))
    )
    monkeypatch.setattr(Validation, "__call__", lambda *given: steps.append("validation") or validate(*given))
    to_the_end(fss, "train", "resume=run")
    assert steps == ["validation", 4, 5, 6, 7, "validation"]


def test_ctrl_c_stops_a_training_and_a_second_one_interrupts(monkeypatch):
    """Within an instant they are one: torchrun hands on what the terminal sends to all. Other signals count as none."""
    monkeypatch.setattr(stopping, "_SAME_KEY", 0.05)
    with StopSignal() as stop:
        assert not stop.requested()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested()
        assert (stop.name, stop.stopped("").status) == ("SIGINT", 130)
        time.sleep(0.06)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopSignal() as stop:
        stop.at_once = True
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(start, small, tmp_path, number):
    """No process, and no named shared memory or semaphore. SIGKILL: of the main process alone."""
    process = start("slow.py", *small, "recipe.max_steps=200", "validate.every=200", STEP="0.05")
    wait_for((tmp_path / "run" / "checkpoints" / "last.pt").exists, process)
    job = members(process.pid)
    assert len(job) >= 3
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(process.pid)
    shared = [name for name in os.listdir("/dev/shm") if set(re.split(r"[_.-]", name)) & set(map(str, job))]
    assert not shared


def members(group):
    """The processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# No room


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(path, {"step": 1})
    (path.with_name("last.pt.partial")).mkdir()  # as good as a full disk
    with pytest.raises(
        TrainingError, match=r"last\.pt: a checkpoint cannot be written \(Is a directory\); .* go on with"
    ):
        save_checkpoint(path, {"step": 2})
    assert torch.load(path)["step"] == 1
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot be written \(File exists\); make room there; none is kept"):
        save_checkpoint(tmp_path / "file" / "last.pt", {"step": 1})


def test_a_checkpoint_is_kept_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "last.pt"
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
        keep_checkpoint(path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "step-00000002.pt", "step-00000003.pt"]
    assert torch.load(tmp_path / "step-00000002.pt")["step"] == 2


FULL = """
import resource, signal, sys
from fss_svf.cli import main
from fss_svf.training import loop

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = loop.save_checkpoint

def full_at_four(path, content):
    if content["step"] == 4:  # from now on no file may be larger than 100 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    save(path, content)

loop.save_checkpoint = full_at_four
main()
"""


@pytest.mark.long
def test_a_full_disk_stops_the_run_with_its_last_checkpoint(start, fss, small, tmp_path):
    (tmp_path / "full.py").write_text(FULL)
    _, err = ended(start("full.py", *small), status=1)
    (line,) = [line for line in err.splitlines() if line.startswith("fss-svf train:")]
    assert (
        "last.pt: a checkpoint cannot be written (File too large); make room there; the one written before is" in line
    )
    assert last(tmp_path / "run")["step"] == 3
    assert not list((tmp_path / "run").rglob("*.partial"))
    to_the_end(fss, "train", "resume=run")
    assert last(tmp_path / "run")["step"] == 8


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept(fss, small, tmp_path):
    to_the_end(fss, *small, "keep=3")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "step-00000006.pt", "step-00000007.pt", "step-00000008.pt"]
    steps = [torch.load(tmp_path / "run" / "checkpoints" / name)["step"] for name in names[2:]]
    assert steps == [6, 7, 8]
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["step"] == 8
    # Any of them is a point to go on from.
    to_the_end(fss, "train", "resume=run/checkpoints/step-00000006.pt")
    assert last(tmp_path / "run")["step"] == 8
