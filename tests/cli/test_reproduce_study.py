"""fss-svf reproduce: rows with their own seeds and folds, rates chosen on held-out base classes, rows that do not train."""

import csv
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from fss_svf import config
from fss_svf.errors import ConfigError, TrainingError
from fss_svf.moved import relocated
from fss_svf.relocation import relocated_path
from fss_svf.reproduction.choosing import choices_table, chosen, score
from fss_svf.reproduction.jobs import make_jobs
from fss_svf.reproduction.machines import machines_table
from fss_svf.reproduction.plan import commands, plan_table
from fss_svf.reproduction.reproduce import reproduce
from tests.cli.test_reproduce import small, wanted

PANET = "dataset=toy backbone=tiny backbone.width=8 method=panet recipe=toy"
RATES = {"train": f"{PANET} tuning=svf", "rates": [0.001, 0.01, 0.1]}
CHOOSE = {
    "train": ["validate.selection=base_heldout", "validate.held_out=3"],
    "fold": 0,
    "seed": 1,
    "rate": ["recipe.optimizer.backbone_lr"],
}


def study(tmp_path, rows, choose=CHOOSE, **changes):
    return make_jobs(wanted(rows=rows, choose=choose, **changes), tmp_path)


def named(jobs, stage):
    return [job.folder.name for job in jobs if job.stage == stage]


