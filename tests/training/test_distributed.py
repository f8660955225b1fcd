"""Evaluation over processes, and after a kill: the same result, whoever did which part of it and when."""

import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from fss_svf import distributed
from fss_svf.errors import ConfigError
from fss_svf.evaluation.engine import Engine
from fss_svf.model import choose_device
from tests.conftest import TOY
from tests.processes import TORCHRUN, starting

pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes beside it have one

# fss-svf whose groups take some time, and of which process FAILS fails in its third group.
SLOW = """
import os, signal, time
from fss_svf.cli import main
from fss_svf.evaluation.engine import Engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run, number = Engine.run, iter(range(10**6))

def slow(self, group):
    if next(number) == 2 and os.environ.get("RANK") == os.environ.get("FAILS", "none"):
        raise ZeroDivisionError("a defect")
    time.sleep(float(os.environ["SECONDS"]))
    return run(self, group)

Engine.run = slow
main()
"""


@pytest.fixture
def control(toy_root):
    """An evaluation with nothing to train; without memory for features, so that they lie in files."""
    return ("evaluate", "method=prototype", "backbone=tiny", *TOY, f"dataset.root={toy_root}", "size=65", "workers=0",
            "shot=[1,3]", "seeds=2", "protocol.episodes=40", "pictures=0", "cache_gb=0", "device=cpu")  # fmt: skip


@pytest.fixture
def start(tmp_path):
    """Start Python with arguments in tmp_path, where slow.py lies."""
    (tmp_path / "slow.py").write_text(SLOW)
    with starting(tmp_path) as start:
        yield start


def results(folder):
    return {shot: json.loads((folder / f"{shot}shot" / "result.json").read_text()) for shot in (1, 3)}


def finished(folder):
    """Positions of the groups that are kept as finished, once for every line."""
    found = []
    for path in folder.glob("finished-*.jsonl"):
        for line in path.read_text().split("\n"):
            if line.endswith("}"):
                found.append(json.loads(line)["position"])
    return found


