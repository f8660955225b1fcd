"""Weights that come after svf.decompose: the factors are those of the weight that the layer has."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fss_svf.svf.loading
from fss_svf import svf
from tests.svf.test_svf import change, image, net, relative_error, same, snapshot

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
NAMES = {"direct": "S", "scale": "S_scale", "log": "S_log_scale"}


@pytest.fixture
def no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an SVD was computed")

    monkeypatch.setattr(fss_svf.svf.loading, "svd", refuse)


def rebuilds(model: nn.Module) -> float:
    """How far U diag(S0) Vh is from the weight, in the worst layer."""
    return max(line.error for line in svf.report(model))


@pytest.mark.parametrize("train", [("S",), ("S", "U"), ("U", "V")], ids="".join)
@pytest.mark.parametrize("parametrisation", NAMES)
@pytest.mark.parametrize("moved", [False, True])
def test_a_plain_state_dict_starts_the_layers_anew(train: tuple[str, ...], parametrisation: str, moved: bool) -> None:
    pretrained, x = net(), image()
    model = svf.decompose(net(), train=train, parametrisation=parametrisation)
    if moved:
        change(model)
    held = dict(model.named_parameters())
    found = model.load_state_dict(pretrained.state_dict(), strict=False)
    expected = svf.decompose(copy.deepcopy(pretrained), train=train, parametrisation=parametrisation)
    assert same(snapshot(model), snapshot(expected))
    assert relative_error(model(x), pretrained(x)) < 1e-5
    assert not found.unexpected_keys
    # An optimizer holds the parameters.
    assert all(p is held[name] for name, p in model.named_parameters())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in expected.named_parameters()
    }


def test_a_cut_rank_stays() -> None:
    pretrained, model = net(), svf.decompose(net(), rank=2)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    assert same(snapshot(model), snapshot(svf.decompose(pretrained, rank=2)))


def test_strict_names_the_missing_factors_and_leaves_nothing_mixed() -> None:
    pretrained, model = net(), svf.decompose(net())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"0.S"'):
        model.load_state_dict(pretrained.state_dict())
    assert rebuilds(model) < 1e-5


def test_a_part_of_the_layers() -> None:
    pretrained, model = net(), svf.decompose(net())
    change(model)
    before = snapshot(model)
    model.load_state_dict({k: v for k, v in pretrained.state_dict().items() if k.startswith("3.")}, strict=False)
    now = snapshot(model)
    assert {k for k in now if not torch.equal(now[k], before[k])} == {
        f"3.{n}" for n in ("weight", "S", "S0", "U", "Vh")
    }
    assert rebuilds(model) < 1e-5


def test_assigned_weights_of_another_dtype_and_of_a_model_without_values() -> None:
    pretrained, x = net(), image()
    model = svf.decompose(net().bfloat16())
    model.load_state_dict(pretrained.state_dict(), strict=False, assign=True)
    assert torch.equal(model(x), pretrained(x))
    assert rebuilds(model) < 1e-5
    with torch.device("meta"):
        shell = svf.decompose(net())
    shell.load_state_dict(pretrained.state_dict(), strict=False, assign=True)
    assert torch.equal(shell(x), pretrained(x))
    assert rebuilds(shell) < 1e-5
    assert all(layer.S.requires_grad and not layer.U.requires_grad for _, layer in svf.layers(shell))


def test_its_own_state_dict_is_exact_and_takes_no_svd(no_svd: None) -> None:
    model, other = svf.decompose(net()), svf.decompose(net())
    change(model)
    for assign in (False, True):
        other.load_state_dict(model.state_dict(), assign=assign)
        assert same(snapshot(other), snapshot(model))
    with torch.device("meta"):
        shell = svf.decompose(net())
    shell.load_state_dict(model.state_dict(), assign=True)
    assert same(snapshot(shell), snapshot(model))


def test_the_weight_that_a_layer_has_changes_nothing(no_svd: None) -> None:
    pretrained = net()
    model = svf.decompose(copy.deepcopy(pretrained))
    change(model)
    before = snapshot(model)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    assert same(snapshot(model), before)


def test_a_weight_with_s_alone_keeps_that_s() -> None:
    pretrained, x = net(), image()
    trained = svf.decompose(copy.deepcopy(pretrained))
    change(trained)
    model = svf.decompose(net())
    model.load_state_dict({**pretrained.state_dict(), **svf.adapter_state_dict(trained)}, strict=False)
    assert torch.equal(model(x), trained(x))


def test_factors_without_s_start_at_s0(no_svd: None) -> None:
    state = svf.decompose(net()).state_dict()
    model = svf.decompose(net())
    model.load_state_dict({k: v for k, v in state.items() if not k.endswith(".S")}, strict=False)
    assert all(torch.equal(layer.S, layer.S0) for _, layer in svf.layers(model))


@pytest.mark.parametrize(("key", "value", "words"), [
    ("0.U", torch.ones(1, 8, 8), "0.weight comes with U of its factors; give U, S0 and Vh, or none"),
    ("3.weight", torch.full((12, 2, 3, 3), float("nan")), "3.weight holds NaN or infinity"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_named(key: str, value: torch.Tensor, words: str) -> None:
    model = svf.decompose(net())
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=words):
        model.load_state_dict({**net().state_dict(), key: value}, strict=False)
    layer = key.split(".")[0]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith(f"{layer}."))
    assert rebuilds(model) < 1e-5


def test_while_merged_the_loaded_weight_is_applied() -> None:
    pretrained, x = net(), image()
    model = svf.merge(svf.decompose(net()))
    model.load_state_dict(pretrained.state_dict(), strict=False)
    assert torch.equal(model(x), pretrained(x))
    trained = svf.decompose(copy.deepcopy(pretrained))
    change(trained)
    model.load_state_dict(trained.state_dict())
    assert torch.equal(model(x), trained(x))


def test_layers_of_one_weight_stay_tied() -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    pretrained, model = tied(), svf.decompose(tied())
    model.load_state_dict(pretrained.state_dict(), strict=False)
    assert model[0].S is model[1].S
    assert torch.equal(model[0].S0, model[1].S0)
    assert rebuilds(model) < 1e-5


@pytest.mark.parametrize("train", [("S",), ("S", "U")], ids="".join)
def test_a_plain_state_dict_put_into_the_models_own(train: tuple[str, ...]) -> None:
    # As many training scripts load what fits: state = model.state_dict(); state.update(pretrained).
    pretrained, model = net(), svf.decompose(net(), train=train)
    change(model)
    model.load_state_dict({**model.state_dict(), **pretrained.state_dict()})
    assert same(snapshot(model), snapshot(svf.decompose(pretrained, train=train)))


def test_a_state_dict_that_was_rounded_keeps_what_was_trained(no_svd: None) -> None:
    model = svf.decompose(net())
    change(model)
    rounded = copy.deepcopy(model).bfloat16().state_dict()
    trained = snapshot(model)
    model.load_state_dict(rounded)
    assert torch.equal(model[0].S, trained["0.S"])
    assert torch.equal(model[0].weight, trained["0.weight"].bfloat16().float())


def test_a_wrapped_model() -> None:
    pretrained, model = net(), nn.ModuleDict({"backbone": svf.decompose(net()), "head": nn.Linear(5, 2)})
    model.load_state_dict({f"backbone.{k}": v for k, v in pretrained.state_dict().items()}, strict=False)
    assert same(snapshot(model.backbone), snapshot(svf.decompose(pretrained)))


@pytest.mark.parametrize("rank", [None, 2])
def test_a_weight_written_past_load_state_dict_makes_no_adapter(tmp_path: Path, rank: int | None) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = svf.decompose(net().to(dtype), rank=rank)
        change(model)
        svf.save_adapter(model, tmp_path / "a")
        model[3].weight.data.copy_(torch.randn(12, 2, 3, 3))
        with pytest.raises(svf.AdapterError, match=r"^3: its weight is not the one that was decomposed; load weights"):
            svf.save_adapter(model, tmp_path / "a")
    svf.save_adapter(svf.decompose(net(), rank=rank).bfloat16(), tmp_path / "a")  # rounded, not changed


def test_reset_parameters_makes_new_factors() -> None:
    model = svf.decompose(net())
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    assert rebuilds(model) < 1e-5