def finish(job, miou, best=None):
    """What a finished training of a candidate leaves behind."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(yaml.safe_dump(config.to_mapping(job.config)))
    (job.folder / "finished.json").write_text(json.dumps({"step": 2, "score": best or miou}))
    with (job.folder / "log.csv").open("w") as file:
        csv.writer(file).writerows([("step", "score"), (1, 0.9), (2, ""), (2, miou), (3, "")])


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def test_a_row_may_have_fewer_folds_and_seeds_than_the_table(tmp_path):
    rows = {"all": f"{PANET} tuning=svf", "some": {"train": f"{PANET} tuning=full", "folds": [1, 3], "seeds": [2]}}
    jobs = study(tmp_path, rows, folds=[0, 1], seeds=[1, 2], train_shot=1)
    assert named(jobs, "train") == [
        *(f"all-fold{fold}-1shot-seed{seed}" for seed in (1, 2) for fold in (0, 1)), "some-fold1-1shot-seed2",
    ]  # fmt: skip
    # A part of the study, on the command line.
    part = study(tmp_path, rows, folds=[0], seeds=[1, 2], train_shot=1)
    assert {job.group for job in part} == {"all"}
    with pytest.raises(ConfigError, match=r"table.folds=\[0\], table.seeds=\[2\]: no wanted row has one of these"):
        study(tmp_path, {"some": rows["some"]}, folds=[0], seeds=[2])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"trian": "experiment=toy"}, r"rows.one.trian: no such key \(did you mean 'train'\?\)"),
        ({"train": "experiment=toy", "rates": [0.1]}, r"rows.one.rates: expected two or more different rates"),
        ({"train": "experiment=toy", "rates": [0.1, 0.1]}, r"rows.one.rates: expected two or more different rates"),
        ({"train": "experiment=toy", "rate": ["recipe.optimizer.lr"]}, r"rows.one.rate: expected null without rates"),
        ({"train": "experiment=toy", "rates": [0.1, 0.2]}, r"choose: expected .* as rows have rates: one, got None"),
    ],
)
def test_a_wrong_row_names_its_key(row, message):
    with pytest.raises(ConfigError, match=message):
        wanted(rows={"one": row})


def test_a_row_in_which_nothing_trains_is_evaluated_as_it_is(tmp_path):
    tests = {"svf": "protocol=svf protocol.episodes=20", "elsewhere": "dataset=deepglobe protocol=cdfss"}
    overrides = ("dataset.min_area=150", "recipe.size=65", "device=cpu")
    jobs = study(
        tmp_path, {"plain": f"{PANET} tuning=frozen"}, folds=[0, 2], seeds=[1, 2, 3], tests=tests, overrides=overrides
    )
    assert named(jobs, "evaluate") == [f"plain-fold{fold}-{test}" for fold in (0, 2) for test in tests]
    assert len(jobs) == 4
    here, elsewhere, second, _ = (job.config for job in jobs)
    assert (here.checkpoint, here.size, here.fold, here.device, here.shots) == (None, 65, 0, "cpu", (1, 5))
    assert (here.method["name"], here.backbone["name"], here.backbone["width"]) == ("panet", "tiny", 8)
    assert (here.dataset["name"], here.dataset["min_area"], second.fold) == ("toy", 150, 2)
    assert elsewhere.dataset["name"] == "deepglobe"
    # Where something trains, it is trained: a head, or a backbone.
    for trains in (f"{PANET} tuning=bias", "experiment=toy tuning=frozen"):
        assert named(study(tmp_path, {"one": trains}, folds=[0]), "train")
    with pytest.raises(ConfigError, match="row plain: has rates, and nothing that trains"):
        study(tmp_path, {"plain": {"train": f"{PANET} tuning=frozen", "rates": [0.1, 0.2]}})


# ---------------------------------------------------------------------------------------------------------------------
# Rates


def test_trainings_wait_for_the_rate(tmp_path):
    jobs = study(tmp_path, {"one": RATES}, folds=[0, 1], seeds=[1, 2], train_shot=1)
    candidates = [job for job in jobs if job.rate is not None]
    assert named(jobs, "choose") == [f"one-fold0-1shot-seed1-rate{rate}" for rate in (0.001, 0.01, 0.1)]
    for job in candidates:
        assert job.config.recipe.optimizer.backbone_lr == job.rate
        assert (job.config.validate.selection, job.config.validate.held_out) == ("base_heldout", 3)
        assert not job.waits
        assert job.kind == "choose/one-1shot"
    others = [job for job in jobs if job.stage in ("train", "evaluate")]
    assert len(others) == 8
    assert all(job.waits and not job.done for job in others)
    assert len([line for line in commands(jobs).splitlines() if line]) == 3
    line = next(line for line in plan_table(jobs, jobs, {}, 1).splitlines() if "| one " in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["", "0/3", "0/4", "0/4", "0.0 + 11 jobs"]


@pytest.mark.parametrize(("checkpoint", "rate"), [("last", 0.01), ("best", 0.1)])
def test_the_best_score_is_chosen(tmp_path, checkpoint, rate):
    """Of the last validation where the last checkpoint is evaluated, else of the best."""
    arguments = {"folds": [0, 1], "seeds": [2], "train_shot": 1, "checkpoint": checkpoint}
    jobs = study(tmp_path, {"one": RATES}, **arguments)
    for job, (miou, best) in zip(jobs, ((0.3, 0.3), (0.5, 0.5), (0.4, 0.8))):
        finish(job, miou, best)
    jobs = study(tmp_path, {"one": RATES}, **arguments)
    trainings = [job for job in jobs if job.stage == "train"]
    assert [job.config.recipe.optimizer.backbone_lr for job in trainings] == [rate, rate]
    assert {job.config.validate.selection for job in trainings} == {"novel"}
    assert not any(job.waits for job in jobs)
    table = choices_table(jobs, checkpoint)
    assert f"| {rate:g}" in table.splitlines()[-1]
    assert ("(the outermost)" in table) == (rate == 0.1)
    assert "0.001: 30.0, 0.01: 50.0" in table


def test_a_rate_that_diverges_is_tried_and_not_chosen(tmp_path):
    jobs = study(tmp_path, {"one": RATES}, folds=[0], train_shot=1)
    finish(jobs[0], 0.1)
    finish(jobs[1], 0.2)
    finish(jobs[2], 0.9)
    (jobs[2].folder / "finished.json").rename(jobs[2].folder / "not_finite.json")
    candidates = {job.rate: job for job in jobs[:3]}
    assert chosen(candidates, "last") == 0.01
    assert "0.1: not finite | 0.01" in " ".join(choices_table(jobs, "last").split())
    for job in jobs[:2]:
        (job.folder / "finished.json").rename(job.folder / "not_finite.json")
    assert chosen(candidates, "last") is None
    assert all(job.waits for job in study(tmp_path, {"one": RATES}, folds=[0], train_shot=1)[3:])


def test_each_fold_and_number_of_shots_may_have_its_rate(tmp_path):
    jobs = study(tmp_path, {"one": RATES}, {**CHOOSE, "fold": "each"}, folds=[0, 1], seeds=[1, 2], train_shot="each")
    assert len(named(jobs, "choose")) == 3 * 2 * 2
    finish_of = [job for job in jobs if job.rate is not None and (job.config.fold, job.config.shot) == (1, 5)]
    for job, miou in zip(finish_of, (0.1, 0.2, 0.3)):
        finish(job, miou)
    jobs = study(tmp_path, {"one": RATES}, {**CHOOSE, "fold": "each"}, folds=[0, 1], seeds=[1, 2], train_shot="each")
    decided = {(job.config.fold, job.config.shot) for job in jobs if job.stage == "train" and not job.waits}
    assert decided == {(1, 5)}
    assert "one, 5-shot" in choices_table(jobs, "last")


def test_a_row_may_say_which_rates(tmp_path):
    keys = ["recipe.optimizer.lr", "recipe.optimizer.backbone_lr"]
    jobs = study(tmp_path, {"one": {**RATES, "rate": keys}}, folds=[0], train_shot=1)
    rates = [(job.config.recipe.optimizer.lr, job.config.recipe.optimizer.backbone_lr) for job in jobs[:3]]
    assert rates == [(0.001, 0.001), (0.01, 0.01), (0.1, 0.1)]


def test_a_score_that_cannot_be_read_is_an_error(tmp_path):
    jobs = study(tmp_path, {"one": RATES}, folds=[0], train_shot=1)
    finish(jobs[0], 0.1)
    (jobs[0].folder / "log.csv").unlink()
    with pytest.raises(TrainingError, match=r"the score of its validation cannot be read .*; move it away"):
        score(jobs[0].folder, "last")


def test_jobs_with_rates_are_what_their_commands_compose_to(tmp_path):
    from tests.cli.test_config import compose

    jobs = make_jobs(wanted("evidence", only=("panet", "lora"), folds=[1], seeds=[2]), tmp_path)
    for job in {(job.stage, job.rate): job for job in jobs}.values():
        assert compose(job.verb, *job.overrides) == job.config


def test_the_study_is_whole(tmp_path):
    table = wanted("evidence").table
    rows = {name: table.row(name) for name in table.rows}
    # Nothing trains in two rows, and four have a rate that others chose, or one beside it.
    fixed = {"panet-frozen", "ssp-frozen", "steps-svf", "steps-full", "rates-svf", "rates-full"}
    assert {len(row.rates) for name, row in rows.items() if name not in fixed} == {3}
    assert all("recipe.optimizer.backbone_lr=" in rows[name].train for name in fixed if not name.endswith("frozen"))
    for row in rows.values():
        assert set(row.folds or ()) <= set(table.folds)
        assert set(row.seeds or ()) <= set(table.seeds)
    tunings = {"frozen", "svf", "layers", "full", "batchnorm", "lora", "adapter", "bias", "us", "v", "conv3x3"}
    for method in ("panet", "ssp"):
        assert {name for name in rows if name.count("-") == 1 and name.startswith(method)} == {
            f"{method}-{tuning}" for tuning in tunings
        }


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    """A folder of configs with table=study beside the package's."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "table").mkdir()
    values = {
        "name": "study",
        "rows": {
            "panet-frozen": f"{PANET} tuning=frozen",
            "panet-svf": {"train": f"{PANET} tuning=svf", "rates": [0.001, 0.01]},
        },
        "base_learners": {},
        "choose": {**CHOOSE, "train": [*CHOOSE["train"], "validate.every=2", "validate.episodes=6"]},
        "train": ["validate.every=2", "validate.episodes=4"],
        "evaluate": ["protocol=svf", "protocol.episodes=10", "protocol.never_drawn=leave_out"],
        "folds": [0],
        "shots": [1],
        "seeds": [1, 2],
        "train_shot": 1,
        "checkpoint": "last",
    }
    (folder / "table" / "study.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.mark.long
def test_a_study_from_one_command_in_parts(fss, toy_root, tmp_path, table_file):
    behind = [a for a in small(toy_root) if a.startswith(("dataset.", "recipe.", "workers"))]
    arguments = ("reproduce", "table=study", f"hydra.searchpath=[file://{table_file}]")
    status, _, err = fss(*arguments, "table.seeds=[1]", "--", *behind)
    assert status == 0, err
    folder = tmp_path / "outputs/reproduce/study"
    assert sorted(path.name for path in (folder / "evaluate").iterdir()) == [
        "panet-frozen-fold0", "panet-svf-fold0-1shot-seed1",
    ]  # fmt: skip
    plan = (folder / "plan.md").read_text()
    assert " | 2/2 | " in " ".join(plan.split())
    assert "| chosen |" in " ".join(plan.split())
    assert f"torch {version('torch')}" in plan.rstrip().splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("finished.json")}
    # The other seed later, in another session: the rate that was chosen.
    status, _, err = fss(*arguments, "--", *behind)
    assert status == 0, err
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    rates = {
        yaml.safe_load(path.read_text())["recipe"]["optimizer"]["backbone_lr"]
        for path in (folder / "train").glob("*/config.yaml")
    }
    assert len(rates) == 1
    assert len(list((folder / "evaluate").glob("*/result.json"))) == 3
    report = (folder / "report.md").read_text()
    assert "2 seeds (1, 2)" in report
    status, _, err = fss(*arguments, "--", *behind)
    assert status == 0
    assert "all 7 jobs are finished, nothing to run" in err


