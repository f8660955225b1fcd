"""Loggers: what each tool is told, whose package is missing, and that none of them changes a training."""

import csv
import importlib.util
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fss_svf import svf
from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.data.images import PALETTE
from fss_svf.data.loading import LabelBatch
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS
from fss_svf.training import tracking
from fss_svf.training.batch_picture import draw_episode_batch, draw_label_batch
from fss_svf.training.drift import drift_by_size, drift_by_stage
from fss_svf.training.loggers import make_logger, require_package
from fss_svf.training.loggers.mlflow import MlflowLogger
from fss_svf.training.pretrain import pretrain
from fss_svf.training.train import train
from tests.cli.test_config import shipped_tuning
from tests.methods.test_methods import episode
from tests.training.test_training import pretrain_config, train_config

PICTURE = np.zeros((4, 6, 3), np.uint8)


def rows_of(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------------------
# wandb


class FakeWandb(ModuleType):
    """The calls of wandb.init() and of its run, with the real parameters' names."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.__file__ = "wandb/__init__.py"
        self.runs = []

    def init(self, entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None):
        run = SimpleNamespace(project=project, dir=dir, id=id, name=name, resume=resume, rows=[], exit=None, values={})
        run.config = SimpleNamespace(update=lambda d, allow_val_change=None: run.values.update(d))
        run.define_metric = lambda name, step_metric=None: None
        run.log = lambda data, step=None, commit=None: run.rows.append(data)
        run.finish = lambda exit_code=None, quiet=None: setattr(run, "exit", exit_code)
        self.runs.append(run)
        return run

    def Settings(self, console):
        return {"console": console}

    def Image(self, data_or_path, mode=None, caption=None):
        return "image", data_or_path.shape

    def Histogram(self, sequence=None, np_histogram=None, num_bins=64):
        return "histogram", len(sequence)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_wandb_has_everything_and_a_resumed_run_is_the_same_run(toy_root, tmp_path, wandb, monkeypatch):
    config = train_config(toy_root, logger="wandb")
    longer = replace(config.recipe, max_steps=6)
    with monkeypatch.context() as m:
        m.setattr("fss_svf.training.loop.peak_memory", lambda device: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(replace(config, log_every=3), tmp_path / "run")
    train(replace(config, resume=tmp_path / "run"), tmp_path / "run")
    train(replace(config, resume=tmp_path / "run", recipe=longer), tmp_path / "run")
    train(replace(config, logger="none"), tmp_path / "none")
    first, *more = wandb.runs
    assert [run.exit for run in wandb.runs] == [1, 0, 0]
    assert {(run.id, run.project, run.name, run.resume) for run in more} == {(first.id, "fss-svf", "test", "allow")}
    assert (tmp_path / "run" / "wandb.id").read_text().strip() == first.id
    assert first.dir == str(tmp_path / "run")
    assert first.values["recipe.optimizer.lr"] == 0.01
    assert "mIoU on the novel classes" in first.values["selection"]
    steps = {}
    for row in [row for run in wandb.runs for row in run.rows]:
        for name in row:
            steps.setdefault(name, []).append(row["step"])
    assert steps["batch"] == [1]
    assert steps["loss/main"] == [3, 3, 4, 5, 6]
    assert steps["miou"] == steps["val/loss"] == steps["episodes"] == steps["relative_drift/layer3"] == [2, 4, 6]
    assert steps["memory/host_mb"] == steps["grad_norm/total"][1:] == [3, 4, 5, 6]
    assert not (tmp_path / "run" / "tensorboard").exists()
    # None of it changes a training.
    rows = {int(row["step"]): row for row in rows_of(tmp_path / "none") if row["loss/main"]}
    assert rows[4] == {int(r["step"]): r for r in rows_of(tmp_path / "run") if r["loss/main"]}[4]
    assert float(rows[1]["grad_norm/total"]) >= float(rows[1]["grad_norm/head"]) > 0
    assert {p.name for p in (tmp_path / "none").iterdir()} == {
        "checkpoints", "config.yaml", "finished.json", "log.csv", "provenance.json"
    }  # fmt: skip


def test_wandb_that_cannot_begin_says_what_to_do(tmp_path, wandb, monkeypatch):
    def init(**_):
        raise FakeWandb.Error("No API key\nconfigured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        ConfigError, match=r"^logger=wandb: No API key configured\.; run 'wandb login', set WANDB_MODE="
    ):
        make_logger("wandb", tmp_path, "name", 0)
    assert not (tmp_path / "wandb.id").exists()


# ---------------------------------------------------------------------------------------------------------------------
# MLflow


class MlflowException(Exception):
    pass


class FakeClient:
    """The calls of MlflowClient, with the real parameters' names."""

    experiments, runs = {}, {}
    broken = False

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        number = f"r{len(self.runs)}"
        self.runs[number] = {
            "name": run_name,
            "of": experiment_id,
            "tags": {},
            "params": {},
            "metrics": [],
            "images": [],
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=number))

    def update_run(self, run_id, status=None, name=None):
        if run_id not in self.runs:
            raise MlflowException(f"RESOURCE_DOES_NOT_EXIST:\n{run_id}")
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        if self.broken:
            raise MlflowException("no\nroute")
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += [(m.key, m.value, m.step) for m in metrics]
        self.runs[run_id]["params"].update({p.key: p.value for p in params})

    def log_image(self, run_id, image, artifact_file=None, *, key=None, step=None, timestamp=None, synchronous=None):
        self.runs[run_id]["images"].append((key, step, image.shape))

    def set_tag(self, run_id, key, value, synchronous=None):
        self.runs[run_id]["tags"][key] = value

    def set_terminated(self, run_id, status=None, end_time=None):
        self.runs[run_id]["status"] = status


