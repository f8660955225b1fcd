"""fss_svf.svf: exactness, gradients, merging, disabling, selection, ties, adapters, and life with torch's own tools."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fss_svf import svf

# (in channels, out channels, further arguments of nn.Conv2d)
CONVS: dict[str, tuple[int, int, dict]] = {
    "1x1": (6, 10, {"kernel_size": 1}),
    "3x3": (6, 10, {"kernel_size": 3}),
    "1x3": (6, 10, {"kernel_size": (1, 3)}),
    "7x7": (3, 10, {"kernel_size": 7}),
    "tall": (2, 40, {"kernel_size": 3}),
    "stride": (6, 10, {"kernel_size": 3, "stride": (2, 1)}),
    "padding": (6, 10, {"kernel_size": 3, "padding": (1, 2)}),
    "same": (6, 10, {"kernel_size": (3, 4), "padding": "same"}),
    "reflect": (6, 10, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "replicate": (6, 10, {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"}),
    "circular": (6, 10, {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}),
    "dilation": (6, 10, {"kernel_size": 3, "dilation": (1, 2), "padding": 2}),
    "groups": (6, 9, {"kernel_size": 3, "groups": 3}),
    "depthwise": (6, 6, {"kernel_size": 3, "groups": 6}),
    "depthwise, two each": (6, 12, {"kernel_size": 3, "groups": 6, "padding": 1, "padding_mode": "reflect"}),
    "no bias": (6, 10, {"kernel_size": 3, "bias": False}),
    "one in": (1, 10, {"kernel_size": 3}),
    "one out": (6, 1, {"kernel_size": 3}),
    "one in, one out": (1, 1, {"kernel_size": 3}),
}
LINEARS: dict[str, tuple[int, int, dict]] = {
    "linear, wide": (20, 5, {}),
    "linear, tall": (5, 20, {}),
    "linear, one out": (7, 1, {}),
    "linear, no bias": (8, 8, {"bias": False}),
}
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.usefixtures("one_thread", "seeded"),
]
every_layer = pytest.mark.parametrize("case", [*CONVS, *LINEARS])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)


def make(case: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A plain layer and an input for it."""
    if case in LINEARS:
        n_in, n_out, arguments = LINEARS[case]
        return nn.Linear(n_in, n_out, dtype=dtype, **arguments), torch.randn(2, 3, n_in, dtype=dtype)
    n_in, n_out, arguments = CONVS[case]
    return nn.Conv2d(n_in, n_out, dtype=dtype, **arguments), torch.randn(2, n_in, 9, 11, dtype=dtype)


def factored(layer: svf.SVFLayer, x: Tensor) -> Tensor:
    """What an SVF layer means, from torch's own layers alone: kernels Vh, then S as a scale, then a 1x1 conv U."""
    groups, rows, rank = layer.U.shape
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            y = (x @ layer.Vh[0].T * layer.S[0]) @ layer.U[0].T
            return y if layer.bias is None else y + layer.bias
        first = nn.Conv2d(
            layer.in_channels, groups * rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, groups,
            bias=False, padding_mode=layer.padding_mode, dtype=x.dtype,
        )  # fmt: skip
        first.weight.copy_(layer.Vh.reshape(first.weight.shape))
        second = nn.Conv2d(groups * rank, groups * rows, 1, groups=groups, bias=False, dtype=x.dtype)
        second.weight.copy_(layer.U.reshape(second.weight.shape))
        y = second(first(x) * layer.S.reshape(1, -1, 1, 1))
        return y if layer.bias is None else y + layer.bias.reshape(1, -1, 1, 1)


