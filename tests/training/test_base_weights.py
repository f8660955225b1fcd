"""Checkpoints that hold what trained: what they leave out, how it is found again, and what is refused."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fss_svf import svf
from fss_svf.api import load_model
from fss_svf.backbones.resnet import TinyOptions
from fss_svf.base_weights import base_weights, completed
from fss_svf.checkpoint import load_checkpoint, save_checkpoint
from fss_svf.config import Schedule
from fss_svf.config.training import CheckpointContent
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.methods.baseline import BaselineOptions
from fss_svf.model import build_backbone, build_model, restore_model, start_on_base
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.registry import Choice
from fss_svf.training.train import train
from tests.cli.test_config import TUNINGS_OF_CNNS, shipped_tuning
from tests.training.test_training import train_config

NAMES = TUNINGS_OF_CNNS
METHOD = Choice("baseline", BaselineOptions(width=8))
# Tunings whose U or V trains: what is computed from the weights is then kept, but for S0 nothing is saved.
WITH_VECTORS = {"u", "v", "us", "sv", "usv"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of pretrained weights."""
    torch.manual_seed(0)
    net, _ = build_backbone(Choice("tiny", TinyOptions(width=8)))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({f"backbone.{name}": value for name, value in net.state_dict().items()}, path)
    return path


def tiny(path):
    return Choice("tiny", TinyOptions(weights=None if path is None else str(path), width=8))


def trained(tuning, path, moved=True):
    """A model on the weights of `path`, what trains moved; and what its checkpoints leave out."""
    torch.manual_seed(1)
    model, loaded = build_model(METHOD, tiny(path), shipped_tuning(tuning))
    base = base_weights(model, tiny(path), loaded)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and moved:
                p.add_(0.05 * torch.randn(p.shape))
    return model, base


def checkpoint(tmp_path, model, base):
    """The content of a checkpoint that went over the disk."""
    content = {"verb": "train", "config": {}, **base.split(model)}
    save_checkpoint(tmp_path / "last.pt", content)
    return load_checkpoint(tmp_path / "last.pt", "train")


def restored(content, path, tuning, weights=None):
    return restore_model(
        METHOD, tiny(path), shipped_tuning(tuning), content["model"], "last.pt", content["base"], weights
    )


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("tuning", NAMES)
def test_a_checkpoint_of_what_trained_restores_every_bit(tmp_path, weights, tuning):
    model, base = trained(tuning, weights)
    content = checkpoint(tmp_path, model, base)
    assert content["format"] == 2
    held, state = set(content["model"]), model.state_dict()
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in state if not name.startswith("backbone.")}
    assert moved | head <= held
    if tuning not in {*WITH_VECTORS, "svf", "svf_official"}:
        assert held == moved | head  # BatchNorm's statistics stay, and so are not held
    found = restored(content, weights, tuning)
    assert same(found.state_dict(), state)
    flags = [{name: p.requires_grad for name, p in m.named_parameters()} for m in (found, model)]
    assert flags[0] == flags[1]


def test_singular_vectors_are_left_out_where_they_are_determined(tmp_path, weights):
    model, base = trained("svf", weights)
    held = checkpoint(tmp_path, model, base)["model"]
    in_backbone = {name for name in held if name.startswith("backbone.")}
    determined = {f"backbone.{name}.S" for name, layer in svf.layers(model.backbone) if layer.determined}
    assert determined == in_backbone
    # Two equal filters have a singular value of 0, whose vectors are any.
    state = torch.load(weights, weights_only=True)
    state["backbone.layer3.0.conv1.weight"][1] = state["backbone.layer3.0.conv1.weight"][0]
    torch.save(state, tmp_path / "dead.pth")
    model, base = trained("svf", tmp_path / "dead.pth")
    content = checkpoint(tmp_path, model, base)
    kept = {name.rpartition(".")[2] for name in content["model"] if name.startswith("backbone.layer3.0.conv1.")}
    assert kept == {"S", "S0", "U", "Vh"}
    assert same(restored(content, tmp_path / "dead.pth", "svf").state_dict(), model.state_dict())


