"""Each run has a folder of its own; what is in a folder stays until a new run may replace it."""

import json
import logging
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import hydra.core.utils
import pytest
from filelock import FileLock

import fss_svf
from fss_svf import launch
from fss_svf.console import LogFile
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.run_folder import claimed
from tests.conftest import SMALL_TOY, TOY

CONTROL = ("evaluate", "method=prototype", "backbone=tiny", *TOY, "size=65", "workers=0", "pictures=0",
           "protocol.episodes=4", "protocol.never_drawn=leave_out")  # fmt: skip
SMALL = ("experiment=toy", *TOY, "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=1", "validate.every=1",
         "validate.episodes=2", "backbone.width=8", "method.width=8", "workers=0")  # fmt: skip


def overrides(run):
    return (run / ".hydra" / "overrides.yaml").read_text()


def one_error(result, *words):
    status, _, err = result
    assert status == 1
    errors = [line for line in err.splitlines() if line.startswith("fss-svf ")]
    assert errors == err.splitlines()[-1:]
    assert "Traceback" not in err
    for word in words:
        assert str(word) in errors[0]


def test_a_folder_is_claimed_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claimed(tmp_path / "a" / "12-00"), range(16)))
    assert len(set(folders)) == 16
    assert {f.name for f in folders} == {"12-00", *(f"12-00-{n}" for n in range(2, 17))}


def test_runs_of_one_second_keep_their_own_options(fss, toy_root, tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2030, 1, 1, 12, 0, 0, tzinfo=tz)

    monkeypatch.setattr(hydra.core.utils, "datetime", Clock)
    for seed in (1, 2):
        assert fss(*CONTROL, f"dataset.root={toy_root}", f"seed={seed}", "name=same")[0] == 0
    assert fss(*CONTROL, f"dataset.root={toy_root}", "-m", "seed=3,4", "name=same")[0] == 0
    assert fss(*CONTROL, f"dataset.root={toy_root}", "-m", "seed=5,6", "name=same")[0] == 0
    made = sorted(tmp_path.glob("outputs/evaluate/same/*/result.json"))
    assert [p.parent.name.removeprefix("2030-01-01_12-00-00") for p in made] == ["", "-2", "_0", "_0-2", "_1", "_1-2"]
    for path in made:
        (seed,) = json.loads(path.read_text())["seeds"]
        assert f"seed={seed}\n" in overrides(path.parent)
    # What only shows a config makes no folder.
    assert fss(*CONTROL, "--cfg", "job")[0] == 0
    assert len(list(tmp_path.glob("outputs/evaluate/same/*"))) == 6


def test_what_a_folder_holds_stays_until_it_may_be_replaced(fss, toy_root, tmp_path):
    data = f"dataset.root={toy_root}"
    assert fss("train", *SMALL, data, "hydra.run.dir=run")[0] == 0
    run = tmp_path / "run"
    before = overrides(run)
    one_error(fss("train", *SMALL, data, "hydra.run.dir=run", "seed=1"), "holds a run already; go on with resume=")
    one_error(
        fss(*CONTROL, data, "hydra.run.dir=run"), "run: holds a run of train; choose another folder (hydra.run.dir)"
    )
    one_error(fss("report", "runs=run", "hydra.run.dir=run"), "run: holds a run of train")
    assert overrides(run) == before
    assert not (run / "result.json").exists()

    assert fss(*CONTROL, data, "hydra.run.dir=e", "shot=[1,2]")[0] == 0
    out = tmp_path / "e"
    before, result = overrides(out), (out / "1shot" / "result.json").read_text()
    one_error(fss(*CONTROL, data, "hydra.run.dir=e", "fold=9"))
    assert (overrides(out), (out / "1shot" / "result.json").read_text()) == (before, result)
    # An evaluation replaces another, and nothing of other shots stays beside it.
    assert fss(*CONTROL, data, "hydra.run.dir=e", "seed=7")[0] == 0
    assert "seed=7" in overrides(out)
    assert [p.relative_to(out) for p in out.rglob("result.json")] == [Path("result.json")]


def test_a_refused_run_leaves_no_folder(fss, toy_root, tmp_path):
    data = f"dataset.root={toy_root}"
    for arguments in (
        ("train", "fold=9"),
        (*CONTROL, data, "protocol.never_drawn=error"),  # known when the episodes are drawn
        ("evaluate", "checkpoint=none"),
        ("report",),
        (*CONTROL, data, "fold=9", "hydra.run.dir=mine"),
    ):
        assert fss(*arguments)[0] == 1
        assert not list(tmp_path.iterdir()), arguments
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    assert fss("train", "fold=9", "hydra.run.dir=mine")[0] == 1
    assert (tmp_path / "mine" / "notes").exists()


