"""Runs that go on by themselves, alone and in sweeps by every launcher; the lock of a run folder."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from fss_svf.errors import ConfigError
from fss_svf.lock import locked
from fss_svf.messages import of_hydra
from tests.cli.test_cli import one_line
from tests.conftest import TOY
from tests.processes import PACKAGE_AT

SMALL = ("experiment=toy", *TOY, "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=2",
         "validate.every=1", "validate.episodes=4", "backbone.width=8", "method.width=8", "workers=0")  # fmt: skip
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"),
}


@pytest.fixture
def small(toy_root):
    return (*SMALL, f"dataset.root={toy_root}")


@pytest.fixture
def start(tmp_path):
    """Start `fss-svf arguments` in tmp_path as the head of a process group, which is killed at the end."""
    running = []

    def call(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "fss_svf", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_AT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell's background jobs ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        running.append(process)
        return process

    yield call
    for process in running:
        kill(process)


def kill(process):
    """The whole group at once, as a machine that goes down."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def in_group(process):
    """The living processes of its group."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True).stdout
    return sum(line.split()[0] == str(process.pid) and line.split()[1][0] != "Z" for line in listed.splitlines()[1:])


def runs(folder):
    return sorted(path.parent for path in folder.glob("outputs/train/[!.]*/*/.hydra"))


def starts(run):
    return len(json.loads((run / "provenance.json").read_text())["starts"])


def wait_until(holds, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# One run


def test_auto_goes_on_with_the_run_of_its_config(fss, small, tmp_path):
    status, _, err = fss("train", *small, "resume=auto")
    assert status == 0, err
    (run,) = runs(tmp_path)
    command = (run / ".hydra" / "overrides.yaml").read_text()
    score = json.loads((run / "finished.json").read_text())["score"]

    # In another order, and on another machine, it is the same run; it is finished.
    status, out, err = fss("train", "log_every=1", *reversed(small), "resume=auto", "cache_gb=0.01")
    assert (status, out) == (0, "")
    assert f"{run} (score {score:.4f})" in one_line(err)
    assert starts(run) == 1

    # Killed after a checkpoint: goes on there.
    (run / "finished.json").unlink()
    status, _, err = fss("train", *small, "resume=auto")
    assert status == 0, err
    assert "resumed at step 2 of 2" in err
    assert starts(run) == 2

    # Without its last checkpoint, as somebody left it: the others are not thrown away.
    (run / "finished.json").rename(run / "kept.json")
    (run / "checkpoints" / "last.pt").rename(run / "checkpoints" / "kept")
    status, _, err = fss("train", *small, "resume=auto")
    assert status == 1
    assert f"resume={run}/checkpoints/best.pt" in one_line(err)
    (run / "checkpoints" / "kept").rename(run / "checkpoints" / "last.pt")
    (run / "kept.json").rename(run / "finished.json")

    # Killed while the first was written, and before config.yaml: begins anew there.
    for name in ("finished.json", "checkpoints/last.pt", "config.yaml"):
        (run / name).unlink()
    (run / "checkpoints" / "best.pt").rename(run / "checkpoints" / "last.pt.partial")
    status, _, err = fss("train", *small, "resume=auto")
    assert status == 0, err
    assert "resumed" not in err
    assert starts(run) == 3
    assert (run / "finished.json").exists()

    assert runs(tmp_path) == [run]
    assert (run / ".hydra" / "overrides.yaml").read_text() == command
    # null and never begin another.
    assert fss("train", *small, "hydra.run.dir=outputs/train/null/0")[0] == 0
    assert fss("train", "-m", *small, "resume=never")[0] == 0
    assert len(runs(tmp_path)) == 3


def test_pretrain_goes_on_too(fss, toy_root, tmp_path):
    pretrain = ("pretrain", "experiment=toy_pretrain", *TOY, f"dataset.root={toy_root}", "recipe.size=65",
                "recipe.max_steps=2", "recipe.batch_size=2", "backbone.width=8", "workers=0", "resume=auto")  # fmt: skip
    assert fss(*pretrain)[0] == 0
    status, _, err = fss(*pretrain)
    assert status == 0
    assert err.startswith("finished already")


def test_a_folder_of_another_run_is_refused(fss, small):
    assert fss("train", *small, "hydra.run.dir=run")[0] == 0
    status, _, err = fss("train", *small, "hydra.run.dir=run", "resume=auto", "seed=1", "shot=2")
    assert status == 1
    assert "run: holds a run with another name, seed, shot; choose another folder (hydra.run.dir)" in one_line(err)


def test_auto_hides_no_mistake(fss, small):
    for arguments, message in (
        (("resume=auto", "fold=one"), "fold: expected a whole number, got 'one'"),
        (("resume=auto", "name=${nothing}"), "Interpolation key 'nothing' not found"),
        (("resume=atuo",), "resume=atuo: there is no such run folder or checkpoint (did you mean 'auto'?)"),
    ):
        status, out, err = fss("train", *small, *arguments)
        assert (status, out) == (1, "")
        assert message in one_line(err)
    assert "there is no such run" in fss("evaluate", "resume=auto")[2]


# ---------------------------------------------------------------------------------------------------------------------
# The lock


def test_one_process_at_a_time_works_in_a_folder(fss, small, tmp_path):
    with locked(tmp_path / "run"):
        status, _, err = fss("train", *small, "hydra.run.dir=run")
        assert status == 1
        assert "run: another process works in this run folder" in one_line(err)
    assert fss("train", *small, "hydra.run.dir=run")[0] == 0


def test_a_killed_process_leaves_no_lock_though_its_children_live(tmp_path):
    code = """