@pytest.fixture
def mlflow(monkeypatch):
    fake = ModuleType("mlflow")
    fake.__file__ = "mlflow/__init__.py"
    client = type("Client", (FakeClient,), {"experiments": {}, "runs": {}})
    fake.MlflowClient, fake.exceptions = client, SimpleNamespace(MlflowException=MlflowException)
    fake.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return client


def told(logger):
    logger.hparams({f"key{n}": n for n in range(150)} | {"long": "x" * 1000}, {"selection": "best"})
    logger.scalars({"loss/main": 0.5, "iou/bow (weapon)": 1.0}, 3)
    logger.image("episodes", PICTURE, 3)
    logger.histogram("relative_drift/layer3", np.linspace(-1, 1, 101), 3)
    logger.flush()


def test_mlflow_has_everything_and_a_resumed_run_is_the_same_run(tmp_path, mlflow, caplog):
    logger = make_logger("mlflow", tmp_path, "name", 0)
    told(logger)
    logger.close(False)
    (run,) = mlflow.runs.values()
    assert (run["name"], run["of"], run["status"], run["tags"]) == ("name", "e0", "FAILED", {"selection": "best"})
    assert (len(run["params"]), run["params"]["key7"], len(run["params"]["long"])) == (151, "7", 500)
    quantiles = [(f"relative_drift/layer3/{name}", pytest.approx(v), 3) for name, v in
                 (("p5", -0.9), ("p50", 0), ("p95", 0.9))]  # fmt: skip
    assert run["metrics"] == [("loss/main", 0.5, 3), ("iou/bow _weapon_", 1.0, 3), *quantiles]
    assert run["images"] == [("episodes", 3, (4, 6, 3))]
    again = make_logger("mlflow", tmp_path, "name", 3)
    assert run["status"] == "RUNNING"
    again.hparams({"key7": 8}, {"selection": "best"})  # MLflow refuses a parameter that changes
    again.scalars({"loss/main": 0.25}, 4)
    again.close(True)
    assert (run["params"]["key7"], run["metrics"][-1], run["status"]) == ("7", ("loss/main", 0.25, 4), "FINISHED")
    assert list(mlflow.runs) == ["r0"]
    make_logger("mlflow", tmp_path, "name", 0)  # from the start: another run
    mlflow.runs.clear()
    make_logger("mlflow", tmp_path, "name", 3)
    assert "run r1 is not there (RESOURCE_DOES_NOT_EXIST: r1); a new one begins" in caplog.text
    assert (tmp_path / "mlflow.id").read_text() == "r0\n"


def test_a_server_that_is_lost_ends_no_training(tmp_path, mlflow, caplog):
    logger = make_logger("mlflow", tmp_path, "name", 0)
    mlflow.broken = True
    told(logger)
    logger.close(True)
    assert caplog.text.count("logger=mlflow: no route; no more is sent, and log.csv has the numbers") == 1


def test_an_experiment_may_be_made_by_another_job(tmp_path, mlflow, monkeypatch):
    def by_another(self, name, run_name=None):
        self.experiments[name] = "theirs"
        raise MlflowException("RESOURCE_ALREADY_EXISTS")

    monkeypatch.setattr(mlflow, "create_experiment", by_another)
    make_logger("mlflow", tmp_path, "name", 0)
    assert mlflow.runs["r0"]["of"] == "theirs"
    monkeypatch.setattr(mlflow, "create_run", by_another)
    with pytest.raises(ConfigError, match=r"^logger=mlflow: RESOURCE_ALREADY_EXISTS; set MLFLOW_TRACKING_URI"):
        MlflowLogger(tmp_path, "name", 0)