def change(model: nn.Module) -> None:
    """As training would: every singular value becomes another one."""
    with torch.no_grad():
        for _, s in svf.singular_values(model):
            s.mul_(0.5 + torch.rand_like(s)).add_(0.1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def net() -> nn.Sequential:
    """A model with a layer of every sort, in eval mode for the BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(12 * 9, 5),
    ).eval()


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def svf_names(model: nn.Module) -> list[str]:
    return [name for name, _ in svf.layers(model)]


# Exactness


@every_layer
@every_dtype
def test_full_rank_keeps_every_output_bit(case: str, dtype: torch.dtype) -> None:
    layer, x = make(case, dtype)
    before = layer(x)
    after = svf.decompose(layer)(x)
    assert after.dtype == dtype
    assert torch.equal(after, before)


@every_layer
def test_layer_is_the_factored_form_at_any_s(case: str) -> None:
    layer, x = make(case)
    svf.decompose(layer)
    assert relative_error(layer(x), factored(layer, x)) < 1e-12
    before = layer(x)
    change(layer)
    assert relative_error(layer(x), factored(layer, x)) < 1e-12
    assert relative_error(layer(x), before) > 1e-2  # or nothing was compared


@every_layer
def test_float32_factored_form_is_within_1e_5(case: str) -> None:
    layer, x = make(case, torch.float32)
    before = layer(x)
    svf.decompose(layer)
    assert relative_error(factored(layer, x), before) < 1e-5
    change(layer)
    assert relative_error(layer(x), factored(layer, x)) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
@pytest.mark.parametrize("case", ["3x3", "groups", "linear, tall"])
def test_half_precision_layers_follow_s(case: str, dtype: torch.dtype, tolerance: float) -> None:
    # Their factors are rounded, so the weight follows S only as exactly as the dtype can say.
    layer, _ = make(case, dtype)
    svf.decompose(layer)
    change(layer)
    u, s, vh = (t.detach().double() for t in (layer.U, layer.S, layer.Vh))
    expected = ((u * s.unsqueeze(1)) @ vh).reshape(layer.weight.shape)
    assert layer.effective_weight().dtype == dtype
    assert relative_error(layer.effective_weight().double(), expected) < tolerance


@every_layer
def test_factors_are_orthonormal_sorted_and_rebuild_the_weight(case: str) -> None:
    layer, _ = make(case)
    weight = layer.weight.detach().clone()
    svf.decompose(layer)
    eye = torch.eye(layer.rank, dtype=torch.float64).expand(layer.U.shape[0], -1, -1)
    assert torch.allclose(layer.U.mT @ layer.U, eye, atol=1e-12)
    assert torch.allclose(layer.Vh @ layer.Vh.mT, eye, atol=1e-12)
    assert (layer.S[:, :-1] >= layer.S[:, 1:]).all()
    assert torch.allclose(((layer.U * layer.S.unsqueeze(1)) @ layer.Vh).reshape(weight.shape), weight, atol=1e-12)
    assert torch.equal(layer.S, layer.S0)


def test_every_group_is_a_matrix_of_its_own() -> None:
    layer = nn.Conv2d(6, 9, 3, groups=3, dtype=torch.float64)
    svf.decompose(layer)
    for g, block in enumerate(layer.weight.detach().numpy().reshape(3, 3, 18)):
        assert np.allclose(layer.S[g].detach().numpy(), np.linalg.svd(block, compute_uv=False))


def test_groups_of_uneven_rank() -> None:
    layer = nn.Conv2d(6, 9, 3, groups=3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0:3] = 0
        layer.weight[4] = 2 * layer.weight[3]
        layer.weight[5] = -layer.weight[3]
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    before = layer(x)
    svf.decompose(layer)
    assert [(s > 1e-9).sum().item() for s in layer.S] == [0, 1, 3]
    assert torch.equal(layer(x), before)
    change(layer)  # singular values that were zero may grow
    assert relative_error(layer(x), factored(layer, x)) < 1e-12


@pytest.mark.parametrize("case", ["3x3", "groups", "depthwise"])
def test_channels_last_is_kept(case: str) -> None:
    layer, x = make(case, torch.float32)
    layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    before = layer(x)
    svf.decompose(layer)
    assert torch.equal(layer(x), before)
    # Else every forward would convert the rebuilt weight again.
    assert layer.effective_weight().is_contiguous(memory_format=torch.channels_last)
    change(layer)
    assert relative_error(layer(x), factored(layer, x)) < 1e-5


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Conv2d(1, 8, 3), [(1, 8, 8), (1, 8), (1, 8, 9)]),
        (nn.Conv2d(8, 1, 3), [(1, 1, 1), (1, 1), (1, 1, 72)]),
        (nn.Conv2d(1, 20, 3), [(1, 20, 9), (1, 9), (1, 9, 9)]),
        (nn.Conv2d(8, 8, 3, groups=8), [(8, 1, 1), (8, 1), (8, 1, 9)]),
        (nn.Conv2d(8, 4, 3, groups=2), [(2, 2, 2), (2, 2), (2, 2, 36)]),
        (nn.Linear(7, 3), [(1, 3, 3), (1, 3), (1, 3, 7)]),
    ],
    ids=str,
)
def test_shapes_of_the_factors(layer: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    svf.decompose(layer)
    assert [tuple(t.shape) for t in (layer.U, layer.S, layer.Vh)] == shapes


def test_autocast_does_not_touch_the_rebuilt_weight() -> None:
    for rank in (None, 9):  # both forms of the rebuilding
        layer, x = make("3x3", torch.float32)
        svf.decompose(layer, rank=rank)
        assert layer.exact == (rank is None)
        change(layer)
        plain = layer.effective_weight()
        with torch.autocast("cpu", torch.bfloat16):
            rebuilt = layer.effective_weight()
            assert layer(x).dtype == torch.bfloat16  # autocast is on
        assert rebuilt.dtype == torch.float32
        assert torch.equal(rebuilt, plain)


# Gradients


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("case", ["3x3", "stride", "reflect", "groups", "depthwise", "one in", "linear, tall"])
def test_gradient_of_s(case: str, rank: int | None) -> None:
    layer, x = make(case)
    plain = copy.deepcopy(layer)
    svf.decompose(layer, rank=rank)
    change(layer)
    away = torch.randn_like(layer(x))

    def loss(model: nn.Module) -> Tensor:
        return (model(x).sin() * away).sum()

    loss(layer).backward()

    # u_i^T G v_i with G the gradient of the plain layer's weight
    with torch.no_grad():
        plain.weight.copy_(layer.effective_weight())
    loss(plain).backward()
    big = plain.weight.grad.reshape(layer.U.shape[0], layer.U.shape[1], -1)
    projected = torch.einsum("gmr,gmn,grn->gr", layer.U, big, layer.Vh)
    assert torch.allclose(layer.S.grad, projected, rtol=1e-9, atol=1e-11)

    # central differences, which know nothing of autograd
    step, numeric = 1e-6, torch.zeros_like(layer.S)
    with torch.no_grad():
        for at in np.ndindex(*layer.S.shape):
            sides = []
            for sign in (1, -1):
                layer.S[at] += sign * step
                sides.append(loss(layer))
                layer.S[at] -= sign * step
            numeric[at] = (sides[0] - sides[1]) / (2 * step)
    assert torch.allclose(layer.S.grad, numeric, rtol=1e-5, atol=1e-7)


def test_only_s_gets_gradients() -> None:
    model = net().requires_grad_(False)
    svf.decompose(model)
    model(image()).square().sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"0.S", "3.S", "5.S"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.S", "3.S", "5.S"}


def test_a_training_step_changes_s_alone() -> None:
    model = svf.decompose(net().requires_grad_(False))
    before, x = snapshot(model), image()
    # Handed every parameter: what is frozen must stay even so.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    after = snapshot(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"0.S", "3.S", "5.S"}
    assert model(x).square().sum() < loss


# Merging


def test_merged_outputs_are_the_unmerged_ones_bit_for_bit() -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    unmerged = model(x)
    assert svf.merge(model) is model
    assert all(layer.merged for _, layer in svf.layers(model))
    assert torch.equal(model(x), unmerged)
    assert svf.unmerge(model) is model
    assert not any(layer.merged for _, layer in svf.layers(model))
    assert torch.equal(model(x), unmerged)


@pytest.mark.parametrize("case", ["3x3", "groups", "linear, wide"])
def test_a_merged_layer_is_the_plain_layer_with_the_effective_weight(case: str) -> None:
    layer, x = make(case, torch.float32)
    plain = copy.deepcopy(layer)
    svf.decompose(layer)
    change(layer)
    plain.weight.data = layer.effective_weight().detach()
    assert torch.equal(svf.merge(layer)(x), plain(x))


@pytest.mark.parametrize("rank", [None, 2])
def test_merging_leaves_the_state_dict_alone_and_unmerging_restores(rank: int | None) -> None:
    model = svf.decompose(net(), rank=rank)
    change(model)
    before = snapshot(model)
    svf.merge(model)
    assert same(before, model.state_dict())
    svf.unmerge(model)
    assert same(before, model.state_dict())
    model(image()).sum().backward()
    assert all(s.grad is not None for _, s in svf.singular_values(model))  # training goes on


def test_s_changed_after_a_merge_takes_effect_at_the_next_merge_and_at_unmerge() -> None:
    model, x = svf.decompose(net()), image()
    svf.merge(model)
    first = model(x)
    change(model)
    assert torch.equal(model(x), first)
    second = svf.merge(model)(x)
    assert not torch.equal(second, first)
    assert torch.equal(svf.unmerge(model)(x), second)


def test_forward_while_merged_rebuilds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = svf.decompose(net()), image()
    calls = []
    rebuild = svf.SVFLayer.effective_weight
    monkeypatch.setattr(svf.SVFLayer, "effective_weight", lambda layer: calls.append(layer) or rebuild(layer))
    model(x)
    assert len(calls) == 3
    svf.merge(model)
    calls.clear()
    model(x)
    assert not calls


def test_deepcopy_while_merged() -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    expected = svf.merge(model)(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    svf.unmerge(twin)
    change(twin)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)  # still merged, with its own S


def test_dtype_change_while_merged() -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    expected = svf.merge(model)(x)
    model.double()
    merged = model(x.double())
    assert merged.dtype == torch.float64
    assert relative_error(merged, expected.double()) < 1e-5
    assert relative_error(svf.unmerge(model)(x.double()), merged) < 1e-5


# disabled()


@pytest.mark.parametrize("rank", [None, 2])
def test_disabled_is_the_pretrained_model_bit_for_bit(rank: int | None) -> None:
    model, x = net(), image()
    pretrained = model(x)
    svf.decompose(model, rank=rank)
    change(model)
    tuned = model(x)
    for merged in (False, True):
        if merged:
            svf.merge(model)
        with svf.disabled(model) as inside:
            assert inside is model
            assert torch.equal(model(x), pretrained)
        assert torch.equal(model(x), tuned)
    assert not torch.equal(tuned, pretrained)


def test_disabled_ends_with_an_exception() -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    tuned = model(x)

    def fail() -> None:
        with svf.disabled(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model(x), tuned)


def test_disabled_nests_and_takes_a_part_of_a_model() -> None:
    model, x = net(), image()
    pretrained = model(x)
    svf.decompose(model)
    change(model)
    with svf.disabled(model):
        with svf.disabled(model[0]):
            assert torch.equal(model(x), pretrained)
        assert torch.equal(model(x), pretrained)  # the inner end does not enable what the outer disabled
    with svf.disabled(model[0]):
        assert not torch.equal(model(x), pretrained)  # the other two layers are tuned


def test_plain_copy_is_the_pretrained_model_bit_for_bit_and_the_model_stays() -> None:
    model, x = net(), image()
    pretrained, names = model(x), set(model.state_dict())
    svf.decompose(model)
    change(model)
    tuned = model(x)
    svf.merge(model)
    copied = svf.plain_copy(model)
    assert not list(svf.layers(copied))
    assert set(copied.state_dict()) == names
    assert type(copied[0]) is type(net()[0])
    assert torch.equal(copied(x), pretrained)
    svf.unmerge(model)
    assert torch.equal(model(x), tuned)
    svf.decompose(copied)  # a plain layer in every respect
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


# Rank


def discarded(weight: Tensor, rank: int) -> float:
    """Relative Frobenius norm of what a cut to `rank` loses, by numpy's SVD."""
    s = np.linalg.svd(weight.detach().double().flatten(1).numpy(), compute_uv=False)
    return float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))


