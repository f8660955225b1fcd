"""Taps inside stages, networks that are not dilated, and sizes of stage backbones."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fss_svf.backbones.efficientnet import EfficientNetOptions, efficientnet_lite0
from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, resnet50, tiny
from fss_svf.backbones.stages import STAGES
from fss_svf.backbones.vgg import VGGOptions, vgg16, vgg16_plain
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS
from tests.cli.test_config import shipped_tuning

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


def image(size=65):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


def as_if_trained(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1)
    return net.eval().double()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def by_block(net, x):
    """Every block's sum and output in torchvision's own modules, by the names of taps."""
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    found = {}
    for stage in STAGES[1:]:
        for name, block in getattr(net, stage).named_children():
            shortcut = x if block.downsample is None else block.downsample(x)
            y = F.relu(block.bn1(block.conv1(x)))
            if hasattr(block, "conv3"):
                y = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(y)))))
            else:
                y = block.bn2(block.conv2(y))
            found[f"{stage}.{name}:sum"] = y + shortcut
            x = F.relu(y + shortcut)
        found[stage] = x
    return found


@pytest.mark.parametrize(("build", "name"), [(resnet18, "resnet18"), (resnet50, "resnet50")])
@torch.no_grad()
def test_sums_of_a_resnet_that_is_not_dilated(build, name):
    backbone = as_if_trained(build(ResNetOptions(dilation="none"))[0])
    net = torchvision.models.get_model(name).eval().double()
    net.load_state_dict({k.removeprefix("layer0."): v for k, v in backbone.state_dict().items()}, strict=False)
    x = image(70)  # no size of the dilated ones
    backbone.check_size(70)
    expected = by_block(net, x)
    assert [t for t in backbone.taps if t != "layer0"] == list(expected)
    maps = backbone(x, list(expected))
    for tap, value in expected.items():
        close(maps[tap], value)
        assert backbone.taps[tap].channels == value.shape[1]
        assert value.shape[-1] == -(-70 // backbone.taps[tap].stride)
    assert [backbone.taps[stage].stride for stage in STAGES] == [4, 4, 8, 16, 32]


@pytest.mark.parametrize("build", [vgg16, vgg16_plain])
@torch.no_grad()
def test_sums_of_a_vgg_are_what_its_relus_get(build):
    backbone, x = as_if_trained(build(VGGOptions())[0]), image(33)
    expected = {}
    y = x
    for stage in STAGES:
        layers = list(getattr(backbone, stage).named_children())
        conv = ""
        for name, layer in layers:
            if isinstance(layer, nn.ReLU):
                expected[f"{stage}.{conv}:sum"], y = y, F.relu(y)
                continue
            conv = name if isinstance(layer, nn.Conv2d) else conv
            y = layer(y)
        expected[stage] = y
    assert list(backbone.taps) == list(expected)
    assert sum(tap.endswith(":sum") for tap in expected) == (13 if build is vgg16 else 12)
    maps = backbone(x, list(expected))
    for tap, value in expected.items():
        close(maps[tap], value)
        assert value.shape[1] == backbone.taps[tap].channels
        assert value.shape[-1] == -(-33 // backbone.taps[tap].stride)


# Of VGG16-bn the BatchNorm of the convolution is its last layer before the ReLU.
@pytest.mark.parametrize(
    ("build", "last"),
    [(lambda: resnet18(ResNetOptions())[0], "layer3.0"), (lambda: vgg16(VGGOptions())[0], "layer3.25")],
)
def test_a_run_ends_at_the_last_tap(build, last):
    backbone, ran = build().eval(), []
    for stage in STAGES:
        for name, layer in getattr(backbone, stage).named_children():
            layer.register_forward_hook(lambda *_, name=f"{stage}.{name}": ran.append(name))
    inside = [tap for tap in backbone.taps if tap.startswith("layer3.")]
    with torch.no_grad():
        alone = backbone(image(33).float(), [inside[0]])
    assert ran[-1] == last
    with torch.no_grad():
        both = backbone(image(33).float(), [inside[0], "layer3"])
    assert torch.equal(both[inside[0]], alone[inside[0]])
    assert not any(name.startswith("layer4") for name in ran)


def test_sums_keep_their_values_and_gradients_with_hooks_and_recompute():
    """The ReLU behind a sum is not in place; with recompute the gradients are the same, and a hooked ReLU is called."""
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = as_if_trained(tiny(TinyOptions(width=8))[0])
        if again:
            backbone.recompute()
        maps = backbone(image(), ["layer3.0:sum", "layer3", "layer4.0:sum", "deep"])
        assert (maps["layer3.0:sum"] < 0).any()
        assert torch.equal(maps["layer3"], F.relu(maps["layer3.0:sum"]))
        assert torch.equal(maps["deep"], F.relu(maps["layer4.0:sum"]))
        sum(value.square().mean() for value in maps.values()).backward()
        grads.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)
    called = []
    backbone.layer3[0].relu.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        hooked = backbone(image(), ["layer3.0:sum", "layer3"])
    close(hooked["layer3.0:sum"], maps["layer3.0:sum"].detach())
    assert torch.equal(hooked["layer3"], F.relu(hooked["layer3.0:sum"]))
    assert len(called) == 2


@pytest.mark.parametrize("tuning", ["lora", "adapter"])
def test_sums_of_a_tuned_backbone(tuning):
    backbone = as_if_trained(tiny(TinyOptions(width=8))[0])
    with torch.no_grad():
        before = backbone(image(), ["layer3.0:sum", "deep"])
        TUNINGS.build(shipped_tuning(tuning), backbone)
        after = backbone.double()(image(), ["layer3.0:sum", "deep"])
    for tap, value in before.items():
        close(after[tap], value)


def test_continuing_from_a_map_equals_the_whole_run():
    backbone = as_if_trained(tiny(TinyOptions(width=8))[0])
    with torch.no_grad():
        maps = backbone(image())
        again = backbone.continue_from("mid", maps["mid"], ("deep", "layer4.0:sum"))
    assert torch.equal(again["deep"], maps["deep"])
    assert torch.equal(F.relu(again["layer4.0:sum"]), maps["deep"])


@pytest.mark.parametrize(("stride", "strides"), [(16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])])
def test_efficientnet_at_other_strides(stride, strides):
    """The packaged weights fit; up to the stage where the stride differs the maps are those at 1/8."""
    options = EfficientNetOptions(output_stride=stride)
    backbone, report = efficientnet_lite0(options)
    finest, same = efficientnet_lite0(replace(options, output_stride=8))
    assert (report.digest, report.loaded) == (same.digest, same.loaded)
    assert backbone.state_dict().keys() == finest.state_dict().keys()
    x = image(65).float()
    with torch.no_grad():
        maps, fine = backbone.eval()(x, STAGES), finest.eval()(x, STAGES)
    assert [backbone.taps[stage].stride for stage in STAGES] == strides
    assert [maps[stage].shape[-1] for stage in STAGES] == [-(-65 // s) for s in strides]
    assert torch.equal(maps["layer2"], fine["layer2"])


def test_sizes():
    backbone, free = tiny(TinyOptions())[0], resnet18(ResNetOptions(dilation="none"))[0]
    for good in (33, 97, 473):
        backbone.check_size(good)
    backbone.check_size(400, squash=True)
    for squash, bad, message in (
        (False, 240, r"recipe.size: expected n with \(n - 1\) % 8 == 0 .* got 240; the nearest possible: 233 or 241"),
        (False, 400, "393 or 401"),
        (True, 396, "393 or 401"),
        (True, 32, "33 or 41"),
    ):
        with pytest.raises(ConfigError, match=message):
            backbone.check_size(bad, "recipe.size", squash)
    free.check_size(400)
    with pytest.raises(ConfigError, match="expected n >= 33"):
        free.check_size(32)


def test_an_unknown_stage_of_a_tuning():
    chosen = shipped_tuning("layers")
    with pytest.raises(ConfigError, match=r"tuning.stages: this backbone has no layer5; choose from layer0, layer1"):
        TUNINGS.build(replace(chosen, options=replace(chosen.options, stages=("layer5",))), tiny(TinyOptions())[0])