def test_other_singular_vectors_are_the_same_weight_or_refused(tmp_path, weights, monkeypatch, caplog):
    model, base = trained("svf", weights)
    content = checkpoint(tmp_path, model, base)

    def lapack(matrices, turn=False):
        u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
        u, s, vh = -u.float(), s.float(), -vh.float()
        if turn:  # the first two vectors by an angle
            c, d = torch.tensor(0.1).cos(), torch.tensor(0.1).sin()
            u[..., :2] = u[..., :2] @ torch.tensor([[c, -d], [d, c]])
        return u, s, vh

    monkeypatch.setattr(sys.modules["fss_svf.svf.decompose"], "svd", lapack)
    monkeypatch.setenv("FSS_SVF_CACHE", "off")
    with caplog.at_level(logging.INFO):
        found = restored(content, weights, "svf")
    assert "computed anew here" in caplog.text
    pairs = zip(svf.layers(found), svf.layers(model))
    for (name, ours), (_, theirs) in pairs:
        assert not torch.equal(ours.U, theirs.U), name
        error = (ours.effective_weight() - theirs.effective_weight()).norm() / theirs.weight.norm()
        assert float(error.detach()) < 1e-6, name
    monkeypatch.setattr(sys.modules["fss_svf.svf.decompose"], "svd", lambda matrices: lapack(matrices, turn=True))
    with pytest.raises(WeightsError, match=r"singular vectors of backbone\.layer2.*checkpoint\.weights=full"):
        restored(content, weights, "svf")


def test_statistics_that_moved_are_held(tmp_path, weights):
    model, base = trained("frozen", weights)
    model.backbone.layer3[0].bn1.running_mean.add_(1)
    content = checkpoint(tmp_path, model, base)
    assert [n for n in content["model"] if n.startswith("backbone.")] == ["backbone.layer3.0.bn1.running_mean"]
    assert same(restored(content, weights, "frozen").state_dict(), model.state_dict())


def test_random_weights_have_no_name(caplog):
    with caplog.at_level(logging.INFO):
        _, base = trained("svf", None)
    assert base is None
    assert "checkpoints hold all weights" in caplog.text


def test_weights_that_moved_are_found_by_path_and_hash(tmp_path, weights, monkeypatch):
    before = tmp_path / "before" / "weights.pth"
    before.parent.mkdir()
    before.write_bytes(weights.read_bytes())
    model, base = trained("svf", before)
    content = checkpoint(tmp_path, model, base)
    after = before.rename(tmp_path / "after.pth")
    gone = rf"last\.pt: .*{before}.*no such file; give backbone\.weights=PATH .* hash {base.hash}.*checkpoint\.weights=full"
    with pytest.raises(WeightsError, match=gone):
        restored(content, before, "svf")
    assert same(restored(content, before, "svf", str(after)).state_dict(), model.state_dict())
    # The same weights under other names, and others at the old place.
    state = {name.removeprefix("backbone."): v for name, v in torch.load(after, weights_only=True).items()}
    torch.save({"state_dict": state}, before)
    assert same(restored(content, before, "svf").state_dict(), model.state_dict())
    state["layer1.0.conv1.weight"] += 1
    torch.save(state, before)
    with pytest.raises(WeightsError, match=rf"hash {base.hash} .*{before} has [0-9a-f]{{16}}; give backbone\.weights="):
        restored(content, before, "svf")


def test_a_folder_that_moved_as_a_whole_is_found_by_the_path_as_given(tmp_path, weights, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "w.pth").write_bytes(weights.read_bytes())
    monkeypatch.chdir(tmp_path / "here")
    model, base = trained("svf", Path("w.pth"))
    content = checkpoint(tmp_path, model, base)
    Path("w.pth").rename(tmp_path / "there" / "w.pth")
    monkeypatch.chdir(tmp_path / "there")
    assert same(restored(content, Path("w.pth"), "svf").state_dict(), model.state_dict())


def test_a_whole_checkpoint_takes_no_other_weights(weights):
    model, _ = trained("frozen", weights)
    with pytest.raises(ConfigError, match="holds all its weights; leave it out"):
        restore_model(METHOD, tiny(None), shipped_tuning("frozen"), model.state_dict(), "x", None, str(weights))


