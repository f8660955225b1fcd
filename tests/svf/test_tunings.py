"""What every tuning promises: its start, what trains, its checkpoint, BAM's base branch; and the table of their sizes."""

import copy
import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.backbones.resnet import TinyOptions
from fss_svf.backbones.timm_backbone import NAMES as TIMM
from fss_svf.config import Optimizer
from fss_svf.errors import ConfigError
from fss_svf.methods.bam import BAMOptions
from fss_svf.model import build_backbone, build_model, restore_model, trainable_values
from fss_svf.registry import BACKBONES, TUNINGS, Choice
from fss_svf.training.optim import make_optimizer, require_gradients
from fss_svf.tuning.lora import LoRAConv2d, become_lora
from tests.cli.test_config import TUNINGS_OF_CNNS, shipped_tuning
from tests.methods.test_bam import training_episode
from tests.training.test_training import steps

pytestmark = pytest.mark.numeric

NAMES = TUNINGS_OF_CNNS
DOCS = Path(__file__).parents[2] / "docs" / "tunings.md"
# The parameters of a tiny backbone that train, as a regular expression.
ANNOUNCED = {
    "frozen": r"(?!)",
    "full": r".*",
    "layers": r"layer[234]\..*",
    "conv3x3": r"layer[234]\.0\.conv[12]\.weight",
    "batchnorm": r"layer[234]\.0\.(bn[12]|downsample\.1)\.(weight|bias)",
    "bias": r"layer[234]\.0\.(bn[12]|downsample\.1)\.bias",
    "adapter": r"layer[234]\.adapter0\.(down|up)\.(weight|bias)",
    "lora": r"layer[234]\.0\.(conv[12]|downsample\.0)\.lora_[ab]",
    "svf": r"layer[234]\..*\.S",
    "svf_official": r"layer[234]\..*\.S",
    "u": r"layer[234]\..*\.U",
    "v": r"layer[234]\..*\.Vh",
    "us": r"layer[234]\..*\.(U|S)",
    "sv": r"layer[234]\..*\.(S|Vh)",
    "usv": r"layer[234]\..*\.(U|S|Vh)",
}
# Those whose start is the frozen network's within rounding, not to the bit.
ROUNDED = {"u", "v", "us", "sv", "usv"}
OF_STAGES = [n for n in NAMES if hasattr(shipped_tuning(n).options, "stages")]
TINY = Choice("tiny", TinyOptions(width=8))
METHOD = Choice("bam", BAMOptions(width=8, base_classes=3))


def build(tuning):
    """A small BAM of random weights, the same for every tuning."""
    torch.manual_seed(1)
    return build_model(METHOD, TINY, shipped_tuning(tuning))[0]


@functools.cache
def trained(tuning):
    """The state before three steps, and the model after them."""
    model = build(tuning).train()
    before, e = copy.deepcopy(model.state_dict()), training_episode()
    # BAM reads layer4 by its prior alone, whose gradients are tiny: SGD would move nothing that a float32 can show.
    optimizer = make_optimizer(model, model.backbone, Optimizer("adamw", 0.01, 0.01, 0.9, 0.0))
    steps(model, e, optimizer, 3)
    return before, model.eval()


def outputs(model):
    with torch.no_grad():
        return model.eval()(training_episode())


def assert_same(ours, theirs):
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(ours.aux[k], theirs.aux[k]) for k in theirs.aux)


@pytest.mark.parametrize("tuning", NAMES)
def test_training_starts_at_the_pretrained_network(tuning):
    model, frozen = build(tuning), build("frozen")
    x = training_episode().query_image
    with torch.no_grad():
        ours, theirs = model.eval().backbone(x), frozen.eval().backbone(x)
    for stage, value in theirs.items():
        if tuning in ROUNDED:
            torch.testing.assert_close(ours[stage], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
        else:
            assert torch.equal(ours[stage], value), stage


@pytest.mark.parametrize("tuning", NAMES)
def test_a_seed_gives_the_head_the_same_start_in_every_tuning(tuning):
    ours, theirs = build(tuning).state_dict(), build("frozen").state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if not name.startswith("base.stages"))


@pytest.mark.parametrize("tuning", NAMES)
def test_exactly_what_is_announced_trains(tuning):
    before, model = trained(tuning)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    announced = {name for name, _ in model.backbone.named_parameters() if re.fullmatch(ANNOUNCED[tuning], name)}
    assert {name.removeprefix("backbone.") for name in trains if name.startswith("backbone.")} == announced
    assert bool(announced) == (tuning != "frozen")
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == trains
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("tuning", NAMES)
def test_a_checkpoint_restores_it(tuning):
    _, model = trained(tuning)
    restored = restore_model(METHOD, TINY, shipped_tuning(tuning), model.state_dict(), "test")
    assert_same(outputs(restored), outputs(model))
    flags = [{name: p.requires_grad for name, p in m.named_parameters()} for m in (restored, model)]
    assert flags[0] == flags[1]


@pytest.mark.parametrize("tuning", NAMES)
def test_a_copy_is_one_of_its_own(tuning):
    _, model = trained(tuning)
    duplicate, expected = copy.deepcopy(model), outputs(model)
    assert_same(outputs(duplicate), expected)
    with torch.no_grad():
        for p in duplicate.parameters():
            p.add_(1)
    assert_same(outputs(model), expected)


@pytest.mark.parametrize("tuning", NAMES)
def test_the_base_branch_of_bam_stays_bit_for_bit(tuning):
    expected = outputs(build("frozen")).aux["base"]
    assert torch.equal(outputs(build(tuning)).aux["base"], expected)
    _, model = trained(tuning)
    assert torch.equal(outputs(model).aux["base"], expected)
    names = {name for name, _ in model.base.named_parameters()}
    assert not any("adapter" in name or "lora" in name for name in names)
    moved = outputs(model).aux["meta"]
    assert not torch.equal(moved, outputs(build(tuning)).aux["meta"])


