"""SVF of an attention's qkv as three matrices, on networks of timm; and of their Linear layers in a training step."""

import copy
import io
import pickle
import warnings
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from fss_svf import svf
from fss_svf.svf.qkv import SVFQKV, SVFRows
from fss_svf.tuned import tuned_layers, tuned_parameters
from tests.svf.vit import KINDS, images, make

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]
READ = ("eva", "beit", "swinv2")  # their attention reads the weight of qkv and does not call it
QKV = "blocks.1.attn.qkv"


def names(net):
    return [name for name, _ in svf.layers(net)]


def move(net, by=0.2):
    """As a training does: every S another one."""
    with torch.no_grad():
        for number, (_, p) in enumerate(svf.trainable_parameters(net)):
            p.mul_(1 + by * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).roll(number).view_as(p))
    return net


def run(net, x):
    with torch.no_grad():
        return net(x)


def close(found, expected, bound=1e-10):
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_timm_starts_unchanged_to_the_bit_without_q_and_k(kind, dtype):
    net, x = make(kind, dtype=dtype), images(kind, dtype=dtype)
    before = run(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of it is left out
        svf.decompose(net)
    assert torch.equal(run(net, x), before)
    assert torch.equal(net(x).detach(), before)  # a training forward, rebuilt
    linears = {n for n, m in make(kind).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert set(names(net)) == {f"{name}.v" if name.endswith(".qkv") else name for name in linears}
    assert not torch.equal(run(move(net), x), before)


def test_each_part_has_the_singular_values_of_its_own_rows():
    net = make()
    weight = net.get_submodule(QKV).weight.clone()
    svf.decompose(net, [r"qkv\.[qkv]$"])
    for part, rows in zip("qkv", weight.chunk(3)):
        layer = dict(svf.layers(net))[f"{QKV}.{part}"]
        assert torch.equal(layer.weight, rows)
        torch.testing.assert_close(layer.S0[0], torch.linalg.svdvals(rows), rtol=1e-10, atol=1e-12)
    move(net)
    parts = [
        layer.U[0] @ torch.diag(layer.S[0]) @ layer.Vh[0]
        for layer in (dict(svf.layers(net))[f"{QKV}.{p}"] for p in "qkv")
    ]
    torch.testing.assert_close(net.get_submodule(QKV).effective_weight(), torch.cat(parts), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("include", "exclude", "parts"),
    [
        ((), (), "v"),
        ((r"^blocks\.1\.",), (), "v"),
        ((r"attn\.qkv",), (), "v"),
        ((r"attn\.qkv$",), (), "v"),
        ((r"qkv\..",), (), "v"),
        ((r"qkv\.q$",), (), "q"),
        ((r"qkv\.(q|v)$",), (), "qv"),
        ((r"^blocks\.1\.", r"qkv\.[qk]$"), (), "qkv"),
        ((r"^blocks\.1\.",), (r"qkv$",), ""),
        ((r"^blocks\.1\.", r"qkv\.[qk]$"), (r"\.k$",), "qv"),
    ],
)
def test_queries_and_keys_are_chosen_by_their_names_alone(include, exclude, parts):
    net = svf.decompose(make(), include, exclude)
    assert "".join(name[-1] for name in names(net) if name.startswith(f"{QKV}.")) == parts
    assert isinstance(net.get_submodule(QKV), SVFQKV) == bool(parts)


def test_queries_and_keys_of_layers_of_their_own():
    def attention():
        torch.manual_seed(0)
        arguments = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "qkv_fused": False}
        return timm.create_model("eva02_tiny_patch14_224", img_size=56, **arguments)

    assert [n.rpartition(".")[2] for n in names(svf.decompose(attention(), [r"blocks\.0\.attn"]))] == ["v_proj", "proj"]
    by_name = svf.decompose(attention(), [r"attn\.[qk]_proj"])
    assert [n.rpartition(".")[2] for n in names(by_name)] == ["q_proj", "k_proj"] * 2


def test_rows_in_another_order_are_not_taken_apart():
    net = timm.create_model("tiny_vit_5m_224", num_classes=0)
    svf.decompose(net.stages[1].blocks[0].attn)
    assert names(net.stages[1].blocks[0].attn) == ["qkv", "proj"]


@pytest.mark.parametrize("chosen", [("v",), ("q", "v"), ("k",), ("q", "k", "v")], ids="".join)
@pytest.mark.parametrize("kind", KINDS)
def test_every_execution_gives_the_same_outputs_and_gradients(kind, chosen):
    net = svf.decompose(make(kind), [rf"qkv\.[{''.join(chosen)}]$", r"attn\.proj$", r"mlp\.fc"])
    move(net)
    results = []
    for execution in ("rebuilt", "auto", "factored"):
        for _, layer in svf.layers(net):
            layer.execution = execution
        net.zero_grad(set_to_none=True)
        x = images(kind).requires_grad_()
        y = net(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        results.append({"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in svf.trainable_parameters(net)}})
    for found in results[1:]:
        for name, value in results[0].items():
            assert float((found[name] - value).abs().max()) <= 1e-9 * max(float(value.abs().max()), 1e-3), name


def test_a_linear_layer_of_any_shape_and_biases_that_train():
    for shape in ((3,), (5, 3), (2, 4, 5, 3)):
        for bias in (True, False):
            plain = nn.Linear(3, 6, bias).double()
            x = torch.randn(shape, dtype=torch.double)
            results = []
            for execution in ("rebuilt", "factored"):
                layer, own = svf.decompose(copy.deepcopy(plain), execution=execution), x.clone().requires_grad_()
                assert layer.runs_factored(own) == (execution == "factored")
                y = layer(own)
                y.square().sum().backward()
                results.append([y, own.grad, layer.S.grad, *([layer.bias.grad] if bias else [])])
            for found, expected in zip(results[1], results[0]):
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_auto_counts_operations():
    wide, square = svf.decompose(nn.Linear(8, 32), execution="auto"), svf.decompose(nn.Linear(32, 32), execution="auto")
    assert wide.runs_factored(torch.randn(4, 5000, 8))
    assert square.runs_factored(torch.randn(1, 63, 32))  # at less than 2 n positions making the weight counts
    assert not square.runs_factored(torch.randn(1, 65, 32))
    with torch.no_grad():
        assert not wide.runs_factored(torch.randn(4, 50, 8))


def test_counted_operations_are_what_the_rule_says():
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = svf.decompose(nn.Linear(24, 16), execution="factored"), torch.randn(2, 50, 24, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 16 * (16 + 24) * 100)


def test_no_gradient_is_computed_for_rows_that_do_not_train():
    from torch.utils.flop_counter import FlopCounterMode

    net = svf.decompose(make("vit"), [r"blocks\.1\.attn\.qkv"], execution="auto").get_submodule(QKV)
    x = torch.randn(1, 400, 48, dtype=torch.double, requires_grad=True)  # so many positions that V runs rebuilt
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    product, weight = 2 * 400 * 48 * 48, 2 * 48**3
    assert counter.get_total_flops() == 7 * product + 2 * weight  # not 9


@pytest.mark.parametrize("kind", ["vit", "dinov3", "eva"])
def test_fused_attention_stays_in_use(kind):
    net = svf.decompose(make(kind), [r"^blocks\.", r"qkv\.[qk]$"], execution="auto")
    real, calls = nn.functional.scaled_dot_product_attention, []

    def spy(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", spy):
        net(images(kind)).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_merged_disabled_exported_and_plain(kind):
    net, x = make(kind), images(kind)
    plain, before, state = copy.deepcopy(net), run(net, x), copy.deepcopy(net.state_dict())
    move(svf.decompose(net, execution="auto"))
    own, moved = copy.deepcopy(net.state_dict()), run(net, x)
    svf.merge(net)
    close(run(net, x), moved)
    with svf.disabled(net):
        assert torch.equal(run(net, x), before)
    svf.unmerge(net)
    assert torch.equal(run(net, x), moved)
    with svf.disabled(net):
        assert torch.equal(run(net, x), before)
        assert torch.equal(net(x).detach(), before)
    exported, copied = svf.to_plain(net), svf.plain_copy(net)
    assert list(exported.state_dict()) == list(copied.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in copied.state_dict().items())
    assert (
        {type(m) for m in exported.modules()}
        == {type(m) for m in copied.modules()}
        == {type(m) for m in plain.modules()}
    )
    plain.load_state_dict(exported.state_dict())
    close(run(plain, x), moved)
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["dinov2", "eva"])
@pytest.mark.parametrize("form", [("S", "direct"), ("S", "scale"), ("S", "log"), ("SUV", "direct")], ids="".join)
def test_adapters_go_into_decomposed_and_plain_networks(tmp_path: Path, kind, form):
    train, parametrisation = form
    net, x = make(kind), images(kind)
    plain = copy.deepcopy(net)
    include = [r"^blocks\.[12]\.", r"^blocks\.2\.attn\.qkv\.q$"]
    again = svf.decompose(copy.deepcopy(net), include, train=train, parametrisation=parametrisation)
    move(svf.decompose(net, include, train=train, parametrisation=parametrisation))
    svf.save_adapter(net, tmp_path / "adapter")
    holder = {"direct": "S", "scale": "S_scale", "log": "S_log_scale"}[parametrisation]
    assert f"blocks.2.attn.qkv.q.{holder}" in load_file(tmp_path / "adapter")
    for other in (again, plain):
        svf.load_adapter(other, tmp_path / "adapter")
        assert names(other) == names(net)
        close(run(other, x), run(net, x))
    with pytest.raises(svf.AdapterError, match=r"made for base weights"):
        svf.load_adapter(make(kind, seed=1), tmp_path / "adapter")
    with pytest.raises(svf.AdapterError, match=r"also: .* matches no tensor"):
        svf.save_adapter(net, tmp_path / "other", also=[r"blocks\.1\.attn\.qkv\.weight$"])


def test_an_adapter_that_does_not_fit_leaves_the_network_plain(tmp_path: Path):
    net = svf.decompose(make(), [r"^blocks\.1\."])
    svf.save_adapter(net, tmp_path / "adapter")
    other, x = make(), images()
    before = run(other, x)
    with (
        mock.patch("fss_svf.svf.adapter_file._check_fingerprints", side_effect=svf.AdapterError("no")),
        pytest.raises(svf.AdapterError),
    ):
        svf.load_adapter(other, tmp_path / "adapter")
    assert names(other) == []
    assert torch.equal(run(other, x), before)
    assert not any(isinstance(m, SVFQKV | SVFRows) for m in other.modules())


def test_the_report_and_ranks_name_the_parts():
    net = svf.decompose(
        make(), [r"^blocks\.1\.attn", r"qkv\.q$"], rank={r"blocks\.1\.attn\.qkv\.v": 8, r"\.q$": 0.5}, rank_multiple=4
    )
    lines = {line.name: line for line in svf.report(net)}
    assert (lines[f"{QKV}.v"].shape, lines[f"{QKV}.v"].rank) == ((48, 48), 8)
    assert lines[f"{QKV}.q"].rank == 24
    assert lines["blocks.1.attn.proj"].rank == 48
    assert f"{QKV}.k" not in lines
    assert lines[f"{QKV}.v"].error > 0
    assert f"{QKV}.v" in str(svf.report(net))
    with pytest.raises(ValueError, match=rf"layer '{QKV}.v': rank 49 is not between 1 and 48"):
        svf.decompose(make(), [r"^blocks\.1\.attn"], rank=49)


@pytest.mark.parametrize("train", ["S", "US"])
def test_what_a_checkpoint_may_leave_out_has_names_of_the_state_dict(train):
    net = svf.decompose(make(), ["qkv", r"qkv\.q$"], train=train)
    state, layers = net.state_dict(), dict(tuned_layers(net))
    own = {f"{prefix}.{name}" for prefix, layer in layers.items() for name in layer.own}
    computed = {f"{prefix}.{name}" for prefix, layer in layers.items() for name in layer.computed}
    assert own & set(state) == set(state) - set(make().state_dict())
    parts = [f"blocks.{n}.attn.qkv.{part}" for n in range(3) for part in "qv"]
    assert computed == ({f"{part}.{name}" for part in parts for name in ("U", "Vh", "S0")} if train == "S" else set())
    assert [layers[part].probe() for part in parts] == [
        dict(svf.layers(svf.decompose(make(), ["qkv", r"qkv\.q$"], train=train)))[part].probe() for part in parts
    ]
    assert tuned_parameters(net) == {id(p) for name, p in net.named_parameters() if name in own}


def test_parts_are_added_later_in_a_form_of_their_own():
    net, x = make(), images()
    before = run(net, x)
    svf.decompose(net, [QKV])
    svf.decompose(net, [rf"{QKV}\.q$"], parametrisation="log")
    assert torch.equal(run(net, x), before)
    assert [name for name, _ in svf.trainable_parameters(net)] == [f"{QKV}.v.S", f"{QKV}.q.S_log_scale"]
    with pytest.raises(ValueError, match=r"matches none"):
        svf.decompose(net, [rf"{QKV}\.q$"])


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_a_plain_state_dict_starts_the_parts_anew():
    net, other, x = move(svf.decompose(make())), make(seed=1), images()
    expected = run(other, x)
    missing, unexpected = net.load_state_dict(other.state_dict(), strict=False)
    assert f"{QKV}.v.S" in missing
    assert not unexpected
    assert torch.equal(run(net, x), expected)
    layer = dict(svf.layers(net))[f"{QKV}.v"]
    torch.testing.assert_close(layer.S[0], torch.linalg.svdvals(other.get_submodule(QKV).weight[96:]))
    moved = move(net).state_dict()
    net.load_state_dict(other.state_dict(), strict=False)  # the weight that it has: S stays
    assert all(torch.equal(value, moved[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("merged", [False, True])
def test_its_own_state_dict_is_exact(merged):
    net, x = move(svf.decompose(make(), ["qkv", r"qkv\.q$"])), images()
    state = copy.deepcopy(net.state_dict())
    other = svf.decompose(make(seed=1), ["qkv", r"qkv\.q$"])
    if merged:
        svf.merge(other)
        svf.merge(net)
    with mock.patch("fss_svf.svf.loading.svd", side_effect=AssertionError("an SVD")):
        other.load_state_dict(state)
    assert torch.equal(run(other, x), run(net, x))
    restored = svf.decompose(make().to("meta"), ["qkv", r"qkv\.q$"])
    restored.load_state_dict(state, assign=True)
    svf.unmerge(net)
    assert torch.equal(run(restored.eval(), x), run(net, x))


def test_a_plain_state_dict_put_into_its_own():
    net, other, x = move(svf.decompose(make())), make(seed=1), images()
    net.load_state_dict(net.state_dict() | other.state_dict())
    assert torch.equal(run(net, x), run(other, x))


def test_s_alone_and_damaged_states():
    net, plain = move(svf.decompose(make(), ["qkv"])), make().state_dict()
    own = copy.deepcopy(net.state_dict())
    other = svf.decompose(make(seed=1), ["qkv"])
    other.load_state_dict(plain | {name: v for name, v in own.items() if name.endswith(".S")}, strict=False)
    assert torch.equal(dict(svf.layers(other))[f"{QKV}.v"].S, own[f"{QKV}.v.S"])
    close(run(other, images()), run(net, images()))
    without_s = {name: value for name, value in own.items() if not name.endswith(".v.S")}
    net.load_state_dict(without_s, strict=False)
    assert torch.equal(dict(svf.layers(net))[f"{QKV}.v"].S, own[f"{QKV}.v.S0"])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"blocks.1.attn.qkv.v.weight comes with U of its factors"):
        net.load_state_dict(plain | {f"{QKV}.v.U": own[f"{QKV}.v.U"] + 1, f"{QKV}.weight": plain[f"{QKV}.weight"] + 1})
    assert all(torch.equal(before[f"{QKV}{n}"], net.state_dict()[f"{QKV}{n}"]) for n in (".weight", ".v.U", ".v.S"))
    nan = {f"{QKV}.weight": plain[f"{QKV}.weight"] * float("nan")}
    with pytest.raises(RuntimeError, match=r"blocks.1.attn.qkv.v.weight holds NaN or infinity"):
        net.load_state_dict(plain | nan, strict=False)


def test_layers_that_share_a_weight_share_the_parts():
    net = make()
    net.blocks[1].attn.qkv.weight = net.blocks[0].attn.qkv.weight
    before = run(net, images())
    move(svf.decompose(net, [r"blocks\.[01]\.attn\.qkv"]))
    assert net.blocks[1].attn.qkv.v.S is net.blocks[0].attn.qkv.v.S
    moved = run(net, images())
    assert not torch.equal(moved, before)
    exported = svf.to_plain(net)
    assert exported.blocks[1].attn.qkv.weight is exported.blocks[0].attn.qkv.weight
    close(run(exported, images()), moved)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's own tools


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_copies_and_pickles_are_ones_of_their_own(kind):
    net, x = move(svf.decompose(make(kind), execution="auto")), images(kind)
    expected = run(net, x)
    file = io.BytesIO()
    pickle.dump(net, file)
    for other in (copy.deepcopy(net), pickle.loads(file.getvalue())):
        assert torch.equal(run(other, x), expected)
        move(other)
        assert not torch.equal(run(other, x), expected)
        assert torch.equal(run(net, x), expected)


@pytest.mark.parametrize("execution", ["rebuilt", "auto"])
@pytest.mark.parametrize("kind", ["vit", "dinov3", "eva"])
def test_compiled_in_one_graph(kind, execution):
    net = svf.decompose(make(kind), [r"^blocks\.[12]\.", r"qkv\.q$"], execution=execution)
    move(net)
    x = images(kind)
    expected = net(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in svf.trainable_parameters(net)}
    net.zero_grad()
    torch._dynamo.reset()
    found = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    found.square().sum().backward()
    close(found.detach(), expected.detach())
    for name, p in svf.trainable_parameters(net):
        assert float((p.grad - gradients[name]).abs().max()) <= 1e-9 * max(float(gradients[name].abs().max()), 1e-3)


@pytest.mark.parametrize("execution", ["rebuilt", "auto", "factored"])
def test_autocast_runs_in_bfloat16_and_stays_close(execution):
    net, x = svf.decompose(make(dtype=torch.float32), [r"^blocks\."], execution=execution), images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        before = make(dtype=torch.float32)(x)
        if execution == "rebuilt":
            assert torch.equal(net(x), before)
        y = net(x)
    y.float().square().sum().backward()
    y = y.detach()
    assert float((y - before).abs().max()) <= 5e-2 * float(before.abs().max())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for _, p in svf.trainable_parameters(net))


def test_casts_and_devices():
    net = svf.decompose(make(dtype=torch.float32)).to(torch.bfloat16)
    assert net.get_submodule(QKV).pretrained.dtype == torch.bfloat16
    assert net.get_submodule(QKV).v.S.dtype == torch.float32
    assert net(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert net.to("meta").get_submodule(QKV).v.U.is_meta


def test_reset_parameters_makes_new_factors():
    qkv = svf.decompose(make(), ["qkv"]).get_submodule(QKV)
    before = qkv.pretrained.clone()
    qkv.reset_parameters()
    assert not torch.equal(qkv.pretrained, before)
    torch.testing.assert_close(qkv.v.S[0], torch.linalg.svdvals(qkv.pretrained[96:]))
    assert torch.equal(qkv.weight, qkv.pretrained)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_below_the_first_tuned_one_run_without_a_graph(kind):
    net = make(kind)
    swin = kind.startswith("swin")
    blocks = [layer.blocks[0] for layer in net.layers] if swin else list(net.blocks)
    last = len(blocks) - 1
    svf.decompose(net, [rf"^layers\.{last}\.blocks" if swin else rf"^blocks\.{last}\."], execution="auto")
    outputs = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: outputs.append(out))
    net(images(kind))
    assert [out.grad_fn is None for out in outputs] == [True] * last + [False]


def test_dinov2_small_trains_as_many_values_as_its_matrices_have(tmp_path: Path):
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0).requires_grad_(False)
    shapes = {n: p.shape for n, p in net.named_parameters() if n.startswith("blocks.") and p.dim() == 2}
    # V is a third of qkv's rows; Q and K do not train.
    expected = sum(min(m // 3 if "qkv" in n else m, k) for n, (m, k) in shapes.items())
    svf.decompose(net, [r"^blocks\."])
    trains, every = (
        sum(p.numel() for p in net.parameters() if p.requires_grad),
        sum(m * k for m, k in shapes.values()),
    )
    svf.save_adapter(net, tmp_path / "adapter")
    size = (tmp_path / "adapter").stat().st_size
    print(f"DINOv2-S: {trains:,} values train beside {every:,} in matrices of blocks, adapter {size:,} bytes")
    assert trains == expected == 12 * 4 * 384 == 18_432
    assert 4 * trains < size < 4 * trains + 15_000
