"""fss-svf reproduce: the jobs of a table, what they cost, and running what is missing of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fss_svf import config
from fss_svf.conf_files import conf_dir
from fss_svf.config import ReproduceConfig, Table
from fss_svf.errors import ConfigError
from fss_svf.lock import locked
from fss_svf.overrides import understood_all
from fss_svf.reproduction.jobs import Job, make_jobs
from fss_svf.reproduction.plan import commands, plan_table
from fss_svf.reproduction.running import Runner, read_seconds, shares
from tests.conftest import TOY

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(config.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
ONE_CELL = ("table.folds=[0]", "table.shots=[1]")
ENDLESS = ("recipe.max_steps=100000", "recipe.epochs=100000")
TABLES = sorted(path.stem for path in (conf_dir() / "table").glob("*.yaml"))


def wanted(table="toy", **changes):
    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "table" / f"{table}.yaml"))
    of_table = {key: changes.pop(key) for key in list(changes) if key in (*values, "choose", "tests")}
    base = {"name": table, "plan": False, "only": (), "overrides": (), "jobs": 1, "processes": 1}
    return ReproduceConfig(table=config.from_mapping(Table, {**values, **of_table}), **{**base, **changes})


def small(toy_root, *more):
    return (*TOY, f"dataset.root={toy_root}", "recipe.size=65", "recipe.max_steps=2", "recipe.batch_size=2",
            "dataset.too_few_images=skip", "workers=0", *more)  # fmt: skip


def test_the_toy_table_is_the_whole_grid(tmp_path):
    jobs = make_jobs(wanted(), tmp_path)
    assert [len([j for j in jobs if j.verb == verb]) for verb in ("pretrain", "train", "evaluate")] == [4, 48, 48]
    folders = [job.folder for job in jobs]
    assert len(set(folders)) == len(jobs)
    for job in jobs:
        if job.verb == "train":
            base = job.needs
            assert base.verb == "pretrain"
            assert base.config.fold == job.config.fold
            assert Path(job.config.backbone.options.weights) == base.folder / "checkpoints" / "last.pt"
            if job.config.method.name == "bam":
                assert Path(job.config.method.options.base_learner) == base.folder
                assert job.config.method.options.shot == job.config.shot
        if job.verb == "evaluate":
            assert job.config.checkpoint == job.needs.folder
            assert job.config.shots == (job.needs.config.shot,)
    cells = {(j.group, j.config.fold, j.config.shot) for j in jobs if j.verb == "train"}
    assert len(cells) == 6 * 4 * 2


@pytest.mark.parametrize("table", TABLES)
def test_jobs_are_what_their_commands_compose_to(tmp_path, table):
    """A row is composed once and filled in; the command of a cell, composed by itself, says the same."""
    from tests.cli.test_config import compose

    only = ("ssp", "svf") if table == "evidence" else ()  # it has many rows
    jobs = make_jobs(wanted(table, folds=[3], shots=[5], train_shot="each", only=only), tmp_path)
    for job in {job.verb: job for job in jobs}.values():  # the last of each verb
        assert compose(job.verb, *job.overrides) == job.config
        verb, *arguments = job.command()
        assert verb == job.verb
        assert f"hydra.run.dir={job.folder}" in arguments


def test_a_training_is_tested_on_each_dataset(tmp_path):
    train, *tests = make_jobs(wanted("cdfss", only=("hsnet",)), tmp_path)
    assert (train.config.fold, train.config.dataset.options.train_list) == ("all", "hsnet")
    assert [(job.config.dataset["name"], job.config.protocol.name) for job in tests] == [
        ("deepglobe", "cdfss"), ("isic2018", "cdfss"), ("chest_xray", "cdfss"), ("fss1000", "cdfss_fss1000"),
    ]  # fmt: skip
    assert {job.needs for job in tests} == {train}
    assert len({job.folder for job in tests}) == 4
    assert tests[0].name == f"evaluate/{train.folder.name}-deepglobe"
    assert tests[0].kind == "evaluate/hsnet-frozen-resnet50-1shot-deepglobe"


def test_a_folder_may_have_any_letters(tmp_path):
    """Quotes, brackets and commas mean something in Hydra's grammar, and letters beyond ASCII are none in it."""
    from tests.cli.test_config import compose

    jobs = make_jobs(wanted(folds=[3], shots=[5], only=("bam", "svf")), tmp_path / "Jörg's (a,b) x=1 [y]")
    for job in jobs:
        assert compose(job.verb, *job.overrides) == job.config
        folder = next(argument for argument in job.command() if argument.startswith("hydra.run.dir="))
        hydra = OverridesParser.create().parse_overrides([folder])[0]
        assert hydra.value() == str(job.folder)
        assert not hydra.is_sweep_override()
        job.folder.mkdir(parents=True)
        (job.folder / "config.yaml").touch()
        (job.folder / "finished-0.jsonl").touch()
        if job.verb == "evaluate":  # it goes on
            (resume,) = [a for a in job.command() if a.startswith("resume=")]
            assert OverridesParser.create().parse_override(resume).value() == str(job.folder)
    assert [shlex.split(line)[1:] for line in commands(jobs).splitlines() if line] == [job.command() for job in jobs]


