"""What every tuning promises on a vision transformer: its start, what trains, merging, copies, checkpoints, compilers."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from fss_svf import svf
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS, Choice
from fss_svf.training.optim import require_gradients
from fss_svf.tuned import TunedWeight, disabled, merge, plain_copy, to_plain, tuned_layers, unmerge
from fss_svf.tuning.adapter import AdaptedMLP, become_adapted
from fss_svf.tuning.lora import LoRAQKV, become_lora
from tests.cli.test_config import shipped_tuning
from tests.svf.vit import ViTBackbone, images

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "kept_factors")]

DOCS = Path(__file__).parents[2] / "docs" / "tunings.md"
REFUSED = {"batchnorm", "conv3x3"}
NAMES = [name for name in TUNINGS.names() if name not in REFUSED]
MLP = r"mlp\.fc(1(_[gx])?|2)"  # eva's is gated
LAYERS = rf"network\.blocks\.[12]\.(attn\.qkv\.v|attn\.proj|{MLP})"
ANNOUNCED = {
    "frozen": r"(?!)",
    "full": r".*",
    "layers": r"network\.blocks\.[12]\..*",
    "layernorm": r"network\.blocks\.[12]\.(norm[12]|(attn|mlp)\.norm)\.(weight|bias)",
    "bias": r"network\.blocks\.[12]\..*(\.bias|attn\.[qv]_bias)",
    "adapter": r"network\.blocks\.[12]\.mlp\.adapter\.(down|up)\.(weight|bias)",
    "lora": rf"network\.blocks\.[12]\.(attn\.qkv|attn\.proj|{MLP})\.lora_[ab]",
    "svf": rf"{LAYERS}\.S",
    "svf_official": rf"{LAYERS}\.S",
    "u": rf"{LAYERS}\.U",
    "v": rf"{LAYERS}\.Vh",
    "us": rf"{LAYERS}\.(U|S)",
    "sv": rf"{LAYERS}\.(S|Vh)",
    "usv": rf"{LAYERS}\.(U|S|Vh)",
}
# Those whose weight is U diag(S) V itself, equal within rounding.
ROUNDED = {"u", "v", "us", "sv", "usv"}
KINDS = ("vit", "eva")  # eva reads the weight of qkv past its layer


def build(tuning, kind="vit", dtype=torch.float64, **options):
    net = ViTBackbone(kind, dtype=dtype)
    chosen = shipped_tuning(tuning)
    TUNINGS.build(replace(chosen, options=replace(chosen.options, **options)), net)
    return net.eval()


def moved(tuning, kind="vit", seed=3):
    """All that trains is another, as after a training."""
    net = build(tuning, kind)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def output(net, kind="vit"):
    with torch.no_grad():
        return net(images(kind))[-1]


def close(found, expected, bound=1e-10):
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", NAMES)
def test_it_starts_at_the_pretrained_network(tuning, kind, dtype):
    net, plain, x = build(tuning, kind, dtype), ViTBackbone(kind, dtype=dtype), images(kind, dtype=dtype)
    with torch.no_grad():
        ours, theirs = net(x), plain(x)
    for found, expected in zip(ours, theirs):
        if tuning in ROUNDED:
            close(found, expected, 1e-5)
        else:
            assert torch.equal(found, expected)
    trained = [t.detach() for t in net(x)]
    if tuning in ("lora", "adapter"):
        assert all(torch.equal(found, expected) for found, expected in zip(trained, theirs))
    else:
        close(trained[-1], theirs[-1], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", NAMES)
def test_exactly_what_is_announced_trains(tuning, kind):
    net = build(tuning, kind)
    before = state_of(net)
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    announced = {n for n, _ in net.named_parameters() if re.fullmatch(ANNOUNCED[tuning], n)}
    assert trains == announced
    assert bool(trains) == (tuning != "frozen")
    if not trains:
        return
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    weights = torch.linspace(-1, 1, 48, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        taps = net(images(kind))
        normed = net.network.norm(
            net.network.fc_norm(taps[-1].mean((2, 3))) if kind == "vit" else taps[-1].mean((2, 3))
        )
        (taps[-1].square().mean() + (normed * weights).sum()).backward()
        if tuning != "full":
            require_gradients(net)
        optimizer.step()
    after = net.state_dict()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert trains - reached <= {"network.cls_token"} | {n for n in trains if "norm" in n}
    assert {name for name in before if not torch.equal(before[name], after[name])} == trains & reached


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", NAMES)
def test_merged_disabled_copied_and_exported(tuning, kind):
    net, plain = moved(tuning, kind), ViTBackbone(kind).eval()
    state, expected = state_of(net), output(net, kind)
    close(net(images(kind))[-1].detach(), expected)
    merge(net)
    close(output(net, kind), expected)
    assert all(layer.merged == layer.foldable for _, layer in tuned_layers(net))
    assert same(state, net.state_dict())
    unmerge(net)
    assert torch.equal(output(net, kind), expected)
    if not any(tuned_layers(net)):
        plain = copy.deepcopy(net)
    else:
        assert not torch.equal(expected, output(plain, kind))
    for again in (net, merge(net)):
        with disabled(again):
            assert torch.equal(output(again, kind), output(plain, kind))
            assert torch.equal(again(images(kind))[-1].detach(), output(plain, kind))
    unmerge(net)
    duplicate = plain_copy(net)
    assert same(duplicate.state_dict(), plain.state_dict())
    assert torch.equal(output(duplicate, kind), output(plain, kind))
    assert {type(m) for m in duplicate.modules()} == {type(m) for m in plain.modules()}
    exported = to_plain(net)
    close(output(exported, kind), expected)
    left = [layer for _, layer in tuned_layers(exported)]
    assert not any(isinstance(layer, TunedWeight) for layer in left)
    assert {type(layer) for layer in left} == ({AdaptedMLP} if tuning == "adapter" else set())
    if not left:
        plain.load_state_dict(exported.state_dict())
        close(output(plain, kind), expected)
    assert same(state, net.state_dict())


@pytest.mark.parametrize("tuning", NAMES)
def test_a_state_dict_and_a_copy_go_round(tuning):
    net, other = moved(tuning), moved(tuning, seed=4)
    expected = output(net)
    other.load_state_dict(net.state_dict())
    assert torch.equal(output(other), expected)
    duplicate = copy.deepcopy(net)
    assert torch.equal(output(duplicate), expected)
    with torch.no_grad():
        for p in duplicate.parameters():
            p.add_(1)
    assert torch.equal(output(net), expected)
    restored = ViTBackbone().to("meta")
    TUNINGS.build(shipped_tuning(tuning), restored)  # as restore_model does it
    restored.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(output(restored.eval()), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", [name for name in NAMES if name not in ("frozen", "full")])
def test_what_lies_below_the_tuned_stages_has_no_graph(tuning, kind):
    taps = build(tuning, kind)(images(kind))
    assert [tap.grad_fn is None for tap in taps] == [True, False, False]


@pytest.mark.parametrize("tuning", NAMES)
def test_bfloat16_by_autocast(tuning):
    net, x = build(tuning, dtype=torch.float32), images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)[-1]
    with torch.no_grad():
        expected = net(x)[-1]
    close(y.detach().float(), expected, 3e-2)
    if tuning != "frozen":
        y.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# Every form of SVF's own: test_svf_forms.py. A bias is no layer of a tuning.
@pytest.mark.parametrize(
    "tuning", ["svf", "lora", "adapter", *(pytest.param(name, marks=pytest.mark.long) for name in ("usv", "bias"))]
)
def test_compiled_in_one_graph(tuning):
    net, x = moved(tuning), images()
    expected = net(x)[-1]
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    net.zero_grad()
    torch._dynamo.reset()
    found = torch.compile(net, backend="aot_eager", fullgraph=True)(x)[-1]
    found.square().sum().backward()
    close(found.detach(), expected.detach())
    for name, p in net.named_parameters():
        if p.requires_grad:
            close(p.grad, gradients[name], 1e-8)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing, and refusing


@pytest.mark.parametrize("tuning", [n for n in NAMES if hasattr(shipped_tuning(n).options, "stages")])
def test_other_stages(tuning):
    net = build(tuning, stages=("blocks.0",))
    assert {name.split(".")[2] for name, p in net.named_parameters() if p.requires_grad} == {"0"}
    with pytest.raises(ConfigError, match=r"tuning.stages: this backbone has no blocks.3; choose from blocks.0, "):
        build(tuning, stages=("blocks.3",))


def test_patterns_of_svf_are_about_names_in_the_network():
    net = build("svf", include=(r"^blocks\.0\.attn", r"qkv\.q$"))
    assert [name for name, _ in svf.layers(net.network)] == [
        "blocks.0.attn.qkv.q", "blocks.0.attn.qkv.v", "blocks.0.attn.proj",
        "blocks.1.attn.qkv.q", "blocks.2.attn.qkv.q",
    ]  # fmt: skip


def test_svf_official_cuts_the_others_too_and_leaves_them_frozen():
    net = build("svf_official")
    trains = {name: any(p.requires_grad for p in layer.parameters()) for name, layer in svf.layers(net.network)}
    assert trains == {
        f"blocks.{n}.{own}": n > 0 for n in range(3) for own in ("attn.qkv.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    net = build("svf_official", frozen=(r"blocks\.1\.attn\.qkv$",))
    assert not net.network.blocks[1].attn.qkv.v.S.requires_grad


def test_what_a_transformer_does_not_have_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"no BatchNorm in blocks.1, blocks.2 .*; its norms train with tuning=layernorm"
    ):
        build("batchnorm")
    with pytest.raises(ConfigError, match=r"no 3x3 convolution in blocks.1, blocks.2 of this backbone, so nothing"):
        build("conv3x3")


def test_no_adapter_where_there_is_no_place_for_one():
    net = ViTBackbone()
    for block in net.network.blocks:
        del block.mlp
    with pytest.raises(ConfigError, match=r"blocks.1 of this backbone, a Block, has no MLP and is no sequence"):
        TUNINGS.build(shipped_tuning("adapter"), net)


# ---------------------------------------------------------------------------------------------------------------------
# One by one


def test_lora_of_an_attention_is_a_second_path_to_queries_and_values():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 15).double(), torch.randn(2, 4, 6, dtype=torch.double)
    q, k, v = layer(x).chunk(3, -1)
    plain = copy.deepcopy(layer)
    become_lora(layer, rank=2, alpha=3.0, qkv=True)
    assert isinstance(layer, LoRAQKV)
    assert torch.equal(layer(x), plain(x))
    nn.init.normal_(layer.lora_b)
    (aq, av), (bq, bv) = layer.lora_a, layer.lora_b
    expected = torch.cat([q + 1.5 * x @ aq.T @ bq.T, k, v + 1.5 * x @ av.T @ bv.T], -1)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), expected)
    layer.become_pretrained()
    assert type(layer) is nn.Linear
    assert same(layer.state_dict(), plain.state_dict())


def test_an_adapter_stands_beside_the_mlp():
    torch.manual_seed(0)
    mlp, x = timm.layers.Mlp(6, 12).double(), torch.randn(2, 4, 6, dtype=torch.double)
    plain, before = mlp(x), mlp.state_dict().keys()
    become_adapted(mlp, 3)
    assert torch.equal(mlp(x), plain)
    nn.init.normal_(mlp.adapter.up.weight)
    narrow = torch.relu(nn.functional.linear(x, mlp.adapter.down.weight, mlp.adapter.down.bias))
    expected = plain + 0.1 * nn.functional.linear(narrow, mlp.adapter.up.weight, mlp.adapter.up.bias)
    torch.testing.assert_close(mlp(x), expected)
    assert set(mlp.own) == set(mlp.state_dict()) - set(before)
    mlp.become_pretrained()
    assert type(mlp) is timm.layers.Mlp
    assert torch.equal(mlp(x), plain)


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_an_adapter_and_lora_of_a_convnext(conv_mlp):
    net = timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0, conv_mlp=conv_mlp
    ).eval()
    net.tuned_stages, x = ("stages.2", "stages.3"), torch.randn(1, 3, 64, 64)

    class Backbone(nn.Module):
        tuned_stages = ("stages.2", "stages.3")
        stages = property(lambda self: {f"stages.{n}": stage for n, stage in enumerate(self.body.stages)})

        def __init__(self):
            super().__init__()
            self.body = copy.deepcopy(net)

    for tuning in ("adapter", "lora", "svf"):
        tuned = Backbone()
        TUNINGS.build(shipped_tuning(tuning), tuned)
        with torch.no_grad():
            assert torch.equal(tuned.body(x), net(x))
        tuned.body(x).square().sum().backward()
        require_gradients(tuned)
        assert {n.split(".")[2] for n, p in tuned.named_parameters() if p.requires_grad} == {"2", "3"}


class Small(nn.Module):
    """DINOv2-S, all 12 blocks of which are tuned, without values."""

    tuned_stages = tuple(f"blocks.{n}" for n in range(12))

    def __init__(self):
        super().__init__()
        self.body = timm.create_model("vit_small_patch14_dinov2", num_classes=0)

    @property
    def stages(self):
        return {f"blocks.{n}": block for n, block in enumerate(self.body.blocks)}


def count(tuning: Choice) -> int:
    with torch.device("meta"):
        net = Small()
        TUNINGS.build(tuning, net)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_the_table_of_the_page():
    lines = re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|$", DOCS.read_text(), re.MULTILINE)
    table = {name: int(value.replace(",", "")) for name, value in lines}
    assert table == {name: count(shipped_tuning(name)) for name in NAMES}
    assert table["svf"] == 12 * 4 * 384