import multiprocessing, sys, time
from pathlib import Path
from fss_svf.lock import locked
if __name__ == "__main__":
    with locked(Path(sys.argv[1])):
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
        time.sleep(1)
        print("held", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_AT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path):
        assert in_group(process) == 1
    os.killpg(process.pid, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_job_among_others(start, small, tmp_path, launcher):
    # Loaders too: joblib's processes start others in their own way.
    sweep = ("train", "-m", *small, "tuning=frozen,svf", "shot=1,90", "workers=1", *LAUNCHERS[launcher])
    for _ in range(2 if launcher == "basic" else 1):
        process = start(*sweep)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        told = err[err.index("sweep: ") :].splitlines()
        assert told[0] == "sweep: 2 of 4 jobs finished"
        for line, tuning in zip(told[1:3], ("frozen", "svf")):
            assert line.startswith(f"  failed: tuning={tuning} shot=90: fold 0, train: 90-shot episodes need 91 images")
        assert told[3:] == ["the same command again runs what is missing"]
        assert "Traceback" not in err
        assert "Error executing job" not in err
        assert len(runs(tmp_path)) == 4
        finished = [run for run in runs(tmp_path) if (run / "finished.json").exists()]
        assert [starts(run) for run in finished] == [1, 1]
        for run in {*runs(tmp_path)} - {*finished}:
            assert "90-shot episodes need" in (run / "log.txt").read_text()
    assert not list(tmp_path.glob("outputs/train/.sweep-*"))


def killed_and_started_again(start, sweep, jobs, half, tmp_path):
    process = start(*sweep)
    wait_until(lambda: sum((run / "finished.json").exists() for run in runs(tmp_path)) >= half, process)
    kill(process)
    before = {run: starts(run) for run in runs(tmp_path) if (run / "finished.json").exists()}
    begun = {run for run in runs(tmp_path) if (run / "provenance.json").exists()} - before.keys()
    assert half <= len(before) < jobs
    process = start(*sweep)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert f"sweep: {jobs} of {jobs} jobs finished" in err
    assert len(runs(tmp_path)) == jobs
    for run in runs(tmp_path):
        assert (run / "finished.json").exists()
        assert starts(run) == (2 if run in begun else 1)


@pytest.mark.long
def test_a_killed_sweep_runs_what_is_missing(start, small, tmp_path):
    killed_and_started_again(start, ("train", "-m", *small, "fold=0,1", "tuning=frozen,svf"), 4, 2, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_sixteen_jobs_killed_half_way(start, small, tmp_path, launcher):
    sweep = ("train", "-m", *small, "fold=0,1,2,3", "shot=1,2", "tuning=frozen,svf", *LAUNCHERS[launcher])
    if launcher == "submitit_local":  # which starts all at once: too much for a small machine
        sweep = (*sweep, "hydra.sweeper.max_batch_size=4")
    killed_and_started_again(start, sweep, 16, 6, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_an_interrupted_sweep_leaves_nothing_running(start, small, tmp_path, launcher):
    process = start("train", "-m", *small, "tuning=frozen,svf", "recipe.max_steps=9000", "validate.every=9000", "workers=1",
                    *LAUNCHERS[launcher])  # fmt: skip
    wait_until(lambda: len(list(tmp_path.rglob("events.out.*"))) == 2, process)
    process.send_signal(signal.SIGINT)  # to itself alone; a terminal sends it to all
    wait_until(lambda: process.poll() is not None, None, 30)
    assert process.returncode == 130
    wait_until(lambda: in_group(process) == 0, None, 30)
    assert "fss-svf train: interrupted" in process.communicate()[1].splitlines()
    assert not list(tmp_path.glob("outputs/train/.sweep-*"))


def test_a_launcher_that_is_not_installed_says_which_package():
    for launcher, extra in (("joblib", "joblib"), ("submitit_slurm", "slurm")):
        text = of_hydra(
            Exception(f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options:\n\tbasic"), "train"
        )
        assert text == (f"Could not find 'hydra/launcher/{launcher}'; pip install 'fss-svf[{extra}]'; available: basic")


# ---------------------------------------------------------------------------------------------------------------------
# The script for Slurm

FAKES = {
    "srun": """
for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n SLURM_NTASKS=2 "${@:2}" & done
wait -n; first=$?; wait -n; second=$?
exit $((first > second ? first : second))
""",
    "scontrol": """
if [ $1 = show ]; then echo one; echo two; else echo "$@" >> scontrol.txt; fi
""",
    "sleep": "",
    "python": """
echo "$RANK of $WORLD_SIZE, $LOCAL_RANK here, $MASTER_ADDR:$MASTER_PORT: $@" >> python.txt
exit $STATUS
""",
}


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (1, False)])
def test_the_script_for_slurm(tmp_path, status, requeued):
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (tmp_path / name).chmod(0o755)
    script = PACKAGE_AT / "scripts" / "slurm_train.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    slurm = {
        "SLURM_JOB_ID": "40007",
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_ARRAY_TASK_ID": "2",
        "STATUS": str(status),
    }
    done = subprocess.run(
        ["bash", script, "tuning=svf", "dataset.folds=[[a, b]]"],
        cwd=tmp_path,
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == status
    assert sorted((tmp_path / "python.txt").read_text().splitlines()) == [
        f"{n} of 2, {n} here, one:20007: -m fss_svf train resume=auto fold=2 tuning=svf dataset.folds=[[a, b]]"
        for n in (0, 1)
    ]
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 40007\n"