@pytest.mark.parametrize(
    "argument",
    [
        r"name='Jörg\'s, [a] (b)'",
        'name="a b"',
        "name=a,b",
        "name=a\\",
        r"name='a\b'",
        "name=run-${fold}",
        "a={b:[1,2]}",
    ],
)
def test_what_stands_behind_the_dashes_arrives_letter_by_letter(argument):
    before, given = understood_all("reproduce", ["table=toy", "--", argument, "workers=0"])
    assert before == "table=toy"
    (override,) = OverridesParser.create().parse_overrides([given])
    read = OmegaConf.create({"overrides": override.value()})
    assert OmegaConf.to_container(read, resolve=True) == {"overrides": [argument, "workers=0"]}


def test_a_model_of_one_shot_is_tested_at_all(tmp_path):
    jobs = make_jobs(wanted(train_shot=1, folds=[0]), tmp_path)
    tested = [job.config.shots for job in jobs if job.verb == "evaluate"]
    assert tested == [(1, 5)] * 6
    assert {job.config.shot for job in jobs if job.verb == "train"} == {1}


def test_the_papers_tables_take_the_best_checkpoint(tmp_path):
    *_, job = make_jobs(wanted("svf_pascal", folds=[0], shots=[5], only=("bam", "svf", "vgg16")), tmp_path)
    assert job.config.checkpoint == job.needs.folder / "checkpoints" / "best.pt"


def test_rows_are_chosen_by_words(tmp_path):
    groups = {job.group for job in make_jobs(wanted(only=("svf",)), tmp_path) if job.verb == "train"}
    assert groups == {"baseline-svf", "pfenet-svf", "bam-svf"}
    with pytest.raises(ConfigError, match=r"^only=\['vgg'\]: .* bam, baseline"):
        make_jobs(wanted(only=("vgg",)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"one": "experiment=toy recipe.max_stepz=2"}}, r"row one: no key 'recipe.max_stepz'"),
        ({"rows": {"one": "experiment=toy fold=7"}, "folds": [7]}, r"row one: fold: expected 0..3, got 7"),
        ({"rows": {"one": "experiment=tyo"}}, r"row one: .*available"),
        (
            {"rows": {"one": "experiment=toy backbone=resnet18 backbone.weights=@base"}},
            "table.base_learners: none for resnet18",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_jobs(wanted(**changes), tmp_path)


@pytest.mark.parametrize("override", ["fold=2", "shot=1", "seed=7", "seed=1,2"])
def test_what_tells_cells_apart_is_the_tables(tmp_path, override):
    key = override.split("=")[0]
    with pytest.raises(ConfigError, match=rf"^{override}: every cell .* choose them by table.{key}s="):
        make_jobs(wanted(overrides=(override,)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"folds": []}, "folds"), ({"shots": [0]}, "shots"), ({"seeds": [1, 1]}, "seeds"), ({"rows": {}}, "rows")],
)
def test_a_wrong_table_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}: expected"):
        wanted(**changes)