def test_trainings_run_after_the_choice(tmp_path, toy_root, monkeypatch, capsys):
    """In two passes; what has no rate is named at the end."""
    ran = []

    def run(runner, jobs):
        ran.append([job.name for job in jobs])
        for job in jobs:
            if job.rate is not None and job.group == "one":
                finish(job, job.rate)
            elif job.rate is not None:
                job.folder.mkdir(parents=True)
                (job.folder / "not_finite.json").touch()
        return [job for job in jobs if job.group == "two"]

    monkeypatch.setattr("fss_svf.reproduction.running.Runner.run", run)
    rows = {"one": RATES, "two": {**RATES, "folds": [0]}}
    overrides = tuple(a for a in small(toy_root) if a.startswith("dataset."))
    table = wanted(rows=rows, choose=CHOOSE, folds=[0], seeds=[1], train_shot=1, tests={}, overrides=overrides)
    with pytest.raises(TrainingError, match=r"2 of 10 jobs failed .*: train/two-fold0-1shot-seed1, evaluate/two"):
        reproduce(table, tmp_path)
    assert [name.split("/")[0] for name in ran[0]] == ["choose"] * 6
    assert ran[1] == ["train/one-fold0-1shot-seed1", "evaluate/one-fold0-1shot-seed1"]
    plan = " ".join((tmp_path / "plan.md").read_text().split())
    assert "0.1: 10.0 | 0.1 (the outermost)" in plan
    assert "0.1: not finite | - |" in plan
    assert "| not recorded | 6 |" in plan