def wait_for(groups, folder, process):
    deadline = time.monotonic() + 120
    while len(finished(folder)) < groups:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_the_result_is_that_of_one_process(fss, start, control, tmp_path, processes):
    assert fss(*control, "hydra.run.dir=alone")[0] == 0
    # The time of the start is in the folder's name: process 0's.
    process = start(
        *TORCHRUN, processes, "-m", "fss_svf", *control, "pictures=1", "name=many", "episodes.save=many.csv"
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (folder,) = tmp_path.glob("outputs/evaluate/many/*")
    found = results(folder)
    for shot, result in results(tmp_path / "alone").items():
        # The same episodes, but said to be those of a file.
        del result["protocol_hash"], found[shot]["protocol_hash"], found[shot]["data"]["episodes"]
        assert found[shot] == result
    assert {p.name for p in folder.iterdir()} == {
        ".hydra", ".lock", "1shot", "3shot", "config.yaml", "log.txt", "provenance.json",
    }  # fmt: skip
    (began,) = json.loads((folder / "provenance.json").read_text())["starts"]
    assert began["processes"] == processes
    # Process 0 alone speaks.
    assert out.count("| prototype") == err.count("backbone: random weights") == 1


@pytest.mark.long
def test_an_error_of_one_process_ends_all_and_another_number_goes_on(fss, start, control, tmp_path):
    assert fss(*control, "hydra.run.dir=whole")[0] == 0
    slow = start(*TORCHRUN, 2, "slow.py", *control, "hydra.run.dir=run", SECONDS="0.3", FAILS="1")
    _, err = slow.communicate(timeout=120)
    assert slow.returncode != 0
    assert err.count("fss-svf evaluate: process 1: unexpected error") == err.count("ZeroDivisionError: a defect") == 1
    assert "process 0" not in err
    assert "ZeroDivisionError: a defect" in (tmp_path / "run" / "log.txt").read_text()
    before = finished(tmp_path / "run")
    assert len(before) >= 2
    status, _, err = fss(*control, "hydra.run.dir=run")
    assert status == 1
    assert f"holds an evaluation that is not finished; go on with resume={tmp_path / 'run'}, or choose another" in err
    assert fss("evaluate", f"resume={tmp_path / 'run'}")[0] == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_what_processes_cannot_do_is_refused_in_a_line(fss, monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "fss-svf train: WORLD_SIZE=2, but MASTER_ADDR is not set; start by torchrun" in fss("train")[2]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    refused = [
        (("report",), "fss-svf report: works in one process, torchrun started 2; start it without torchrun"),
        (
            ("evaluate", "-m", "shot=1,5"),
            "fss-svf evaluate: -m under torchrun: a sweep starts its jobs itself; start one",
        ),
    ]
    for arguments, message in refused:
        status, out, err = fss(*arguments)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert err.startswith(message)
    # The others leave it to the first, whose word could be cut off by an error of theirs.
    monkeypatch.setenv("RANK", "1")
    for arguments, _ in refused:
        assert fss(*arguments) == (0, "", "")


def test_without_torchrun_there_is_one_process():
    assert (distributed.rank(), distributed.world(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.launched() == (0, 1)
    assert distributed.broadcast("a") == "a"
    assert distributed.gather("a") == ["a"]
    distributed.barrier()
    calls = []
    distributed.log_once("a", lambda: calls.append(1))
    assert calls == [1]
    assert not distributed.anything_logged()


def test_each_process_of_a_machine_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    monkeypatch.setattr(distributed, "_world", 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == torch.device("cpu")
    assert current == [torch.device("cuda:1"), torch.device("cuda:1"), torch.device("cuda:0")]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ConfigError, match=r"2 CUDA devices are too few .* start --nproc-per-node 2, or, .* device=cuda:0"
    ):
        choose_device("auto")


def test_gpus_wait_as_long_as_nccl_waits_and_processes_as_long_as_it_takes(monkeypatch):
    made = []
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(None, 0, 2)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **options: made.append((backend, options))
    )
    monkeypatch.setattr(torch.distributed, "new_group", lambda **options: made.append(options) or "of the CPU")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: made.append(group))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: made.append("ended"))
    distributed.start()
    distributed.total([1.0])
    distributed.end()
    (backend, options), of_cpu, group, _ = made
    assert backend == "nccl"
    assert "timeout" not in options
    assert of_cpu["backend"] == "gloo"
    assert of_cpu["timeout"].days == 7
    assert group == "of the CPU"
    assert distributed.world() == 1


def test_processes_that_share_a_gpu_are_refused(monkeypatch):
    found = SimpleNamespace(uuid="GPU-0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, (own[0], "GPU-1"), ("another machine", own[1])])
    distributed._require_separate_gpus("cuda:0")
    monkeypatch.setattr(distributed, "gather", lambda own: [own, own])
    with pytest.raises(ConfigError, match="device=cuda:0: two processes of a training share this GPU"):
        distributed._require_separate_gpus("cuda:0")


# ---------------------------------------------------------------------------------------------------------------------
# Going on


@pytest.mark.long
def test_interrupted_then_killed_an_evaluation_goes_on_where_it_was(fss, start, control, tmp_path, monkeypatch):
    ran = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, group: ran.append(group) or run(self, group))
    assert fss(*control, "hydra.run.dir=whole")[0] == 0
    groups, folder = len(ran), tmp_path / "run"

    process = start("slow.py", *control, "hydra.run.dir=run", SECONDS="0.2")
    wait_for(3, folder, process)
    assert list(folder.glob("features-*/*.pt"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"what is finished is kept; go on with resume={folder}" in err
    assert err.splitlines()[-1] == "fss-svf evaluate: interrupted"
    assert not list(folder.glob("features-*"))
    before = len(finished(folder))

    process = start("slow.py", "evaluate", f"resume={folder}", SECONDS="0.2")
    wait_for(before + 3, folder, process)
    process.kill()
    process.wait()
    assert list(folder.glob("features-*/*.pt"))
    before = finished(folder)
    assert len(before) == len(set(before)) < groups

    ran.clear()
    status, _, err = fss("evaluate", f"resume={folder}", "cache_gb=1", "device=auto")
    assert status == 0
    assert len(ran) == groups - len(before)
    done = sum(len(group) for group in ran)
    assert f"{160 - done} of 160 episodes were done" in err
    assert results(folder) == results(tmp_path / "whole")
    assert {p.name for p in folder.iterdir()} == {
        ".hydra", ".lock", "1shot", "3shot", "config.yaml", "log.txt", "provenance.json",
    }  # fmt: skip
    assert len(json.loads((folder / "provenance.json").read_text())["starts"]) == 3

    ran.clear()
    status, out, err = fss("evaluate", f"resume={folder}")
    paths = ", ".join(str(folder / f"{shot}shot" / "result.json") for shot in (1, 3))
    assert (status, out, err) == (0, "", f"finished already, nothing to do: {paths}\n")
    assert not ran


def test_what_is_no_evaluation_is_not_resumed(fss, control, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("name: a\nrecipe: {size: 65}\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("a: [\nb")
    for folder, message in (
        ("empty", "no run folder of evaluate, there is no config.yaml in it"),
        ("other", "no run folder of evaluate; config.yaml: recipe: no such key"),
        ("broken", "no run folder of evaluate; config.yaml: while parsing"),
    ):
        status, _, err = fss("evaluate", f"resume={folder}")
        assert status == 1
        assert re.match(rf"fss-svf evaluate: resume=\S*{folder}: {message}", err), err
        assert len(err.splitlines()) == 1
    assert not list((tmp_path / "empty").iterdir())
    status, _, err = fss(*control, "resume=other")
    assert status == 1
    assert "method=prototype was given too; leave it out (only " in err


def test_a_process_of_several_leaves_with_all_it_said_and_is_not_taken_apart():
    """What threads of Gloo ask of an interpreter that is being taken apart ends the process with SIGABRT."""
    script = (
        "import atexit; from fss_svf import distributed; atexit.register(print, 'apart');"
        "print('said', end=''); distributed.leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "")