def test_a_folder_with_another_run_is_refused(tmp_path):
    (job, *_) = make_jobs(wanted(folds=[0], shots=[1], only=("baseline", "svf")), tmp_path)
    job.folder.mkdir(parents=True)
    other = replace(job.config, seed=7)
    (job.folder / "config.yaml").write_text(json.dumps(config.to_mapping(other)))
    with pytest.raises(ConfigError, match="holds a run with another seed; move it away"):
        _ = job.done


def test_hours_are_those_of_finished_jobs_of_the_kind(tmp_path):
    jobs = make_jobs(wanted(shots=[1], only=("baseline",)), tmp_path)
    trained = [job for job in jobs if job.verb == "train" and job.group == "baseline-svf"]
    missing = [job for job in jobs if job not in trained[:2]]
    seconds = {trained[0].name: 3600.0, trained[1].name: 7200.0, trained[2].name: 99.0}  # the third was stopped
    line = next(line for line in plan_table(jobs, missing, seconds, 2).splitlines() if "| baseline-svf " in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["", "", "2/4", "0/4", "3.0 + 4 jobs"]
    total = next(line for line in plan_table(jobs, missing, seconds, 2).splitlines() if "| all " in line)
    assert [cell.strip() for cell in total.split("|")[2:-1]] == ["0/4", "", "2/8", "0/8", "1.5 + 16 jobs"]


class Fake(Job):
    """A job that ends with the status that its only override says."""

    def command(self):
        return ["--version"] if self.overrides == ("0",) else ["no-such-verb"]


def fake(name, status, verb="train", needs=None, root=Path()):
    return Fake(verb, "row", root / name, (str(status),), None, needs)


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_a_job_that_fails_stops_those_that_need_it_alone(tmp_path, caplog, side_by_side):
    base, other = fake("pretrain/a", 2, "pretrain", root=tmp_path), fake("pretrain/b", 0, "pretrain", root=tmp_path)
    lacking = fake("train/a", 0, needs=base, root=tmp_path)
    jobs = [base, other, lacking, fake("train/b", 0, needs=other, root=tmp_path)]
    times = tmp_path / "seconds.json"
    assert Runner(side_by_side, 1, times).run(jobs) == [base, lacking]
    assert set(read_seconds(times)) == {"pretrain/a", "pretrain/b", "train/b"}
    assert "train/a is left out: it needs a job that failed" in caplog.text


def test_the_output_of_jobs_side_by_side_is_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the verb itself sets it
    job = fake("train/a", 2, root=tmp_path)
    monkeypatch.setattr(Fake, "command", lambda job: ["train", "recipe=none"])
    Runner(2, 1, tmp_path / "seconds.json").run([job])
    assert f"see screen.txt and log.txt in {job.folder}" in caplog.text
    assert (job.folder / "screen.txt").read_text().startswith("fss-svf train: ")  # a line, no traceback


def test_a_job_without_a_folder_does_not_stop_the_others(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a").touch()
    jobs = [fake("train/a", 0, root=tmp_path), fake("train/b", 0, root=tmp_path)]
    assert Runner(2, 1, tmp_path / "seconds.json").run(jobs) == jobs[:1]
    assert "train/a could not be started" in caplog.text


@pytest.mark.parametrize(
    ("gpus", "jobs", "processes", "expected"),
    [
        ("", 2, 1, ["", ""]),
        ("25", 1, 2, [""]),  # a single job takes what it finds
        ("25", 2, 1, ["2", "5"]),
        ("01", 3, 1, ["0", "1", "0"]),
        ("4567", 2, 2, ["4,5", "6,7"]),
    ],
)
def test_jobs_side_by_side_share_the_gpus(gpus, jobs, processes, expected):
    assert shares(gpus, jobs, processes) == expected


def test_the_gpus_are_those_that_this_process_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert Runner(2, 1, tmp_path)._free == ["2", "5"]
    assert Runner(2, 1, tmp_path, on_cpu=True)._free == ["", ""]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Runner(2, 1, tmp_path)._free == ["0", "1"]
    with pytest.raises(ConfigError, match=r"jobs=3 processes=2: .* 6 in all, and there are 2; lower"):
        Runner(3, 2, tmp_path)


def test_commands_stand_in_stages(tmp_path):
    jobs = make_jobs(wanted(folds=[0], shots=[1], only=("baseline",)), tmp_path)
    stages = commands(jobs).split("\n\n")
    assert [[line.split()[1] for line in stage.splitlines()] for stage in stages] == [
        ["pretrain"], ["train"] * 2, ["evaluate"] * 2,
    ]  # fmt: skip


def test_a_table_from_one_command_and_again_nothing(fss, toy_root, tmp_path):
    """Real jobs: one row, one fold, one shot."""
    arguments = ("reproduce", "table=toy", "only=[svf,baseline]", *ONE_CELL, "--", *small(toy_root, "method.width=8"))
    status, out, err = fss(*arguments)
    assert status == 0, err
    assert "| all" in out
    folder = tmp_path / "outputs/reproduce/toy"
    result = json.loads((folder / "evaluate/baseline-svf-fold0-1shot-seed321/result.json").read_text())
    report = (folder / "report.md").read_text()
    assert report.count("| baseline |") == 1
    assert {path.suffix for path in folder.glob("report.*")} == {".md", ".tex", ".csv", ".html"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    assert len(before) >= 2
    # The report is over all that is there, not only what this call asks for: as if another row had been run before.
    (folder / "evaluate/another").mkdir()
    (folder / "evaluate/another/result.json").write_text(json.dumps({**result, "tuning": "frozen"}))
    status, out, err = fss(*arguments)
    assert status == 0
    assert "all 3 jobs are finished" in err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")} == before
    assert (folder / "report.md").read_text().count("| baseline |") == 2

    # Another training in the same folder would be another table.
    status, _, err = fss(*arguments, "recipe.optimizer.lr=0.5")
    assert status == 1
    assert "holds a run with another recipe; move it away" in err


def test_an_unprepared_dataset_is_told_before_anything_runs(fss, tmp_path):
    status, _, err = fss("reproduce", "table=toy", "--", f"dataset.root={tmp_path}")
    assert status == 1
    assert "fss-svf prepare" in err
    assert not (tmp_path / "outputs/reproduce/toy/pretrain").exists()
    assert not (tmp_path / "outputs/reproduce/toy/plan.md").exists()


@pytest.mark.long
def test_sigterm_ends_its_jobs_and_says_so(toy_root, tmp_path):
    arguments = ("table=toy", "only=[baseline]", *ONE_CELL, "--", *small(toy_root, *ENDLESS))
    command = [sys.executable, "-m", "fss_svf", "reproduce", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        base = tmp_path / "outputs/reproduce/toy/pretrain/tiny-fold0"
        until = time.monotonic() + 120
        while not (base / "config.yaml").exists() and time.monotonic() < until:
            time.sleep(0.2)
        second = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert second.stderr.strip().endswith("another process works in this run folder; end it, or wait for its end")
        command.insert(command.index("--"), "plan=true")
        plan = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert plan.returncode == 0, plan.stderr
        assert "0 of " in plan.stderr
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err.decode()[-2000:]
    assert b"ended with status" not in err
    with locked(base):  # no job holds it any more
        assert not (base / "finished.json").exists()


@pytest.mark.long
def test_the_whole_toy_grid(fss, toy_root, tmp_path):
    arguments = ("reproduce", "table=toy", "jobs=2", "--", *small(toy_root, "method.width=8"))
    status, _, err = fss(*arguments)
    assert status == 0, err
    assert len(list((tmp_path / "outputs/reproduce/toy/evaluate").glob("*/result.json"))) == 48
    status, _, err = fss(*arguments)
    assert status == 0
    assert "all 100 jobs are finished, nothing to run" in err
