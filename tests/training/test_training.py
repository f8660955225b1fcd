"""Training on the toy dataset: what moves, what is kept, what is refused."""

import copy
import json
import re
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.checkpoint import load_checkpoint, save_checkpoint
from fss_svf.config import (
    Augment,
    Optimizer,
    PretrainConfig,
    Protocol,
    Recipe,
    Schedule,
    TrainConfig,
    Validation,
    from_mapping,
)
from fss_svf.config.training import CheckpointContent
from fss_svf.errors import ConfigError, DataError, TrainingError, WeightsError
from fss_svf.evaluation.metric import class_iou, count_labels
from fss_svf.model import build_backbone, build_model, restore_model, trainable_values
from fss_svf.registry import METHODS, TUNINGS, Choice
from fss_svf.training.data_seen import check_same_data
from fss_svf.training.optim import describe, load_optimizer, make_optimizer, rate_factor, require_gradients, set_rates
from fss_svf.training.pretrain import pretrain
from fss_svf.training.tracking import DataWait
from fss_svf.training.train import train
from tests.cli.test_config import shipped_tuning
from tests.conftest import toy_options

PROTOCOL = Protocol(
    "svf", episodes=10, runs=1, seed=321, queries="in_order", resize="pad", label="original", never_drawn="error"
)


def options_of(registry, name, **values):
    return Choice(name, registry.entry(name).options(**values))


def train_config(root, tuning="svf", **changes):
    from fss_svf.registry import BACKBONES

    config = TrainConfig(
        name="test",
        fold=0,
        shot=1,
        seed=3,
        device="cpu",
        workers=0,
        cache_gb=0.0,
        log_every=1,
        resume=None,
        recipe=Recipe(
            name="test",
            size=65,
            test_size=None,
            batch_size=2,
            epochs=100,
            max_steps=4,
            optimizer=Optimizer("sgd", lr=0.01, backbone_lr=0.01, momentum=0.9, weight_decay=1e-4),
            schedule=Schedule("poly", 0.9, 0),
            augment=Augment((0.9, 1.1), 10.0, 0.5, 0.5, 0.85, 0.5),
        ),
        protocol=PROTOCOL,
        validate=Validation(every=2, episodes=4),
        dataset=Choice("toy", toy_options(root)),
        backbone=options_of(BACKBONES, "tiny", width=8),
        method=options_of(METHODS, "baseline", width=8, down_query_trains=True),
        tuning=shipped_tuning(tuning),
    )
    return replace(config, **changes)


def pretrain_config(root, **changes):
    t = train_config(root)
    config = PretrainConfig(
        name="test", fold=0, seed=3, device="cpu", workers=0, log_every=1, validate_every=2, resume=None,
 cache_gb=0.0,
        recipe=t.recipe, dataset=t.dataset, backbone=t.backbone,
    )  # fmt: skip
    return replace(config, **changes)


def test_every_key_of_svf_reaches_the_model_and_its_checkpoint(toy_root, tmp_path):
    keys = {
        "include": (r"^layer[34]\.",), "exclude": ("downsample",), "rank": {"layer3": 0.5, "": "energy:0.8"},
        "rank_multiple": 2, "train": ("S", "V"), "parametrisation": "log", "cache": tmp_path / "factors",
    }  # fmt: skip
    config = replace(train_config(toy_root), tuning=options_of(TUNINGS, "svf", **keys))
    train(config, tmp_path)
    assert list((tmp_path / "factors").iterdir())
    content = load_checkpoint(tmp_path, "train")
    assert from_mapping(TrainConfig, content["config"]) == config
    model = restore_model(config.method, config.backbone, config.tuning, content["model"], "test")
    found = dict(svf.layers(model.backbone))
    assert all(layer.form.train == ("S", "V") and not layer.full_rank for layer in found.values())
    assert all(line.drift_max > 0 for line in svf.report(model))


