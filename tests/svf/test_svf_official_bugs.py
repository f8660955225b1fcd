"""Bugs of the official SVF code, one test each, that fss_svf.svf must not have."""

import pytest
import torch
from torch import Tensor, nn

from fss_svf import svf

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


def assert_stays_and_follows_s(layer: nn.Module, x: Tensor) -> None:
    """The output stays, and twice the singular values are twice the weight."""
    weight, before = layer.weight.detach().clone(), layer(x)
    svf.decompose(layer)
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.S.mul_(2)
    with_bias = 0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (x.dim() - 2))
    assert torch.allclose(layer(x) - with_bias, 2 * (before - with_bias), atol=1e-5)
    assert torch.allclose(layer.effective_weight(), 2 * weight, atol=1e-5)


def test_linear_is_replaced_but_never_filled() -> None:
    """The new layers of a nn.Linear kept their random start."""
    assert_stays_and_follows_s(nn.Linear(6, 4), torch.randn(3, 6))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_grouped_convolution_is_wrong_or_crashes(groups: int) -> None:
    """One SVD over all groups, and no groups in the new layers."""
    assert_stays_and_follows_s(nn.Conv2d(8, 16, 3, groups=groups), torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_is_dropped(mode: str) -> None:
    """The new layers padded with zeros."""
    conv, x = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode), torch.randn(2, 3, 6, 6)
    zeros = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    assert not torch.allclose(conv(x), zeros, atol=1e-3)  # or the mode would not matter here
    assert_stays_and_follows_s(conv, x)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_customised_rank_is_ignored(rank: int) -> None:
    """A rank asked for by the caller was not handed on."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3))
    svf.decompose(model, rank=rank)
    assert [layer.rank for _, layer in svf.layers(model)] == [rank] * 3
    assert [layer.exact for _, layer in svf.layers(model)] == [False, False, rank == 6]


def test_layers_are_excluded_by_exact_name_only() -> None:
    """A prefix such as "layer1" excluded nothing, silently."""
    model = nn.ModuleDict({
        "layer1": nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)),
        "layer2": nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)),
    })  # fmt: skip
    svf.decompose(model, exclude=["^layer1"])
    assert [name for name, _ in svf.layers(model)] == ["layer2.0", "layer2.1"]
    with pytest.raises(ValueError, match="'layer3' matches none"):
        svf.decompose(model, exclude=["layer3"])


@pytest.mark.parametrize("device", [
    "cpu",
    "meta",  # the one other device that every machine has
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
])  # fmt: skip
def test_all_comes_back_on_the_cpu_in_float32_in_train_mode_requiring_grad(device: str) -> None:
    """The replaced layers were new ones, with torch's defaults for all four."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(device, torch.float64)
    model.eval().requires_grad_(False)
    svf.decompose(model)
    tensors = list(model.state_dict().values())
    assert {t.device.type for t in tensors} == {device}
    assert {t.dtype for t in tensors} == {torch.float64}
    assert not any(m.training for m in model.modules())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"0.S", "2.S"}


def test_a_module_used_twice_loses_its_tie() -> None:
    """Each use became layers of its own."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model, x = nn.Sequential(conv, nn.ReLU(), conv), torch.randn(2, 4, 6, 6)
    before = model(x)
    svf.decompose(model)
    assert torch.equal(model(x), before)
    assert model[0] is model[2]
    assert len(list(svf.singular_values(model))) == 1


def test_a_bare_convolution_is_returned_unchanged() -> None:
    """Only children were looked at, so that a model that is one layer had none to replace."""
    conv = svf.decompose(nn.Conv2d(3, 8, 3))
    assert isinstance(conv, svf.SVFConv2d)
    assert [s.numel() for _, s in svf.singular_values(conv)] == [8]


@pytest.mark.parametrize(("n_in", "n_out", "rank"), [(1, 12, 9), (1, 4, 4), (12, 1, 1)])
def test_a_3x3_of_one_input_or_output_channel_is_taken_for_depthwise(n_in: int, n_out: int, rank: int) -> None:
    """Depthwise was guessed from a weight dimension of 1, not read from groups."""
    conv = nn.Conv2d(n_in, n_out, 3)
    assert_stays_and_follows_s(conv, torch.randn(2, n_in, 6, 6))
    assert conv.S.shape == (1, rank)
    assert conv.U.shape == (1, n_out, rank)
    assert conv.Vh.shape == (1, rank, n_in * 9)