def test_a_refused_run_deletes_no_folder_that_was_there(fss, toy_root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "outer" / "logged").mkdir(parents=True)
    (tmp_path / "outer" / "logged" / "log.txt").write_text("my notes\n")
    for folder in ("mine", "outer/logged", "outer/new/deep"):
        one_error(fss("train", "fold=9", f"hydra.run.dir={folder}"))
    assert (tmp_path / "mine").is_dir()
    assert (tmp_path / "outer" / "logged" / "log.txt").read_text().startswith("my notes\n")
    assert {path.name for path in (tmp_path / "outer").iterdir()} == {"logged"}
    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    for folder in ("mine", "outer/new/deep"):
        with pytest.raises(WeightsError):
            fss_svf.train("panet", fold, backbone={"name": "tiny", "weights": "gone.pth"}, out=folder)
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "outer" / "new").exists()


def test_a_refused_run_leaves_the_folder_of_another_process(fss, toy_root, tmp_path, monkeypatch):
    """Which began in the same instant: the folder was in no one's way."""

    def taken(verb, *_):
        (tmp_path / "run" / ".lock").unlink()  # a lock that this process lets go of does not count
        other.append(FileLock(tmp_path / "run" / ".lock", timeout=0))
        other[0].acquire()
        raise ConfigError("refused")

    other = []
    monkeypatch.setattr(launch, "begin", taken)
    one_error(fss("train", *SMALL, f"dataset.root={toy_root}", "hydra.run.dir=run"), "refused")
    assert (tmp_path / "run" / "log.txt").exists()
    other[0].release()
    monkeypatch.undo()
    # A second start of a run that is at work.
    (tmp_path / "run2").mkdir()
    with FileLock(tmp_path / "run2" / ".lock", timeout=0):
        monkeypatch.chdir(tmp_path)
        one_error(fss("train", *SMALL, f"dataset.root={toy_root}", "hydra.run.dir=run2"), "another process works in")
    assert (tmp_path / "run2" / "log.txt").exists()


def test_what_cannot_be_written_is_one_line_with_its_key(fss, toy_root, tmp_path):
    file = tmp_path / "file"
    file.touch()
    data = f"dataset.root={toy_root}"
    one_error(fss(*CONTROL, data, f"hydra.run.dir={file}"), f"{file}: cannot be written", "hydra.run.dir=")
    one_error(fss(*CONTROL, data, f"hydra.run.dir={file}/x/y"), f"{file}/x", "cannot be written", "hydra.run.dir=")
    one_error(
        fss(*CONTROL, data, f"episodes.save={file}/e.csv", "hydra.run.dir=e"), "episodes.save=", "cannot be written"
    )
    (tmp_path / "log" / "log.txt").mkdir(parents=True)
    one_error(fss(*CONTROL, data, "hydra.run.dir=log"), "log.txt: cannot be written (Is a directory)")
    (tmp_path / "outputs").touch()
    for arguments in ((*CONTROL, data), ("prepare", *TOY, data), ("train", *SMALL, data), ("reproduce", "table=toy")):
        one_error(fss(*arguments), "outputs", "cannot be written (Not a directory)", "hydra.run.dir=")
    status, _, err = fss(*CONTROL, data, "-m", "seed=1,2")
    assert (status, "Traceback" in err, "Warning" in err) == (1, False, False)
    assert "outputs/evaluate: cannot be written" in err.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such name")
def test_names_that_are_not_utf_8(fss, toy_root, tmp_path):
    data = f"dataset.root={toy_root}"
    odd = os.fsdecode(bytes(tmp_path) + b"/r\xfct")
    os.symlink(toy_root, odd)
    status, _, err = fss("train", *SMALL, f"dataset.root={odd}", "hydra.run.dir=run")
    assert status == 0, err
    shutil.copytree("run", odd + "run")
    status, _, err = fss("evaluate", f"checkpoint={odd}run", data, *CONTROL[-2:], "workers=0")
    assert status == 0, err
    assert "\\udcfct" in err
    assert fss("report", "formats=[md,html]")[0] == 0
    one_error(fss("evaluate", f"checkpoint={odd}none"), "\\udcfctnone", "no such checkpoint")
    # TensorBoard writes into no such folder.
    status, _, err = fss("train", *SMALL, data, f"hydra.run.dir={odd}other")
    assert (status, "Traceback" in err) == (1, False)
    assert "hydra.run.dir=" in err.splitlines()[-1]
    assert "is not UTF-8" in err.splitlines()[-1]


def test_a_log_on_a_full_disk_ends_with_a_line(tmp_path, capsys):
    handler = LogFile(tmp_path / "log.txt")
    handler.emit(logging.makeLogRecord({"msg": "b\u00e4r \udcff"}))
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "b\u00e4r \\udcff\n"

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    stream, handler.stream = handler.stream, Full()
    for _ in range(2):
        handler.emit(logging.makeLogRecord({"msg": "x"}))
    handler.stream = stream
    handler.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("log.txt: cannot be written ([Errno 28] No space left on device); the log ends here")