@pytest.mark.parametrize(
    ("rank", "multiple", "expected"),
    [
        (None, 1, 27),
        (27, 1, 27),
        (10, 1, 10),
        (1, 1, 1),
        (None, 4, 24),
        (10, 4, 8),
        (2, 4, 2),  # flooring may not raise the rank above what was asked for, nor give none
        (None, 50, 27),
    ],
)
def test_rank_and_rank_multiple(rank: int | None, multiple: int, expected: int) -> None:
    layer = nn.Conv2d(3, 64, 3, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    svf.decompose(layer, rank=rank, rank_multiple=multiple)
    assert layer.rank == layer.S.shape[1] == expected
    assert torch.equal(layer.weight, weight)
    lost = float((layer.effective_weight().detach() - weight).norm() / weight.norm())
    assert lost == pytest.approx(discarded(weight, expected), abs=1e-12)
    assert (lost > 0.01) == (expected < 27)


@pytest.mark.parametrize("case", ["reflect", "groups", "linear, wide"])
def test_a_cut_layer_is_the_factored_form(case: str) -> None:
    layer, x = make(case)
    full = layer(x)
    svf.decompose(layer, rank=2)
    assert relative_error(layer(x), factored(layer, x)) < 1e-12
    assert relative_error(layer(x), full) > 1e-2
    change(layer)
    assert relative_error(layer(x), factored(layer, x)) < 1e-12


@pytest.mark.parametrize(("arguments", "words"), [
    ({"rank": 28}, ["rank 28", "27"]),
    ({"rank": {"st": 28}}, ["rank 28", "27"]),
])  # fmt: skip
def test_ranks_above_the_matrix_name_the_layer_and_the_numbers(arguments: dict, words: list[str]) -> None:
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 64, 3)})
    with pytest.raises(ValueError, match="layer 'stem'") as caught:
        svf.decompose(model, **arguments)
    assert all(word in str(caught.value) for word in words)


# Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=r"layer '3'.*NaN or infinity"):
        svf.decompose(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("hook", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_is_refused_by_name(hook: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"layer '0'.*no Parameter"):
        svf.decompose(nn.Sequential(hook(nn.Conv2d(3, 4, 3))))


@pytest.mark.parametrize("patterns", [{"include": ["^0$", "layer9"]}, {"exclude": ["layer9"]}])
def test_a_pattern_that_matches_nothing_is_refused(patterns: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="'layer9' matches none of the 3"):
        svf.decompose(net(), **patterns)


def test_nothing_to_decompose_is_refused() -> None:
    for model in (nn.Sequential(nn.ReLU()), svf.decompose(net())):  # decomposing twice finds nothing either
        with pytest.raises(ValueError, match="no Conv2d or Linear layer left"):
            svf.decompose(model)


def test_a_refused_model_is_as_it_was() -> None:
    # A retry with a lower rank would else leave the first layers at the refused one.
    model = net()
    before, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="'3'"):
        svf.decompose(model, rank=8)  # fits layer 0, not layer 3
    assert type(model[0]) is nn.Conv2d
    assert same(before, model.state_dict())
    assert [p.requires_grad for p in model.parameters()] == flags


# Selection and names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["layer1.conv1", "layer1.conv2", "layer1.downsample.0",
                  "layer10.conv1", "layer10.conv2", "layer10.downsample.0", "fc"]),
        (["^layer1\\."], [], ["layer1.conv1", "layer1.conv2", "layer1.downsample.0"]),
        (["conv2$", "fc"], [], ["layer1.conv2", "layer10.conv2", "fc"]),
        ([], ["^layer", ], ["fc"]),
        (["layer"], ["downsample", "10"], ["layer1.conv1", "layer1.conv2"]),
        ("^fc", (), ["fc"]),  # a lone pattern is no list of one-letter patterns
        ([], "downsample|conv1|10", ["layer1.conv2", "fc"]),
    ],
)  # fmt: skip
def test_include_and_exclude(include: list[str], exclude: list[str], expected: list[str]) -> None:
    model = nn.ModuleDict({"layer1": Block(), "layer10": Block(), "fc": nn.Linear(2, 2)})
    assert svf.decompose(model, include, exclude) is model
    assert svf_names(model) == expected
    assert [name for name, _ in svf.singular_values(model)] == [f"{name}.S" for name in expected]
    types = {name: type(m) for name, m in model.named_modules()}
    assert all(types[name] in (svf.SVFConv2d, svf.SVFLinear) for name in expected)
    assert sum(t in (nn.Conv2d, nn.Linear) for t in types.values()) == 7 - len(expected)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.Linear(3, 4)], ids=str)
