"""Every method on backbones that are no ResNets, through the roles of their taps."""

from dataclasses import fields, replace

import pytest
import torch

from fss_svf.backbones.efficientnet import EfficientNetOptions, efficientnet_lite0
from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, tiny
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.errors import ConfigError
from fss_svf.methods.method import flat_supports, regroup
from fss_svf.registry import METHODS
from tests.backbones.networks import network
from tests.methods.test_methods import SMALL, episode, in_float64

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

BACKBONES = {
    "efficientnet_lite0": lambda: efficientnet_lite0(EfficientNetOptions(weights=None))[0],
    "efficientnet_lite0, 1/16": lambda: efficientnet_lite0(EfficientNetOptions(weights=None, output_stride=16))[0],
    "undilated": lambda: resnet18(ResNetOptions(dilation="none"))[0],
    "vit": lambda: TimmBackbone(network("vit")),
    "dinov3": lambda: TimmBackbone(network("dinov3"), {"low": "blocks.0", "mid": "blocks.1", "deep": "norm"}),
    "swin": lambda: TimmBackbone(network("swin")),
    "convnext": lambda: TimmBackbone(network("convnext")),
}
SIZE = 64


def build(name, backbone, shot):
    torch.manual_seed(1)
    entry = METHODS.entry(name)
    values = {**SMALL, "bins": (4, 2), "shot": shot}
    options = entry.options(**{f.name: values[f.name] for f in fields(entry.options) if f.name in values})
    return entry.build(BACKBONES[backbone]().requires_grad_(True), options)


# Larger networks, whose maps have the strides of the others: a method of priors and one of many levels show them.
LARGE, SHOWN = ("efficientnet_lite0, 1/16", "undilated"), ("pfenet", "hsnet")
EVERY = [
    pytest.param(name, backbone, marks=[pytest.mark.long] if backbone in LARGE and name not in SHOWN else [])
    for name in METHODS.names()
    if name != "background"
    for backbone in BACKBONES
]


@pytest.mark.parametrize(("name", "backbone"), EVERY)
def test_encoding_apart_equals_forward(name, backbone):
    method, e = build(name, backbone, 2).eval().double(), in_float64(episode(shot=2, size=SIZE))
    with torch.no_grad():
        whole = method(e)
        support = regroup(method.encode_support(*flat_supports(e)), 2)
        parts = method.segment(method.encode_query(e.query_image), support, e.size)
    assert whole.logits.shape == (2, 2, SIZE, SIZE)
    assert torch.isfinite(whole.logits).all()
    bound = 1e-7 * max(1, float(whole.logits.abs().max()))
    torch.testing.assert_close(parts.logits, whole.logits, rtol=0, atol=bound)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vit", "swin", "convnext"])
@pytest.mark.parametrize("name", ["panet", "baseline", "pfenet", "bam", "ssp", "hsnet", "dcama"])
def test_a_training_step_reaches_all_that_trains(name, backbone):
    method, e = build(name, backbone, 1).train(), episode(size=SIZE)
    if name == "bam":
        e = replace(e, base_class=torch.tensor([1, 2]), base_mask=e.query_mask.clone())
    loss = torch.stack(list(method.losses(method(e), e).values())).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in method.backbone.parameters() if p.requires_grad)


def test_bams_base_branch_sees_the_network_from_before_a_tuning_in_place():
    """A ViT's branch holds a copy where weights train, and reads the method's own map where none does."""
    method, e = build("bam", "vit", 1).eval(), episode(size=SIZE)
    assert list(method.base.stages) == ["network"]
    assert method.base.start(method.backbone) is None
    with torch.no_grad():
        before = method.encode_query(e.query_image)
        for p in method.backbone.network.blocks[2].parameters():
            p.add_(0.1)
        after = method.encode_query(e.query_image)
    assert torch.equal(before["base"], after["base"])
    assert not torch.equal(before["deep"], after["deep"])
    method.base.hold(method.backbone.requires_grad_(False), [])
    assert method.base.start(method.backbone) == "deep"
    with torch.no_grad():
        maps = method.backbone(e.query_image)
        expected = method.base.cls(method.base.ppm(maps["deep"]))
        torch.testing.assert_close(method.encode_query(e.query_image)["base"], expected)


@pytest.mark.parametrize("stage", ["low", "layer3", "layer3.0:sum"])
def test_the_prototype_reads_a_role_or_a_tap(stage):
    entry = METHODS.entry("prototype")
    method = entry.build(tiny(TinyOptions(width=8))[0], entry.options(stage=stage))
    assert method.encode_query(torch.zeros(1, 3, 65, 65))["feature"].shape[1] == method.backbone.tap(stage).channels
    with pytest.raises(ConfigError, match=r"method.stage: layer5: no tap of this backbone"):
        entry.build(tiny(TinyOptions(width=8))[0], entry.options(stage="layer5"))