def test_the_plan_says_where_the_finished_jobs_ran(tmp_path):
    jobs = study(tmp_path, {"one": RATES}, folds=[0], seeds=[1], train_shot=1)[:3]
    for job, recorded in zip(jobs, ("2 cores", "2 cores", None)):
        finish(job, 0.5)
        start = {"python": "3.11.7", "packages": {"torch": "2.14.1", "fss-svf": "0.2.0"}}
        if recorded:
            start["machine"] = {"processor": "EPYC", "instructions": "AVX2", "cores": 2, "threads": 1, "gpus": ["H200"]}
        (job.folder / "provenance.json").write_text(json.dumps({"starts": [{}, start]}))
    table = machines_table(jobs, {jobs[0].name: 1800, jobs[1].name: 3600})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    versions = "Python 3.11.7, torch 2.14.1, fss-svf 0.2.0"
    assert rows == [
        [f"H200, EPYC, 2 cores, 1 threads a job, AVX2; {versions}", "2", "1.5"],
        [f"not recorded; {versions}", "1", "0.0 + 1 jobs"],
    ]
    (jobs[2].folder / "provenance.json").write_text("cut off")
    assert machines_table(jobs[2:], {}).splitlines()[-1].split("|")[1].strip() == "not recorded"
    assert machines_table([], {}) == ""