def test_a_checkpoint_of_another_code_is_refused(tmp_path, weights):
    model, base = trained("frozen", weights)
    content = checkpoint(tmp_path, model, base)
    del content["model"]["merge.0.weight"]
    with pytest.raises(WeightsError, match=r"merge\.0\.weight is missing"):
        restored(content, weights, "frozen")
    content = checkpoint(tmp_path, model, base)
    content["base"]["left_out"] += 1
    with pytest.raises(WeightsError, match="written by another version"):
        restored(content, weights, "frozen")


def test_it_is_no_start_of_another_training(tmp_path, weights):
    model, base = trained("full", weights)
    checkpoint(tmp_path, model, base)
    with pytest.raises(WeightsError, match=r"no whole backbone; .*checkpoint\.weights=full"):
        build_backbone(tiny(tmp_path / "last.pt"))


def test_going_on_leaves_out_the_same(tmp_path, weights):
    model, base = trained("svf", weights)
    content = checkpoint(tmp_path, model, base)
    again, loaded, found = start_on_base(
        METHOD, tiny(weights), shipped_tuning("svf"), content["model"], content["base"], "resume"
    )
    base = base_weights(again, found, loaded)
    again.load_state_dict(completed(again, content["model"], content["base"], "resume"))
    entries = base.split(again)
    assert same(entries["model"], content["model"])
    assert entries["base"] == content["base"]


def test_every_verb_finds_the_weights_or_takes_them_from_the_command_line(
    toy_root, tmp_path, weights, monkeypatch, caplog
):
    config = train_config(toy_root, "svf")
    here = tmp_path / "weights.pth"
    here.write_bytes(weights.read_bytes())
    backbone = Choice("tiny", replace(config.backbone.options, weights=str(here)))
    constant = replace(config.recipe, schedule=Schedule("constant", 0.9, 0))
    config = replace(config, backbone=backbone, recipe=replace(constant, max_steps=2))
    run = tmp_path / "run"
    train(config, run)
    assert load_checkpoint(run, "train")["format"] == 2
    full = replace(config, checkpoint=CheckpointContent("full"))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(full, tmp_path / "full")
    assert "checkpoints hold what trains" not in caplog.text
    whole = load_checkpoint(tmp_path / "full", "train")
    assert whole["format"] == 1
    expected = restore_model(config.method, backbone, config.tuning, whole["model"], "full").state_dict()
    assert same(load_model(run).state_dict(), expected)
    assert same(Segmenter.load(run, "cpu").model.state_dict(), expected)

    moved = here.rename(tmp_path / "moved.pth")
    for load in (load_model, Segmenter.load):
        with pytest.raises(WeightsError, match=r"no such file; give backbone\.weights=PATH"):
            load(run)
    assert same(load_model(run, moved).state_dict(), expected)
    assert same(Segmenter.load(run, "cpu", weights=str(moved)).model.state_dict(), expected)
    longer = replace(config, resume=run, recipe=replace(constant, max_steps=4))
    with pytest.raises(WeightsError, match="no such file"):
        train(longer, run)
    train(replace(longer, backbone=Choice("tiny", replace(backbone.options, weights=str(moved)))), run)
    content = load_checkpoint(run, "train")
    assert (content["step"], content["base"]["file"]) == (4, str(moved))
    load_model(run)  # which now knows the new place


def test_on_the_command_line(fss, toy_root, tmp_path, weights):
    """evaluate and resume name the missing file and take backbone.weights=."""
    here, moved = tmp_path / "weights.pth", tmp_path / "moved.pth"
    here.write_bytes(weights.read_bytes())
    config = train_config(toy_root, "svf")
    options = replace(config.backbone.options, weights=str(here))
    train(
        replace(config, backbone=Choice("tiny", options), recipe=replace(config.recipe, max_steps=2)), tmp_path / "run"
    )
    here.rename(moved)
    few = ("protocol.episodes=2", "protocol.never_drawn=leave_out", "protocol.runs=1", "pictures=0", "workers=0")
    for arguments in (
        ("evaluate", f"checkpoint={tmp_path}/run", *few, f"hydra.run.dir={tmp_path}/result"),
        ("train", f"resume={tmp_path}/run", "workers=0"),
    ):
        status, _, err = fss(*arguments)
        assert status == 1
        assert f"the other weights are those of {here}, and there is no such file; give backbone.weights=PATH" in err
        status, _, err = fss(*arguments, f"backbone.weights={moved}")
        assert status == 0, err