# ---------------------------------------------------------------------------------------------------------------------
# Backbones


@functools.cache
def pretrained(backbone):
    torch.manual_seed(0)
    net, _ = build_backbone(Choice(backbone, BACKBONES.entry(backbone).options()))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: no two layers alike
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1)
    return net.eval()


# Every tuning on bottlenecks, on a VGG without BatchNorm and on inverted blocks; of the networks with their blocks or
# those of tiny, the tunings that add modules. A ResNet-101 has a ResNet-50's blocks.
EACH, ADDED = ("resnet50", "vgg16_plain", "efficientnet_lite0"), ("adapter", "lora")
PAIRS = [
    pytest.param(
        backbone,
        tuning,
        marks=[] if backbone in EACH or (tuning in ADDED and backbone != "resnet101") else [pytest.mark.long],
    )
    for backbone in BACKBONES.names()
    if backbone not in ("tiny", *TIMM)
    for tuning in OF_STAGES
]


@pytest.mark.parametrize(("backbone", "tuning"), PAIRS)
def test_every_backbone_starts_unchanged_and_gets_gradients(backbone, tuning):
    net, x = copy.deepcopy(pretrained(backbone)), torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        before = net(x)["deep"]
    if backbone in ("vgg16_plain", "vgg16_hsnet") and tuning == "batchnorm":
        with pytest.raises(
            ConfigError, match=r"tuning.stages: no BatchNorm in layer2, layer3, layer4 of this backbone"
        ):
            TUNINGS.build(shipped_tuning(tuning), net)
        return
    TUNINGS.build(shipped_tuning(tuning), net)
    after = net(x)["deep"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    after.square().sum().backward()
    require_gradients(net)


def count(backbone, tuning):
    """On the meta device: nothing is initialised or decomposed."""
    with torch.device("meta"):
        net, _ = build_backbone(Choice(backbone, BACKBONES.entry(backbone).options()))
        TUNINGS.build(shipped_tuning(tuning), net)
    return trainable_values(net)


def test_the_table_of_the_page():
    lines = re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOCS.read_text(), re.MULTILINE)
    table = {name: [int(value.replace(",", "")) for value in values] for name, *values in lines}
    assert sorted(table) == sorted(NAMES)
    assert table["svf"] == [12_544, 25_600, 3_840]  # the paper's
    backbones = ("resnet50", "resnet101", "vgg16")
    assert table == {name: [count(backbone, name) for backbone in backbones] for name in NAMES}


@pytest.mark.parametrize("tuning", OF_STAGES)
def test_other_stages_are_left_alone(tuning):
    chosen = shipped_tuning(tuning)
    net, _ = build_backbone(TINY)
    TUNINGS.build(replace(chosen, options=replace(chosen.options, stages=("layer0", "layer3"))), net)
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"layer0", "layer3"}


def test_an_unknown_stage_is_refused_by_name():
    chosen = shipped_tuning("layers")
    net, _ = build_backbone(TINY)
    with pytest.raises(
        ConfigError, match=r"tuning.stages: this backbone has no layer5; choose from layer0, .*, layer4"
    ):
        TUNINGS.build(replace(chosen, options=replace(chosen.options, stages=("layer5",))), net)


def test_layernorm_is_refused_where_there_is_none():
    net, _ = build_backbone(TINY)
    with pytest.raises(ConfigError, match=r"no LayerNorm in layer2, .*; its norms train with tuning=batchnorm"):
        TUNINGS.build(shipped_tuning("layernorm"), net)


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_the_default_of_svf_is_layers_2_to_4(backbone):
    shipped = shipped_tuning("svf")
    written = replace(shipped, options=replace(shipped.options, include=(r"^layer[234]\.",), exclude=()))
    official = shipped_tuning("svf_official")
    both = replace(official, options=replace(written.options, rank_multiple=4, frozen=(r"^layer[01]\.",)))
    for default, explicit in ((shipped, written), (official, both)):
        found = []
        for tuning in (default, explicit):
            with torch.device("meta"):
                net, _ = build_backbone(Choice(backbone, BACKBONES.entry(backbone).options()))
                TUNINGS.build(tuning, net)
            found.append([(name, p.shape, p.requires_grad) for name, p in net.named_parameters()])
        assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------------------------
# One by one


def test_a_name_of_factors_means_those_factors():
    options = shipped_tuning("us").options
    net, _ = build_backbone(TINY)
    with pytest.raises(
        ConfigError, match=r"tuning.train: expected \['U', 'S'\] under tuning=us \(or tuning=svf\), got"
    ):
        TUNINGS.build(Choice("us", replace(options, train=("S",))), net)
    TUNINGS.build(Choice("us", replace(options, train=("S", "U"))), net)
    assert {layer.form.train for _, layer in svf.layers(net)} == {("S", "U")}


def test_lora_is_a_second_path_of_two_convolutions():
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=2, dilation=2).double()
    x = torch.randn(2, 5, 11, 9, dtype=torch.float64)
    plain = conv(x)
    become_lora(conv, rank=2, alpha=3.0)
    assert isinstance(conv, LoRAConv2d)
    assert torch.equal(conv(x), plain)
    nn.init.normal_(conv.lora_b)
    narrow = nn.functional.conv2d(x, conv.lora_a, stride=2, padding=2, dilation=2)
    wide = nn.functional.conv2d(narrow, conv.lora_b[:, :, None, None])
    torch.testing.assert_close(conv(x), plain + 1.5 * wide)
    conv.become_pretrained()
    assert type(conv) is nn.Conv2d
    assert torch.equal(conv(x), plain)
