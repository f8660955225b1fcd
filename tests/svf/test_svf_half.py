"""SVF of models in half precision: the factors are float32 and train, the weights and outputs keep the model's dtype."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fss_svf import svf
from tests.svf.test_svf import image, net, same, snapshot, through_torch_save

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PARAMETRISATIONS = ["direct", "scale", "log"]


def factors(model: nn.Module) -> list[Tensor]:
    return [
        t for _, layer in svf.layers(model) for t in (layer.S0, *(getattr(layer, n) for n in layer.form.parameters))
    ]


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for _, s in svf.singular_values(model):
            s.add_(0.05 + 0.1 * torch.rand_like(s))


@halves
@pytest.mark.parametrize("train", [("S",), ("S", "U", "V")], ids="".join)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_small_steps_add_up(dtype: torch.dtype, train: tuple[str, ...], parametrisation: str) -> None:
    # Each is a quarter of half a unit in the last place, which half precision would round away for ever.
    model = net().to(dtype).requires_grad_(False)
    svf.decompose(model, train=train, parametrisation=parametrisation)
    start = [p.detach().clone() for _, p in svf.trainable_parameters(model)]
    step = torch.finfo(dtype).eps / 8
    with torch.no_grad():
        for _ in range(64):
            for _, p in svf.trainable_parameters(model):
                p += step * p.abs().clamp_min(0.01)
    for (name, p), before in zip(svf.trainable_parameters(model), start):
        assert p.dtype == torch.float32, name
        changed = p.detach() != before
        assert changed.float().mean() > 0.99, name


@halves
@pytest.mark.parametrize("execution", ["rebuilt", "factored"])
def test_an_optimizer_moves_every_singular_value(dtype: torch.dtype, execution: str) -> None:
    model, x = net().to(dtype).requires_grad_(False), image().to(dtype)
    svf.decompose(model, execution=execution)
    optimizer = torch.optim.SGD([p for _, p in svf.trainable_parameters(model)], lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).float().square().sum().backward()
        optimizer.step()
    for _, layer in svf.layers(model):
        assert layer.S.grad.dtype == torch.float32
        assert (layer.S != layer.S0).float().mean() > 0.9


@halves
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_the_weight_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, parametrisation: str) -> None:
    layer = nn.Conv2d(6, 10, 3, dtype=dtype)
    weight = layer.weight.detach().double()
    svf.decompose(layer, parametrisation=parametrisation)
    assert torch.equal(layer.effective_weight(), layer.weight)
    move(layer)
    s = layer.singular_values().double() - layer.S0.double()
    exact = weight + ((layer.U.double() * s.unsqueeze(1)) @ layer.Vh.double()).reshape(weight.shape)
    found = layer.effective_weight().detach()
    assert found.dtype == dtype
    # Half a unit in the last place of the largest, with what float32 adds.
    assert float((found.double() - exact).abs().max()) < 0.51 * torch.finfo(dtype).eps * float(exact.abs().max()) * 2


@halves
@pytest.mark.parametrize("rank", [None, 2])
def test_merged_disabled_plain_and_their_dtypes(dtype: torch.dtype, rank: int | None) -> None:
    model, x = net().to(dtype), image().to(dtype)
    pretrained = model(x)
    svf.decompose(model, rank=rank)
    if rank is None:
        assert torch.equal(model(x), pretrained)
    move(model)
    tuned = model(x)
    assert tuned.dtype == dtype
    assert torch.equal(svf.merge(model)(x), tuned)
    assert all(layer._merged.dtype == dtype for _, layer in svf.layers(model))
    with svf.disabled(model):
        assert torch.equal(model(x), pretrained)
    assert torch.equal(svf.unmerge(model)(x), tuned)
    exported = svf.to_plain(model)
    assert {p.dtype for p in exported.parameters()} == {dtype}
    assert torch.equal(exported(x), tuned)
    assert torch.equal(svf.plain_copy(model)(x), pretrained)


@halves
def test_state_dicts_and_adapters_keep_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = net().to(dtype), image().to(dtype)
    pretrained = copy.deepcopy(model)
    move(svf.decompose(model))
    state = through_torch_save(model.state_dict())
    assert {v.dtype for k, v in state.items() if k.endswith((".S", ".S0", ".U", ".Vh"))} == {torch.float32}
    other = svf.decompose(net().to(dtype))
    other.load_state_dict(state)
    assert same(snapshot(other), snapshot(model))
    svf.save_adapter(model, tmp_path / "a")
    for taking in (copy.deepcopy(pretrained), svf.decompose(copy.deepcopy(pretrained))):
        svf.load_adapter(taking, tmp_path / "a")
        assert torch.equal(taking(x), model(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_with_factors_in_half_precision_trains_in_float32(assign: bool) -> None:
    # As versions before wrote it.
    model = svf.decompose(net().bfloat16())
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    other = svf.decompose(net().bfloat16())
    other.load_state_dict(state, assign=assign)
    assert {t.dtype for t in factors(other)} == {torch.float32}
    assert all(torch.equal(layer.S, layer.S0) for _, layer in svf.layers(other))


@pytest.mark.parametrize("cast", [
    lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu", torch.float16),
    lambda m: m.to(image().bfloat16()), lambda m: m.double().half(),
], ids=["half", "bfloat16", "to", "device and dtype", "like a tensor", "double, half"])  # fmt: skip
def test_a_later_cast_leaves_the_factors_in_float32(cast) -> None:
    model = svf.decompose(net())
    move(model)
    optimizer = torch.optim.SGD([p for _, p in svf.trainable_parameters(model)], lr=0.01)
    before = [t.clone() for t in factors(model)]
    svf.merge(model)
    cast(model)
    narrow = model[0].weight.dtype
    assert narrow.itemsize == 2
    assert model[0]._merged.dtype == narrow
    svf.unmerge(model)
    assert all(t.dtype == torch.float32 and torch.equal(t, b) for t, b in zip(factors(model), before))
    x = image().to(narrow)
    model(x).float().square().sum().backward()
    held = [p.detach().clone() for _, p in svf.trainable_parameters(model)]
    model.to(narrow)  # with gradients
    optimizer.step()
    assert all(not torch.equal(p, h) for (_, p), h in zip(svf.trainable_parameters(model), held))


def test_widening_goes_along() -> None:
    model = svf.decompose(net().bfloat16())
    model.double()
    assert {t.dtype for t in factors(model)} == {torch.float64}
    assert model(image().double()).dtype == torch.float64
    model = svf.decompose(net().bfloat16())
    model.float()
    assert {t.dtype for t in (*factors(model), *model.parameters())} == {torch.float32}


def test_ties_survive_a_cast() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    svf.decompose(model).bfloat16()
    assert all(getattr(model[0], name) is getattr(model[1], name) for name in ("S", "U", "Vh"))
    assert model[0].S.dtype == torch.float32


@halves
def test_compile_autocast_and_a_frozen_batchnorm(dtype: torch.dtype) -> None:
    model, x = svf.decompose(net().to(dtype)), image().to(dtype)
    move(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x).float(), model(x).float(), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype):
        y = model(x)
    y.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for _, p in svf.trainable_parameters(model))
