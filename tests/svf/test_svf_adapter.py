"""Adapter files of fss_svf.svf: plain models, BatchNorm, heads, factors that differ."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fss_svf import svf
from tests.svf.test_svf import change, image, net, same, saved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
DECOMPOSE = sys.modules["fss_svf.svf.decompose"]  # svf.decompose is the function


def test_a_plain_torchvision_model_takes_an_adapter(tmp_path: Path) -> None:
    pretrained, x = torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 64, 64)
    model = svf.decompose(
        copy.deepcopy(pretrained), [r"^layer[34]\."], rank={"layer4.1": "energy:0.9"}, parametrisation="scale"
    )
    change(model)
    path = saved(model, tmp_path)
    svf.load_adapter(pretrained, path, cache=tmp_path / "cache")
    assert [type(m) for m in pretrained.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(pretrained(x), model(x))
    assert len(list((tmp_path / "cache").iterdir())) == 10


def test_an_adapter_of_layers_decomposed_in_two_ways(tmp_path: Path) -> None:
    pretrained, x = net(), image()
    model = svf.decompose(copy.deepcopy(pretrained), ["^0$"], train="SU")
    svf.decompose(model, ["^5$"], rank=3, parametrisation="log")
    change(model)
    path = saved(model, tmp_path)
    svf.load_adapter(pretrained, path)
    assert torch.equal(pretrained(x), model(x))
    with pytest.raises(svf.AdapterError, match="3 is not in the adapter"):
        svf.load_adapter(svf.decompose(net()), path)


def test_a_bare_plain_layer_takes_an_adapter(tmp_path: Path) -> None:
    plain, x = nn.Linear(4, 3), torch.randn(2, 4)
    layer = svf.decompose(copy.deepcopy(plain))
    change(layer)
    svf.load_adapter(plain, saved(layer, tmp_path))
    assert torch.equal(plain(x), layer(x))


def test_plain_ties_are_kept(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain[1].weight = plain[0].weight
    model = svf.decompose(copy.deepcopy(plain))
    change(model)
    svf.load_adapter(plain, saved(model, tmp_path))
    assert plain[0].S is plain[1].S
    assert torch.equal(plain[1].S, model[1].S)


@pytest.mark.parametrize("what", ["weights", "layers", "dtype"])
def test_another_plain_model_is_refused_and_stays_as_it_was(tmp_path: Path, what: str) -> None:
    pretrained = net()
    path = saved(svf.decompose(copy.deepcopy(pretrained)), tmp_path)
    other, words = {
        "weights": (net(), r"made for base weights \w{16} \(float32\), the model has \w{16} \(float32\)"),
        "layers": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
            "does not fit: 3 is no Conv2d or Linear of the model, 5 is",
        ),
        "dtype": (copy.deepcopy(pretrained).bfloat16(), r"\(float32\), the model has \w{16} \(bfloat16\).* same dtype"),
    }[what]
    before, wants = snapshot(other), [p.requires_grad for p in other.parameters()]
    with pytest.raises(svf.AdapterError, match=words):
        svf.load_adapter(other, path)
    assert not list(svf.layers(other))
    assert same(before, other.state_dict())
    assert [p.requires_grad for p in other.parameters()] == wants


# Factors that differ: equal singular values have no singular vectors of their own


def degenerate() -> nn.Linear:
    """A Linear whose weight is orthogonal: every basis is one of its singular vectors."""
    layer = nn.Linear(6, 6, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer


def other_svd(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As right as the library's, from the same matrix turned."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5)))[0]
    u, s, vh = torch.linalg.svd(turn @ matrices, full_matrices=False)
    return turn.T @ u, s, vh


@pytest.mark.parametrize("plain", [True, False])
def test_factors_that_rebuild_another_weight_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    pretrained, x = degenerate(), torch.randn(2, 6)
    model = svf.decompose(copy.deepcopy(pretrained))
    with torch.no_grad():
        model.S.mul_(torch.linspace(0.5, 1.5, 6))
    path, whole = saved(model, tmp_path), tmp_path / "whole"
    svf.save_adapter(model, whole, factors=True)
    monkeypatch.setattr(DECOMPOSE, "svd", other_svd)
    other = copy.deepcopy(pretrained) if plain else svf.decompose(copy.deepcopy(pretrained))
    before = snapshot(other)
    with pytest.raises(svf.AdapterError, match=r"rebuild another weight .* factors=True"):
        svf.load_adapter(other, path)
    assert type(other) is (nn.Linear if plain else svf.SVFLinear)
    assert same(before, other.state_dict())
    assert other.weight.requires_grad == plain

    svf.load_adapter(other, whole)  # its own factors
    assert torch.equal(other(x), model(x))


def test_factors_that_are_only_turned_round_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained, x = net(), image()
    right = DECOMPOSE.svd
    for train in ("S", "U", "SV"):
        monkeypatch.setattr(DECOMPOSE, "svd", right)
        model = svf.decompose(copy.deepcopy(pretrained), train=train)
        change(model)
        path = saved(model, tmp_path)
        monkeypatch.setattr(DECOMPOSE, "svd", lambda m: tuple(f * sign for f, sign in zip(right(m), (-1, 1, -1))))
        other = copy.deepcopy(pretrained)
        svf.load_adapter(other, path)
        assert torch.allclose(other(x), model(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_adapters(tmp_path: Path, dtype: torch.dtype) -> None:
    pretrained = net().to(dtype)
    model = svf.decompose(copy.deepcopy(pretrained))
    change(model)
    svf.load_adapter(pretrained, saved(model, tmp_path))
    assert same(snapshot(pretrained), snapshot(model))


# BatchNorm and heads


def names_in(path: Path) -> set[str]:
    return set(load_file(path))


NORM = {f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
SINGULAR = {"0.S", "3.S", "5.S"}


@pytest.mark.parametrize("what", ["statistics", "weight", "bias"])
def test_a_batchnorm_that_changed_goes_with_the_adapter(tmp_path: Path, what: str) -> None:
    pretrained, x = net(), image()
    model = svf.decompose(copy.deepcopy(pretrained))
    path = saved(model, tmp_path)
    assert names_in(path) == SINGULAR
    assert names_in(saved(copy.deepcopy(model), tmp_path)) == SINGULAR  # a copy remembers too
    with torch.no_grad():
        if what == "statistics":
            model.train()(torch.randn(4, 3, 8, 8))
            model.eval()
        else:
            getattr(model[1], what).add_(1)
    path = saved(model, tmp_path)
    assert names_in(path) == SINGULAR | NORM
    svf.save_adapter(model, tmp_path / "without", batchnorm=False)
    assert names_in(tmp_path / "without") == SINGULAR
    for other in (copy.deepcopy(pretrained), svf.decompose(copy.deepcopy(pretrained))):
        svf.load_adapter(other, path)
        assert torch.equal(other(x), model(x))
    # Loaded, it is no longer what it was at the start, and is saved on.
    assert names_in(saved(other, tmp_path)) == SINGULAR | NORM


def test_batchnorm_always(tmp_path: Path) -> None:
    svf.save_adapter(svf.decompose(net()), tmp_path / "adapter", batchnorm=True)
    assert names_in(tmp_path / "adapter") == SINGULAR | NORM


def test_a_head_goes_along(tmp_path: Path) -> None:
    pretrained, x = net(), image()
    model = svf.decompose(copy.deepcopy(pretrained), exclude=["^5$"])
    model[5] = nn.Linear(12 * 9, 7)
    change(model)
    svf.save_adapter(model, tmp_path / "adapter", also=r"^5\.")
    with pytest.raises(svf.AdapterError, match=r"5\.bias, 5\.weight has another shape in the model; give it the same"):
        svf.load_adapter(copy.deepcopy(pretrained), tmp_path / "adapter")
    with pytest.raises(svf.AdapterError, match=r"5\.bias, 5\.weight is not in the model"):
        svf.load_adapter(copy.deepcopy(pretrained[:5]), tmp_path / "adapter")
    pretrained[5] = nn.Linear(12 * 9, 7)
    svf.load_adapter(pretrained, tmp_path / "adapter")
    assert torch.equal(pretrained(x), model(x))


def test_what_else_to_save_must_exist_and_never_is_a_factor(tmp_path: Path) -> None:
    model = svf.decompose(net())
    for pattern in ("head", r"0\.weight", r"0\.U"):
        with pytest.raises(svf.AdapterError, match="matches no tensor"):
            svf.save_adapter(model, tmp_path / "adapter", also=[pattern])
    assert not list(tmp_path.iterdir())
    svf.save_adapter(model, tmp_path / "adapter", also=["."], batchnorm=False)
    assert names_in(tmp_path / "adapter") == SINGULAR | NORM | {"0.bias", "5.bias"}


def test_the_metadata_says_what_it_is(tmp_path: Path) -> None:
    model = svf.decompose(net(), ["^0$"], rank=3, train="VS", parametrisation="log")
    with safe_open(saved(model, tmp_path), framework="pt") as f:
        metadata = f.metadata()
    assert metadata["format"] == "fss-svf adapter 2"
    assert metadata["base_hash"] == svf.base_hash(model)
    assert metadata["dtype"] == "float32"
    assert metadata["layers"].startswith('[["0",3,"SV","log",')