# ---------------------------------------------------------------------------------------------------------------------
# A study that goes on elsewhere


def in_place(out, data):
    """The training and the evaluation of a study whose folder and data lie there."""
    overrides = [a for a in small(data) if a.startswith(("dataset.", "recipe.", "workers"))]
    row = {"panet-svf": f"{PANET} tuning=svf"}
    evaluate = ["protocol.episodes=10", "protocol.never_drawn=leave_out"]
    train = ["validate.every=2", "validate.episodes=4"]
    arguments = {"shots": [1], "folds": [0], "seeds": [1], "train": train, "evaluate": evaluate}
    return study(out, row, overrides=tuple(overrides), **arguments)


def moved(path, to):
    shutil.copytree(path, to)
    shutil.rmtree(path)
    return to


def test_a_study_goes_on_in_a_copy(fss, toy_root, tmp_path):
    data, out = shutil.copytree(toy_root, tmp_path / "a" / "data"), tmp_path / "a" / "study"
    for job in in_place(out, data):
        status, _, err = fss(*job.command())
        assert status == 0, err
    data, out = moved(data, tmp_path / "elsewhere" / "toy"), moved(out, tmp_path / "b" / "study")
    train, evaluate = in_place(out, data)
    assert train.done
    assert evaluate.done
    # Killed before its end, and there without the trees it knew.
    (train.folder / "finished.json").unlink()
    result = json.loads((evaluate.folder / "result.json").read_text())
    (evaluate.folder / "result.json").unlink()
    (evaluate.folder / "finished-0.jsonl").touch()
    assert not train.done
    for job in (train, evaluate):
        status, _, err = fss(*job.command())
        assert status == 0, err
    train, evaluate = in_place(out, data)
    assert train.done
    assert evaluate.done
    again = json.loads((evaluate.folder / "result.json").read_text())
    assert again["miou"] == result["miou"]
    assert again["checkpoint"]["path"] == str(train.folder)


@pytest.mark.parametrize("ran_in", ["/study", "/home/someone/study", "/"])
def test_paths_of_a_copy_are_those_of_its_new_place(tmp_path, ran_in):
    """Also where the old folder's path is the end of the new one's, as /study of /work/study."""
    old, new = Path(ran_in), tmp_path / "study"
    (new / "evaluate" / "a" / ".hydra").mkdir(parents=True)
    hydra = {"hydra": {"runtime": {"output_dir": str(old / "evaluate" / "a")}}}
    (new / "evaluate" / "a" / ".hydra" / "hydra.yaml").write_text(yaml.dump(hydra))
    data = tmp_path / "data"
    _, then = in_place(old, data)
    _, now = in_place(new, data)
    assert config.differing(then.config, now.config) == ["checkpoint"]
    there = relocated(then.config, new / "evaluate" / "a")
    train = new / "train" / "panet-svf-fold0-1shot-seed1"
    assert there.checkpoint == train == now.config.checkpoint
    # A report reads a training's curves where they are.
    recorded = str(then.config.checkpoint)
    assert relocated_path(recorded, new / "evaluate" / "a") == recorded
    train.mkdir(parents=True)
    assert relocated_path(recorded, new / "evaluate" / "a") == str(train)


def test_a_copy_of_another_study_is_refused(fss, toy_root, tmp_path):
    out = tmp_path / "study"
    train, evaluate = in_place(out, toy_root)
    assert fss(*train.command())[0] == 0
    assert fss(*evaluate.command())[0] == 0
    data = shutil.copytree(toy_root, tmp_path / "data")
    train, evaluate = in_place(out, data)
    assert train.done
    assert evaluate.done
    for job, name, keys in (
        (train, "provenance.json", ("starts", -1, "index")),
        (evaluate, "result.json", ("data", "index")),
    ):
        values = json.loads((job.folder / name).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = "0123456789abcdef"  # of other data
        (job.folder / name).write_text(json.dumps(values))
        with pytest.raises(ConfigError, match="holds a run with another dataset; move it away"):
            _ = job.done
    # In its own place it is what it was: nothing is opened.
    assert all(job.done for job in in_place(out, toy_root))