def test_a_bare_layer_is_converted_and_its_name_is_empty(layer: nn.Module) -> None:
    assert svf.decompose(layer) is layer
    assert isinstance(layer, svf.SVFLayer)
    assert svf_names(layer) == [""]
    assert [name for name, _ in svf.singular_values(layer)] == ["S"]


def test_decomposing_in_two_steps() -> None:
    model = svf.decompose(net(), ["^0$"])
    first = model[0].S
    svf.decompose(model, ["^3$"])
    assert svf_names(model) == ["0", "3"]
    assert model[0].S is first


def test_singular_values_are_those_of_svf_layers_only() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Module())
    model[1].S = nn.Parameter(torch.ones(2))
    svf.decompose(model)
    assert [name for name, _ in svf.singular_values(model)] == ["0.S"]


class DoubledConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_is_left_alone() -> None:
    # Its forward is its own: as an SVFConv2d it would lose the doubling.
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), DoubledConv(4, 2, 1)), image()
    before = model(x)
    svf.decompose(model)
    assert svf_names(model) == ["0"]
    assert type(model[1]) is DoubledConv
    assert torch.equal(model(x), before)


def test_multihead_attention_works_on() -> None:
    # It reads out_proj.weight itself; out_proj is a subclass of Linear and stays plain.
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 3)})
    x = torch.randn(2, 5, 8)
    before = attention(x, x, x)[0]
    svf.decompose(model)
    assert svf_names(model) == ["head"]
    assert torch.equal(attention(x, x, x)[0], before)


@pytest.mark.filterwarnings("ignore:.*nested tensor.*")
def test_a_transformer_encoder_layer_follows_s_in_inference_too() -> None:
    # torch's fused inference path reads linear1.weight past its forward, that is past S.
    model, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    pretrained = model(x)
    svf.decompose(model)
    assert svf_names(model) == ["linear1", "linear2"]
    change(model)
    with torch.no_grad():
        fast = model(x)
    assert relative_error(fast, model(x)) < 1e-5
    assert relative_error(fast, pretrained) > 1e-2


# What stays as it was


def test_flags_devices_and_dtypes_stay() -> None:
    model = net().double()
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    modes = {name: m.training for name, m in model.named_modules()}
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    svf.decompose(model, exclude=["^5$"])
    assert {name: m.training for name, m in model.named_modules()} == modes
    now = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name for name in wants if now[name] != wants[name]} == {"0.weight", "3.weight"}
    assert {name for name in now.keys() - wants.keys() if now[name]} == {"0.S", "3.S"}
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float64}


@pytest.mark.parametrize("device", [
    "meta",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
])  # fmt: skip
def test_the_device_stays(device: str) -> None:
    model = net().to(device)
    svf.decompose(model)
    assert {t.device.type for t in model.state_dict().values()} == {device}
    assert model(image().to(device)).device.type == device


def test_hooks_stay() -> None:
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    svf.decompose(model)
    model(image())
    assert seen == [8]