# ---------------------------------------------------------------------------------------------------------------------
# Packages


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(toy_root, tmp_path, monkeypatch, name):
    said = rf"^logger={name}: the package {name} is not installed; pip install 'fss-svf\[{name}\]', or say logger="
    for module in (None, ModuleType(name)):  # not there; a folder of that name in the working folder
        monkeypatch.setitem(sys.modules, name, module)
        for run, config in ((train, train_config), (pretrain, pretrain_config)):
            with pytest.raises(ConfigError, match=said):
                run(config(toy_root, logger=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    require_package("tensorboard")
    require_package("none")


@pytest.mark.long
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_package_takes_the_calls(tmp_path, monkeypatch, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (0, 3):
        logger = make_logger(name, tmp_path, "name", step)
        told(logger)
        assert not getattr(logger, "_lost", False)
        logger.close(True)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def test_a_pretraining_logs_the_same(toy_root, tmp_path, monkeypatch, wandb):
    pretrain(pretrain_config(toy_root, logger="wandb"), tmp_path)
    names = {name for row in wandb.runs[0].rows for name in row}
    assert {"batch", "val/loss", "grad_norm/head", "grad_norm/backbone", "base_miou"} <= names
    assert all(0 < float(row["val/loss"]) < 10 for row in rows_of(tmp_path) if row["score"])


def test_a_batch_is_drawn_with_its_masks():
    e = episode(9, shot=2, size=33)
    as_bytes = [torch.full(x.shape, 100, dtype=torch.uint8) for x in (e.query_image, e.support_images)]
    e = replace(e, query_image=as_bytes[0], support_images=as_bytes[1])
    e.support_masks[:] = 0
    e.query_mask[:] = 255
    e.support_masks[:, 0] = 1
    drawn = draw_episode_batch(e)
    assert drawn.shape == (8 * 246 + 6, 4 * 246 + 6, 3)  # eight episodes of two supports, the query, and its mask
    assert drawn.dtype == np.uint8
    of_class, empty, plain, ignored = (drawn[120, 6 + 246 * n + 120].tolist() for n in range(4))
    assert of_class == (0.6 * 100 + 0.4 * PALETTE[1]).astype(int).tolist()
    assert (empty, plain) == ([80] * 3, [100] * 3)
    assert ignored == [162, 145, 60]
    ways = replace(
        e, support_images=e.support_images[:, None].repeat(1, 3, 1, 1, 1, 1), class_id=None,
        support_masks=e.support_masks[:, None].repeat(1, 3, 1, 1, 1),
    )  # fmt: skip
    drawn = draw_episode_batch(ways)  # at most five supports
    assert drawn.shape[1] == 7 * 246 + 6
    assert drawn[120, 6 + 246 * 4 + 120].tolist() == (0.6 * 100 + 0.4 * PALETTE[3]).astype(int).tolist()
    labels = torch.full((2, 33, 33), 7, dtype=torch.uint8)
    drawn = draw_label_batch(LabelBatch(torch.full((2, 3, 33, 33), 100, dtype=torch.uint8), labels))
    assert drawn.shape == (2 * 246 + 6, 2 * 246 + 6, 3)
    assert drawn[120, 6 + 246 + 120].tolist() == (0.6 * 100 + 0.4 * PALETTE[7]).astype(int).tolist()


@pytest.mark.parametrize(("tuning", "stages"), [("svf", ["layer2", "layer3", "layer4"]), ("us", None), ("v", []),
                                                ("frozen", []), ("lora", [])])  # fmt: skip
def test_drift_is_that_of_the_layers_that_train_s(tuning, stages):
    backbone, _ = tiny(TinyOptions(width=8))
    TUNINGS.build(shipped_tuning(tuning), backbone)
    found = drift_by_stage(backbone)
    assert list(found) == stages if stages is not None else "layer3" in found
    for name, parameter in backbone.named_parameters():
        if name.endswith(".S"):
            parameter.data *= 1.25
    for values in drift_by_stage(backbone).values():
        assert np.allclose(values, 0.25, atol=1e-5)


def test_drift_by_size_tells_large_from_small_singular_values():
    backbone, _ = tiny(TinyOptions(width=20))
    TUNINGS.build(shipped_tuning("svf"), backbone)
    assert drift_by_size(backbone) == {}  # nothing has moved
    moved = {name: layer for name, layer in svf.layers(backbone) if "S" in layer.form.train}
    assert len(moved) > 2
    for layer in list(moved.values())[::2]:  # the others stay, and are left out
        s, order = layer.S.data.view(-1), layer.S0.flatten().argsort(descending=True)
        assert len(s) % 10 == 0
        s[order[: len(s) // 2]] *= 1.5
        s[order[len(s) // 2 :]] *= 0.75
    found = drift_by_size(backbone)
    assert [found[f"mean/{tenth}"] for tenth in range(1, 11)] == pytest.approx([0.5] * 5 + [-0.25] * 5, abs=1e-5)
    assert [found[f"std/{tenth}"] for tenth in range(1, 11)] == pytest.approx([0] * 10, abs=1e-5)


def test_memory_is_the_peak_since_the_last_reading(monkeypatch):
    device, resets = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda of: 3_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    assert tracking.peak_memory(device)["memory/gpu_mb"] == 3
    assert resets == [device]
    assert list(tracking.peak_memory(torch.device("cpu"))) == ["memory/host_mb"]
    there = tracking._peak_resident()
    monkeypatch.setattr(tracking, "Path", lambda _: SimpleNamespace(read_text=lambda: "no such line"))
    assert 0.2 < tracking._peak_resident() / there < 5  # ru_maxrss