@pytest.mark.parametrize("content", ["full", "tuned"])
def test_a_run_whose_weights_chose_its_ranks_resumes(toy_root, tmp_path, content):
    """A full checkpoint resumes without the weights' file: ranks are its own, above and below those of random weights."""
    config = train_config(toy_root)
    model, _ = build_backbone(config.backbone)
    for i, p in enumerate(p for p in model.parameters() if p.dim() == 4):
        p.data *= torch.linspace(0, 1, len(p))[:, None, None, None] ** (4 * (i % 2)) + 1e-3  # every other one decays
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    weights = replace(config.backbone.options, weights=str(tmp_path / "weights.pth"))
    tuning = options_of(TUNINGS, "svf", include=(r"^layer",), exclude=(), rank="energy:0.7", rank_multiple=1)
    config = replace(config, backbone=replace(config.backbone, options=weights), tuning=tuning)
    config = replace(config, checkpoint=CheckpointContent(content))
    train(config, tmp_path / "run")
    if content == "full":
        (tmp_path / "weights.pth").unlink()
    longer = replace(config.recipe, max_steps=config.recipe.max_steps + 2)
    train(replace(config, recipe=longer, resume=tmp_path / "run"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run", "train")["step"] == longer.max_steps


def test_a_config_from_before_the_newer_keys_of_svf_loads():
    old = {"include": ["^layer4"], "exclude": [], "rank": None, "rank_multiple": 1}
    options = from_mapping(TUNINGS.entry("svf").options, old)
    assert (options.train, options.parametrisation, options.cache) == (("S",), "direct", None)


def changed_by_training(config, out):
    """Train `config` in `out`: the names of what changed, which are exactly those that the restored model trains."""
    torch.manual_seed(config.seed)
    before = build_model(config.method, config.backbone, config.tuning)[0].state_dict()
    train(config, out)
    after = load_checkpoint(out, "train")["model"]
    model = restore_model(config.method, config.backbone, config.tuning, after, "test")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    return changed


def steps(model, batch, optimizer, count):
    """The losses of `count` steps on one batch, in which every trainable tensor received a gradient."""
    losses = []
    for _ in range(count):
        loss = sum(model.losses(model(batch), batch).values())
        optimizer.zero_grad()
        loss.backward()
        require_gradients(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tuning", ["frozen", "svf", "full", "adapter"])  # all of them: test_tunings.py
def test_exactly_the_announced_tensors_change(toy_root, tmp_path, tuning):
    config = train_config(toy_root, tuning)
    train(replace(config, recipe=replace(config.recipe, max_steps=1)), tmp_path / "one")
    train(config, tmp_path / "four")
    before = load_checkpoint(tmp_path / "one", "train")["model"]
    after = load_checkpoint(tmp_path / "four", "train")["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    model = restore_model(config.method, config.backbone, config.tuning, after, "test")
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    in_backbone = {name.split(".")[-1] for name in changed if name.startswith("backbone.")}
    assert in_backbone == {"frozen": set(), "svf": {"S"}}.get(tuning, {"weight", "bias"})


@pytest.mark.parametrize(("workers", "weights"), [(0, "full"), (2, "full"), (0, "tuned")])
def test_resumed_equals_never_killed_bit_for_bit(toy_root, tmp_path, monkeypatch, workers, weights):
    config = train_config(toy_root, workers=workers)
    if weights == "tuned":  # checkpoints hold S and the head; the rest is in a file
        net, _ = build_backbone(config.backbone)
        torch.save(net.state_dict(), tmp_path / "tiny.pth")
        options = replace(config.backbone.options, weights=str(tmp_path / "tiny.pth"))
        config = replace(config, backbone=Choice("tiny", options))
    train(config, tmp_path / "whole")

    # Killed in step 4, after the checkpoint of step 2.
    def killed(optimizer, schedule, step, total):
        if step == 3:
            raise KeyboardInterrupt
        set_rates(optimizer, schedule, step, total)

    with monkeypatch.context() as m:
        m.setattr("fss_svf.training.loop.set_rates", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    assert load_checkpoint(tmp_path / "killed", "train")["step"] == 2
    train(replace(config, resume=tmp_path / "killed"), tmp_path / "killed")

    whole, resumed = (load_checkpoint(tmp_path / run, "train") for run in ("whole", "killed"))
    assert resumed["step"] == whole["step"] == 4
    assert resumed["best"] == whole["best"]
    assert whole["format"] == resumed["format"] == (2 if weights == "tuned" else 1)
    assert whole["model"].keys() == resumed["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    assert len(json.loads((tmp_path / "killed" / "provenance.json").read_text())["starts"]) == 2


@pytest.mark.parametrize(
    ("optimizer", "options", "said"),
    [
        ("adamw", {}, True),
        ("sgd", {}, False),
        ("adamw", {"parametrisation": "scale"}, False),
        ("adamw", {"train": ("U",)}, False),
    ],
)
def test_adamw_on_singular_values_themselves_is_said_to_hardly_move_the_large_ones(
    toy_root, tmp_path, caplog, optimizer, options, said
):
    config = train_config(toy_root)
    recipe = replace(config.recipe, optimizer=replace(config.recipe.optimizer, name=optimizer), max_steps=1)
    tuning = replace(config.tuning, options=replace(config.tuning.options, **options))
    train(replace(config, recipe=recipe, tuning=tuning), tmp_path)
    assert ("large singular values hardly move" in caplog.text) == said


def test_a_run_folder_says_how_it_came_about(toy_root, tmp_path):
    train(train_config(toy_root), tmp_path)
    assert "rank_multiple: 1" in (tmp_path / "config.yaml").read_text()
    start = json.loads((tmp_path / "provenance.json").read_text())["starts"][0]
    assert start["packages"]["torch"] == torch.__version__.split("+")[0] or start["packages"]["torch"]
    assert start["machine"]["threads"] == torch.get_num_threads()
    # A run on the CPU begins no CUDA to name its GPUs.
    assert len(start["machine"]["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    assert start["machine"]["processor"]
    assert list((tmp_path / "tensorboard").iterdir())
    trained_on = load_checkpoint(tmp_path, "train")["trained_on"]
    assert trained_on["fold"] == 0
    assert len(trained_on["classes"]) == 15
    assert not list(tmp_path.rglob("*.partial"))


def test_a_base_learner_hands_its_backbone_on_but_not_to_another_fold(toy_root, tmp_path):
    pretrain(pretrain_config(toy_root), tmp_path / "base")
    weights = str(tmp_path / "base" / "checkpoints" / "last.pt")
    config = train_config(toy_root, "frozen")
    backbone = Choice("tiny", replace(config.backbone.options, weights=weights))
    train(replace(config, backbone=backbone), tmp_path / "meta")
    base = load_checkpoint(tmp_path / "base", "pretrain")["model"]
    content = load_checkpoint(tmp_path / "meta", "train")
    assert not any(name.startswith("backbone.") for name in content["model"])  # nothing of it trains
    choices = config.method, backbone, config.tuning
    meta = restore_model(*choices, content["model"], "meta", content["base"]).state_dict()
    for name, value in base.items():
        if name.startswith("backbone."):
            assert torch.equal(meta[name], value), name
    with pytest.raises(WeightsError, match=r"trained on fold 0 of toy, so it has seen .*novel here"):
        train(replace(config, backbone=backbone, fold=1), tmp_path / "leak")


def test_pretraining_resumes(toy_root, tmp_path):
    config = pretrain_config(toy_root)
    constant = replace(config.recipe, schedule=Schedule("constant", 0.9, 0))
    pretrain(replace(config, recipe=constant), tmp_path / "whole")
    pretrain(replace(config, recipe=replace(constant, max_steps=2)), tmp_path / "half")
    last = tmp_path / "half" / "checkpoints" / "last.pt"
    pretrain(replace(config, recipe=constant, resume=last), tmp_path / "half")
    whole, resumed = (load_checkpoint(tmp_path / run, "pretrain") for run in ("whole", "half"))
    assert resumed["step"] == whole["step"] == 4
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())


def test_a_run_is_not_written_over_nor_continued_on_other_data(toy_root, tmp_path):
    config = train_config(toy_root, "frozen")
    train(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already; go on with resume="):
        train(config, tmp_path / "run")
    resumed = load_checkpoint(tmp_path / "run", "train")
    check_same_data(resumed, resumed["trained_on"]["index"])
    with pytest.raises(DataError, match="resume: the run began on an index"):
        check_same_data(resumed, "0123456789abcdef")


def test_a_tensor_without_gradient_stops_the_run_with_its_name():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    model["used"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(TrainingError, match=r"2 trainable tensors received no gradient: idle.weight, idle.bias"):
        require_gradients(model)


def test_svf_under_no_grad_is_caught(toy_root, tmp_path, monkeypatch):
    """The trap of stock PFENet and BAM: the backbone runs under no_grad, S would never train."""
    from fss_svf.backbones.backbone import Backbone

    monkeypatch.setattr(Backbone, "forward", torch.no_grad()(Backbone.forward))
    with pytest.raises(TrainingError, match=r"received no gradient: backbone\.layer2\.0\.conv1\.S"):
        train(train_config(toy_root), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_says_where(toy_root, tmp_path):
    config = train_config(toy_root)
    wild = replace(config.recipe, optimizer=replace(config.recipe.optimizer, lr=1e30), max_steps=4)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step \d .*items \d+\.\.\d+.*not_finite\.json"):
        train(replace(config, recipe=wild, validate=Validation(100, 4)), tmp_path)


def test_the_episode_whose_loss_is_not_finite_is_saved(toy_root, tmp_path, monkeypatch):
    """Of a batch of good episodes and a bad one, the bad one by name, and the weights that it met."""
    from fss_svf.methods.baseline import Baseline

    losses = Baseline.losses

    def bad(self, prediction, episode):
        terms = losses(self, prediction, episode)
        return {"main": terms["main"] * (float("nan") if 5 in episode.number else 1)}

    monkeypatch.setattr(Baseline, "losses", bad)
    with pytest.raises(TrainingError, match=r"not finite at step 2 \(main nan\), items 4\.\.5"):
        train(train_config(toy_root), tmp_path)
    found = json.loads((tmp_path / "not_finite.json").read_text())
    good, broken = found["items"]
    assert (found["step"], good["item"], broken["item"]) == (2, 4, 5)
    assert float(good["loss"]) > 0
    assert broken["loss"] == "nan"
    assert broken["query"].startswith("toy_")
    assert len(broken["supports"]) == len(broken["classes"]) == 1
    assert load_checkpoint(tmp_path / "checkpoints" / "not_finite.pt", "train")["step"] == 2
    monkeypatch.setattr(Baseline, "losses", losses)
    train(replace(train_config(toy_root), resume=tmp_path / "checkpoints" / "not_finite.pt"), tmp_path)


def test_best_and_last_are_one_file_where_they_have_the_same_weights(toy_root, tmp_path, monkeypatch):
    from fss_svf.training.validation import Validation

    monkeypatch.setattr(Validation, "__call__", lambda self, step, writer: {"score": {2: 0.5, 4: 0.4}[step]})
    config, (best, last) = (
        train_config(toy_root),
        (tmp_path / "checkpoints" / f"{name}.pt" for name in ("best", "last")),
    )
    train(replace(config, recipe=replace(config.recipe, max_steps=2)), tmp_path)
    assert best.samefile(last)
    assert load_checkpoint(best, "train")["selection"] == "best mIoU on the novel classes"
    assert load_checkpoint(last, "train")["selection"] == "last step"
    train(replace(config, resume=last), tmp_path)
    steps = [(load_checkpoint(path, "train")["step"], load_checkpoint(path, "train")["best"]) for path in (best, last)]
    assert steps == [(2, 0.5), (4, 0.5)]
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]


def test_a_bad_step_is_found_later_where_the_device_looks(toy_root, tmp_path, monkeypatch):
    """As on a GPU, read at log lines alone: the step, its items and the weights are those that a CPU stops at."""
    from fss_svf.methods.baseline import Baseline

    losses, made = Baseline.losses, make_optimizer

    def fused(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
            return made(*arguments)

    def bad(self, prediction, episode):
        terms = losses(self, prediction, episode)
        return {"main": terms["main"] * (float("nan") if 5 in episode.number else 1)}

    monkeypatch.setattr("fss_svf.training.loop.make_optimizer", fused)
    config = replace(train_config(toy_root), validate=Validation(100, 4), log_every=4)
    config = replace(config, recipe=replace(config.recipe, max_steps=6, schedule=Schedule("constant", 0.9, 0)))
    train(replace(config, recipe=replace(config.recipe, max_steps=2), log_every=2), tmp_path / "two")
    monkeypatch.setattr(Baseline, "losses", bad)
    with pytest.raises(TrainingError, match=r"not finite at step 2 \(main nan\), items 4\.\.5"):
        train(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert (found["step"], [item["loss"] == "nan" for item in found["items"]]) == (2, [False, True])
    two = load_checkpoint(tmp_path / "two", "train")
    met = load_checkpoint(tmp_path / "run" / "checkpoints" / "not_finite.pt", "train")
    assert met["step"] == 2
    assert all(torch.equal(value, two["model"][name]) for name, value in met["model"].items())


def test_overfitting_repeats_the_first_items_unaugmented(toy_root, tmp_path, monkeypatch):
    seen = []
    from fss_svf.methods.baseline import Baseline

    forward = Baseline.forward
    monkeypatch.setattr(Baseline, "forward", lambda self, e: (seen.append(e), forward(self, e))[1])
    train(replace(train_config(toy_root), overfit=2), tmp_path)
    assert len(seen) == 4
    assert all(torch.equal(e.number, torch.tensor([0, 1])) for e in seen)
    assert all(torch.equal(e.query_image, seen[0].query_image) for e in seen)
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt", "train")["selection"] == (
        "best mIoU on the first 2 training episodes"
    )
    pretrain(replace(pretrain_config(toy_root), overfit=2), tmp_path / "base")


def test_a_run_folder_that_cannot_be_written_is_told_in_a_line(toy_root, tmp_path):
    (tmp_path / "run" / "config.yaml" / "folder").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"Is a directory; training ended$"):
        train(train_config(toy_root), tmp_path / "run")


def test_parts_of_a_pretraining_have_two_images(toy_root):
    """BatchNorm behind the average over the whole image has no statistics of one."""
    config = pretrain_config(toy_root)
    config = replace(config, recipe=replace(config.recipe, batch_size=6), accumulate=3)
    with pytest.raises(ConfigError, match="accumulate: expected at most 3, so that a part has 2 images, got 6"):
        replace(config, accumulate=6)


def test_a_profile_is_written(toy_root, tmp_path):
    config = train_config(toy_root)
    train(replace(config, profile=2, recipe=replace(config.recipe, max_steps=6)), tmp_path)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert sum(e.get("name", "").startswith("ProfilerStep#") for e in trace["traceEvents"]) == 2
    assert "aten::" in (tmp_path / "profile" / "operations.txt").read_text()


def test_tensorboard_has_one_run_with_everything(toy_root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(train_config(toy_root), tmp_path)
    assert len(list((tmp_path / "tensorboard").rglob("events*"))) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/main", "rate/head", "rate/backbone", "time/data_wait_share", "time/seconds_a_step", "miou", "fb_iou",
            "score", "drift/layer3.0.conv1", "grad_norm/head", "grad_norm/backbone", "grad_norm/total", "val/loss",
            "memory/host_mb", "spectrum_mean/1", "spectrum_std/10"} <= tags  # fmt: skip
    assert [e.step for e in events.Images("batch")] == [1]
    assert [e.step for e in events.Histograms("relative_drift/layer3")] == [4]  # the reader keeps the last one
    assert any(tag.startswith("iou/") for tag in tags)
    assert [e.step for e in events.Images("episodes")] == [2, 4]
    drifts = [e.value for e in events.Scalars("drift/layer3.0.conv1")]
    assert 0 < drifts[0] < drifts[1]
    assert "_hparams_/experiment" in events.summary_metadata


def test_waiting_for_data_is_measured_and_told_once(caplog):
    def slow():
        for n in range(60):
            time.sleep(0.004)
            yield n

    wait = DataWait(slow())
    shares = []
    with caplog.at_level("WARNING"):
        for n in wait:
            time.sleep(0.001)
            if n == 50:
                wait.pause(0.0)
            if n % 25 == 24:
                shares.append(wait.read())
    assert [0.5 < found["time/data_wait_share"] < 1 for found in shares] == [True, True]
    assert all(0.005 <= found["time/seconds_a_step"] < 0.1 for found in shares)
    assert caplog.text.count("waiting for data takes") == 1
    assert list(DataWait(iter([]))) == []
    quick = DataWait(iter(range(3)))
    list(quick)
    assert quick.read()["time/data_wait_share"] < 1


def test_rates_of_the_config_are_the_rates_of_the_optimizer():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(model, model["backbone"], Optimizer("sgd", 0.015, 0.0015, 0.9, 1e-4))
    rates = {}
    for step in (0, 50, 99):
        set_rates(optimizer, Schedule("constant", 0.9, 0), step, 100)
        rates[step] = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert set(map(str, rates.values())) == {str({"head": 0.015, "backbone": 0.0015})}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {1e-4}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizers_state_goes_on_fused_or_not(name):
    """As between a GPU, where it is fused, and a CPU."""
    options = Optimizer(name, 0.015, 0.0015, 0.9, 1e-4)

    def made(fused):
        torch.manual_seed(0)
        model = nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Linear(3, 4)})
        optimizer = make_optimizer(model, model["backbone"], options)
        assert {group["fused"] for group in optimizer.param_groups} == {None}  # nothing is on a GPU
        if fused:
            optimizer = type(optimizer)(optimizer.param_groups, fused=True)
            for group in optimizer.param_groups:
                group["fused"] = True
        return model, optimizer

    def go_on(model, optimizer, steps):
        for step in steps:
            for p in model.parameters():
                p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()

    for fused in (False, True):
        model, optimizer = made(fused)
        go_on(model, optimizer, range(2))
        state = {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
        go_on(model, optimizer, range(2, 4))
        for theirs in (False, True):
            other, its = made(theirs)
            other.load_state_dict(state["model"])
            load_optimizer(its, copy.deepcopy(state["optimizer"]))  # whose tensors it takes as they are
            assert {group["fused"] for group in its.param_groups} == {True if theirs else None}
            go_on(other, its, range(2, 4))
            for a, b in zip(other.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(
                    a, b, rtol=0 if theirs == fused else 1e-6, atol=0 if theirs == fused else 1e-7
                )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_backbone_may_have_a_weight_decay_of_its_own(name):
    model = nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Linear(30, 40)})
    optimizer = make_optimizer(model, model["backbone"], Optimizer(name, 0.015, 0.0015, 0.9, 1e-4, 0.0))
    said = "head: lr 0.015, weight decay 0.0001, 1,240 values; backbone: lr 0.0015, weight decay 0, 9 values"
    assert describe(optimizer) == said
    start = [p.detach().clone() for p in model["backbone"].parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    head = model["head"].weight.norm()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(start, model["backbone"].parameters()))
    assert model["head"].weight.norm() < head


def test_nesterovs_momentum_is_sgds():
    layer = torch.nn.Linear(1, 1)
    for nesterov in (False, True):
        optimizer = make_optimizer(layer, torch.nn.Identity(), Optimizer("sgd", 0.1, 0.1, 0.9, 0, nesterov=nesterov))
        assert optimizer.defaults["nesterov"] == nesterov
    with pytest.raises(ConfigError, match="nesterov: expected false but with name=sgd"):
        Optimizer("adamw", 0.1, 0.1, 0.9, 0, nesterov=True)


def test_the_log_of_a_training_says_rates_and_weight_decay(toy_root, tmp_path, caplog):
    config = train_config(toy_root)
    optimizer = replace(config.recipe.optimizer, backbone_lr=0.002, backbone_weight_decay=0.0)
    with caplog.at_level("INFO"):
        train(replace(config, recipe=replace(config.recipe, max_steps=1, optimizer=optimizer)), tmp_path)
    assert re.search(
        r"sgd: head: lr 0.01, weight decay 0.0001, [\d,]+ values; backbone: lr 0.002, weight decay 0, 280 values",
        caplog.text,
    )


def test_schedules():
    poly, cosine = Schedule("poly", 0.9, 0), Schedule("cosine", 0.9, 0)
    assert [rate_factor(s, 0, 100) for s in (poly, cosine)] == [1, 1]
    assert rate_factor(poly, 50, 100) == pytest.approx(0.5**0.9)
    assert rate_factor(cosine, 50, 100) == pytest.approx(0.5)
    assert [rate_factor(Schedule("constant", 0.9, 4), s, 100) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    steps = Schedule("steps", 0.9, 0, milestones=(3, 5), factor=0.1)
    assert [rate_factor(steps, s, 100) for s in (0, 2, 3, 4, 5, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_nothing_to_train_is_an_error():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(model, model, Optimizer("sgd", 1, 1, 0, 0))


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_checkpoint(tmp_path, "train")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "other.pt", "train")
    save_checkpoint(tmp_path / "base.pt", {"verb": "pretrain", "config": {}, "model": {}})
    with pytest.raises(WeightsError, match="written by 'fss-svf pretrain', needed is one of 'fss-svf train'"):
        load_checkpoint(tmp_path / "base.pt", "train")
    (tmp_path / "half.pt").write_bytes((tmp_path / "base.pt").read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"half\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "half.pt", "train")


def test_restoring_needs_no_svd_and_gives_the_same_model(toy_root, tmp_path, monkeypatch):
    config = train_config(toy_root)
    train(config, tmp_path)
    state = load_checkpoint(tmp_path, "train")["model"]
    model = restore_model(config.method, config.backbone, config.tuning, state, "test")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(p.is_meta for p in model.parameters())
    assert trainable_values(model.backbone) == sum(layer.S.numel() for _, layer in svf.layers(model.backbone))
    del state["classifier.0.weight"]
    with pytest.raises(WeightsError, match=r"run: does not fit the model: classifier\.0\.weight is missing"):
        restore_model(config.method, config.backbone, config.tuning, state, "run")


def test_label_counts_by_hand():
    predicted, labels = torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 2, 255]]])
    counts = count_labels(predicted, labels, 3)[0]
    assert counts.tolist() == [[1, 1], [1, 2], [0, 1]]
    assert class_iou(counts.numpy()).tolist() == [1.0, 0.5, 0.0]