def test_repr_tells_rank_and_state() -> None:
    model = svf.decompose(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)), rank=2)
    assert repr(model[0]) == "SVFConv2d(3, 4, kernel_size=(3, 3), stride=(2, 2), rank=2 (cut))"
    assert repr(svf.decompose(nn.Linear(5, 4))).endswith("bias=True, rank=4 (full))")
    assert "merged" in repr(svf.merge(model)[0])


# Ties


def test_a_layer_used_twice_stays_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
    model = nn.Sequential(conv, nn.Tanh(), conv)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = model(x)
    svf.decompose(model)
    assert model[0] is model[2] is conv
    assert torch.equal(model(x), before)
    assert len(list(svf.singular_values(model))) == 1
    change(model)
    expected = factored(conv, factored(conv, x).tanh())
    assert relative_error(model(x), expected) < 1e-12


def test_layers_of_one_weight_share_s() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3))
    model.double()[2].weight = model[0].weight
    x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    svf.decompose(model)
    assert model[0].S is model[2].S
    assert model[0].weight is model[2].weight
    assert model[0].U is model[2].U
    assert model[3].S is not model[0].S
    assert [name for name, _ in svf.singular_values(model)] == ["0.S", "3.S"]
    assert len(svf.adapter_state_dict(model)) == 3

    change(model)
    assert relative_error(model(x), factored(model[3], factored(model[2], factored(model[0], x).tanh()))) < 1e-12
    # One S takes the gradient of both uses.
    shared = torch.autograd.grad(model(x).sum(), model[0].S)[0]
    parts = copy.deepcopy(model)
    assert parts[0].S is parts[2].S  # a copy keeps the tie
    parts[2].S = nn.Parameter(parts[2].S.detach().clone())
    both = torch.autograd.grad(parts(x).sum(), [parts[0].S, parts[2].S])
    assert torch.allclose(shared, both[0] + both[1])


def test_one_weight_read_with_other_groups_is_another_matrix() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1, groups=2))
    model[1].weight = model[0].weight
    svf.decompose(model)
    assert model[0].S.shape == (1, 4)
    assert model[1].S.shape == (2, 2)


# Whole backbones


@pytest.mark.parametrize(("name", "include", "expected"), [
    ("resnet50", "^layer[234]", 12_544),
    ("resnet101", "^layer[234]", 25_600),
    ("vgg16_bn", r"^features\.(1[4-9]|[2-4]\d)$", 3_840),  # from the third max-pool on, as layers 2-4 of a ResNet
])  # fmt: skip
def test_trainable_counts(name: str, include: str, expected: int) -> None:
    with torch.device("meta"):  # shapes alone are decomposed: no SVD
        model = getattr(torchvision.models, name)(weights=None).requires_grad_(False)
        svf.decompose(model, [include])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert sum(layer.S.numel() for _, layer in svf.layers(model)) == expected


def stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        getattr(model, f"layer{i}").register_forward_hook(lambda m, arguments, y: found.append(y)) for i in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        found.append(model(x))
    for hook in hooks:
        hook.remove()
    return found


def test_resnet18_end_to_end(tmp_path: Path) -> None:
    model, x = torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 64, 64)
    plain = copy.deepcopy(model)
    before = stages(model, x)
    svf.decompose(model)
    assert len(svf_names(model)) == 21
    assert all(torch.equal(a, b) for a, b in zip(stages(model, x), before))

    # The same with U diag(S) Vh in place of the pretrained weights, so that the factors are what is compared.
    def rebuild() -> None:
        with torch.no_grad():
            for name, layer in svf.layers(model):
                weight = (layer.U * layer.S.unsqueeze(1)) @ layer.Vh
                plain.get_submodule(name).weight.copy_(weight.reshape(layer.weight.shape))

    rebuild()
    assert max(relative_error(a, b) for a, b in zip(stages(plain, x), before)) < 1e-5
    with torch.no_grad():
        for _, s in svf.singular_values(model):
            s.mul_(1 + 0.1 * torch.randn_like(s))
    rebuild()
    tuned = stages(model, x)
    assert max(relative_error(a, b) for a, b in zip(stages(plain, x), tuned)) < 1e-5

    svf.save_adapter(model, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        for _, layer in svf.layers(model):
            layer.S.copy_(layer.S0)
    assert torch.equal(stages(model, x)[-1], before[-1])
    svf.load_adapter(svf.merge(model), tmp_path / "adapter.safetensors")
    assert torch.equal(stages(model, x)[-1], tuned[-1])


def test_a_model_decomposed_on_meta_takes_a_checkpoint() -> None:
    model, x = svf.decompose(net(), rank=3, rank_multiple=3), image()
    change(model)
    with torch.device("meta"):
        shell = svf.decompose(net(), rank=3, rank_multiple=3)
    shell.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(shell(x), model(x))


# Adapters


def saved(model: nn.Module, folder: Path) -> Path:
    path = folder / "adapter.safetensors"
    svf.save_adapter(model, path)
    return path


@pytest.mark.parametrize("rank", [None, 2])
def test_adapter_round_trip_gives_the_same_logits(tmp_path: Path, rank: int | None) -> None:
    pretrained, x = net(), image()
    model = svf.decompose(copy.deepcopy(pretrained), rank=rank)
    change(model)
    path = saved(model, tmp_path)
    other = svf.decompose(copy.deepcopy(pretrained), rank=rank)
    assert not torch.equal(other(x), model(x))
    svf.load_adapter(other, str(path))
    assert torch.equal(other(x), model(x))
    assert load_file(path).keys() == {"0.S", "3.S", "5.S"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing left lying about


def test_adapter_of_a_bare_layer(tmp_path: Path) -> None:
    layer = svf.decompose(nn.Linear(4, 3))
    change(layer)
    trained = layer.S.detach().clone()
    path = saved(layer, tmp_path)
    change(layer)
    svf.load_adapter(layer, path)
    assert torch.equal(layer.S, trained)


def test_adapter_of_a_resnet50_is_small(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50(weights=None)
        svf.decompose(model, ["^layer[234]"])
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.zero_()  # else what the memory held, which may be NaN
    path = tmp_path / "adapter.safetensors"
    svf.save_adapter(model, path, batchnorm=False)
    assert 12_544 * 4 < path.stat().st_size < 60_000
    # What BatchNorm was is not known of a model decomposed without values, so it goes with it.
    svf.save_adapter(model, path)
    assert 450_000 < path.stat().st_size < 550_000


def test_loading_while_merged_takes_effect(tmp_path: Path) -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    tuned, path = model(x), saved(model, tmp_path)
    change(model)
    svf.merge(model)
    svf.load_adapter(model, path)
    assert all(layer.merged for _, layer in svf.layers(model))
    assert torch.equal(model(x), tuned)
    assert torch.equal(svf.unmerge(model)(x), tuned)


def test_the_adapter_state_dict_is_a_copy() -> None:
    model = svf.decompose(net())
    state = svf.adapter_state_dict(model)
    before = {name: value.clone() for name, value in state.items()}
    change(model)
    assert same(state, before)
    svf.load_adapter_state_dict(model, state)
    assert same(svf.adapter_state_dict(model), before)


def test_base_hash_covers_weights_and_names_and_not_s() -> None:
    base = svf.decompose(net())
    reference = svf.base_hash(base)
    assert len(reference) == 16
    assert int(reference, 16) >= 0

    change(base)
    assert svf.base_hash(svf.merge(base)) == reference
    assert svf.base_hash(base.to(memory_format=torch.channels_last)) == reference
    with torch.no_grad():
        base[5].weight[0, 0] += 1e-3
    assert svf.base_hash(base) != reference

    layer = nn.Linear(2, 2)
    names = [svf.base_hash(svf.decompose(nn.ModuleDict({name: copy.deepcopy(layer)}))) for name in ("a", "b")]
    assert names[0] != names[1]


def test_other_base_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    model, other = svf.decompose(net()), svf.decompose(net())
    path, before = saved(model, tmp_path), snapshot(other)
    with pytest.raises(svf.AdapterError) as caught:
        svf.load_adapter(other, path)
    assert svf.base_hash(model) in str(caught.value)
    assert svf.base_hash(other) in str(caught.value)
    assert same(before, snapshot(other))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, r"5(\.S)? is not in the adapter"),
        ({"include": ["^0$"]}, r"3(\.S)? is not (of )?an SVF layer"),
        ({"exclude": ["^5$"], "rank": 2}, r"0 has rank 8, in the model 2|0.S is \(1, 8\), in the model \(1, 2\)"),
        (
            {"exclude": ["^5$"], "parametrisation": "log"},
            r"0 trains S \(direct\), in the model S \(log\)|0.S_log_scale is not",
        ),
        ({"exclude": ["^5$"], "train": "SU"}, r"0 trains S \(direct\), in the model S\+U \(direct\)|0.U is not in the"),
    ],
    ids=["missing", "left over", "wrong rank", "other parametrisation", "more trains"],
)
@pytest.mark.parametrize("by_file", [True, False])
def test_other_layers_and_ranks_are_refused(tmp_path: Path, by_file: bool, arguments: dict, words: str) -> None:
    # From one net: with the right base weights, the message must not blame them.
    pretrained = net()
    model = svf.decompose(copy.deepcopy(pretrained), exclude=["^5$"])
    other = svf.decompose(pretrained, **arguments)
    path, before = saved(model, tmp_path), snapshot(other)
    load, source = (svf.load_adapter, path) if by_file else (svf.load_adapter_state_dict, svf.adapter_state_dict(model))
    with pytest.raises(svf.AdapterError, match=words):
        load(other, source)
    assert same(before, snapshot(other))  # all or nothing


def test_damaged_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    model = svf.decompose(net())
    whole = saved(model, tmp_path).read_bytes()
    broken = tmp_path / "broken"
    for content in (b"", b"not an adapter at all", whole[:20], whole[:-1], b"\xff" * len(whole)):
        broken.write_bytes(content)
        with pytest.raises(svf.AdapterError, match="broken: not a readable"):
            svf.load_adapter(model, broken)
    with pytest.raises(svf.AdapterError, match="absent: no such adapter"):
        svf.load_adapter(model, tmp_path / "absent")
    with pytest.raises(svf.AdapterError, match=str(tmp_path)):
        svf.load_adapter(model, tmp_path)


@pytest.mark.parametrize(("metadata", "words"), [
    (None, "no adapter of svf.save_adapter"),
    ({"format": "fss-svf adapter 1", "base_hash": "0"}, "'fss-svf adapter 1', this version reads .*; save it again"),
    ({"format": "fss-svf adapter 2", "base_hash": "0"}, "metadata is damaged"),
    ({"format": "fss-svf adapter 2", "base_hash": "0", "dtype": "", "layers": '[["0", 8, "W", "direct", 0]]'},
     "metadata is damaged .*train"),
])  # fmt: skip
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, metadata: dict | None, words: str) -> None:
    model = svf.decompose(net())
    save_file(svf.adapter_state_dict(model), tmp_path / "foreign", metadata=metadata)
    with pytest.raises(svf.AdapterError, match=f"foreign: .*{words}"):
        svf.load_adapter(model, tmp_path / "foreign")


def test_a_plain_model_has_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(svf.AdapterError, match="no SVF layer"):
        svf.save_adapter(net(), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = svf.decompose(net())
    path = saved(model, tmp_path)
    before = path.read_bytes()

    def half(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("fss_svf.svf.adapter_file.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        svf.save_adapter(model, path)
    assert path.read_bytes() == before


# report()


def test_report_of_a_full_decomposition() -> None:
    lines = svf.report(svf.decompose(net()))
    assert [(line.name, line.shape, line.rank, line.trainable) for line in lines] == [
        ("0", (8, 3, 3, 3), 8, 8),
        ("3", (12, 2, 3, 3), 3, 12),
        ("5", (5, 108), 5, 5),
    ]
    assert all(line.error < 1e-5 for line in lines)


def test_report_errors_are_the_discarded_singular_values_also_after_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Linear(64, 30)).double()
    expected = [discarded(model[0].weight, 24), discarded(model[1].weight, 28)]
    svf.decompose(model, rank_multiple=4)
    assert [line.error for line in svf.report(model)] == pytest.approx(expected)
    change(model)  # S moved is no loss of the cut
    assert [line.error for line in svf.report(model)] == pytest.approx(expected)


# torch's own tools


def test_deepcopy_is_independent() -> None:
    model, x = svf.decompose(net()), image()
    twin = copy.deepcopy(model)
    before = model(x)
    change(twin)
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)


def through_pickle(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return pickle.loads(pickle.dumps(state))


def through_torch_save(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("carry", [through_pickle, through_torch_save])
def test_a_state_dict_survives_the_disk(carry: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    model, other, x = svf.decompose(net()), svf.decompose(net()), image()
    change(model)
    other.load_state_dict(carry(svf.merge(model).state_dict()))  # strict: merging adds no key
    assert torch.equal(other(x), model(x))


def test_a_whole_model_pickles() -> None:
    model, x = svf.decompose(net(), rank=2), image()
    change(model)
    svf.merge(model)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(x), model(x))
    assert torch.equal(svf.unmerge(twin)(x), model(x))


@pytest.mark.parametrize("merged", [False, True])
def test_export(merged: bool) -> None:
    model, x = svf.decompose(net(), rank=3), image()
    change(model)
    if merged:
        svf.merge(model)
    exported = torch.export.export(model, (x,)).module()
    assert relative_error(exported(x), model(x)) < 1e-5


def test_compile() -> None:
    model, x = svf.decompose(net()), image()
    change(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # fullgraph: no break may hide in the layers
    y = compiled(x)
    assert relative_error(y, model(x)) < 1e-5
    found = torch.autograd.grad(y.sum(), model[0].S)[0]
    assert torch.allclose(found, torch.autograd.grad(model(x).sum(), model[0].S)[0], rtol=1e-4, atol=1e-5)
    # A compiled model must not go on with what it was compiled for.
    tuned = model(x)
    with svf.disabled(model):
        assert relative_error(compiled(x), tuned) > 1e-2
    change(model)
    assert relative_error(compiled(x), model(x)) < 1e-5
    change(svf.merge(model))
    assert relative_error(compiled(x), model(x)) < 1e-5
