"""fss_svf.svf with U and V trained too, and with S written as a scale or a logarithm: every promise holds for each."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fss_svf import svf
from tests.svf.test_svf import factored, image, make, net, relative_error, same, snapshot, through_torch_save

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]

TRAINS = [("S",), ("U",), ("V",), ("S", "U"), ("S", "V"), ("U", "V"), ("S", "U", "V")]
PARAMETRISATIONS = ["direct", "scale", "log"]
FORMS = list(itertools.product(TRAINS, PARAMETRISATIONS))
every_form = pytest.mark.parametrize(("train", "parametrisation"), FORMS, ids=["".join(t) + f"-{p}" for t, p in FORMS])
NAMES = {"direct": "S", "scale": "S_scale", "log": "S_log_scale"}


def trained_names(train: tuple[str, ...], parametrisation: str) -> set[str]:
    return {{"S": NAMES[parametrisation], "U": "U", "V": "Vh"}[factor] for factor in train}


def move(model: nn.Module) -> None:
    """As training would: everything that trains becomes something else."""
    with torch.no_grad():
        for _, p in svf.trainable_parameters(model):
            p.add_(0.1 * torch.rand_like(p) + 0.05)


# The start


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["3x3", "groups", "depthwise", "linear, tall"])
def test_s_alone_starts_at_the_pretrained_output_bit_for_bit(
    case: str, dtype: torch.dtype, parametrisation: str
) -> None:
    layer, x = make(case, dtype)
    before = layer(x)
    svf.decompose(layer, parametrisation=parametrisation)
    assert torch.equal(layer.singular_values(), layer.S0)
    assert torch.equal(layer(x), before)


@every_form
@pytest.mark.parametrize("case", ["3x3", "groups", "linear, wide"])
def test_the_start_is_within_1e_5(case: str, train: tuple[str, ...], parametrisation: str) -> None:
    layer, x = make(case, torch.float32)
    before = layer(x)
    svf.decompose(layer, train=train, parametrisation=parametrisation)
    assert relative_error(layer(x), before) < 1e-5


# What trains


@every_form
def test_exactly_what_was_asked_for_trains(train: tuple[str, ...], parametrisation: str) -> None:
    model = svf.decompose(net().requires_grad_(False), train=train, parametrisation=parametrisation)
    expected = {f"{i}.{own}" for i in (0, 3, 5) for own in trained_names(train, parametrisation)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert {name for name, _ in svf.trainable_parameters(model)} == expected
    before = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=0.1)
    model(image()).square().sum().backward()
    optimizer.step()
    after = snapshot(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == expected


@pytest.mark.parametrize("rank", [None, 2])
@every_form
def test_the_layer_is_the_factored_form_and_so_are_its_gradients(
    train: tuple[str, ...], parametrisation: str, rank: int | None
) -> None:
    layer, x = make("groups")
    svf.decompose(layer, rank=rank, train=train, parametrisation=parametrisation)
    move(layer)
    plain = copy.deepcopy(layer)
    s = {"direct": lambda p: p, "scale": lambda p: layer.S0 * p, "log": lambda p: layer.S0 * p.exp()}[parametrisation]
    held = getattr(layer, NAMES[parametrisation])
    assert torch.equal(layer.singular_values(), s(held))
    plain.S = nn.Parameter(s(held).detach())
    assert relative_error(layer(x), factored(plain, x)) < 1e-12

    # The same by hand, in one expression that knows nothing of the library.
    twins = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters() if name != "weight"}
    weight = torch.einsum("gmr,gr,grn->gmn", twins["U"], s(twins[NAMES[parametrisation]]), twins["Vh"])
    y = nn.functional.conv2d(x, weight.reshape(layer.weight.shape), twins["bias"], groups=3)
    y.sin().sum().backward()
    layer(x).sin().sum().backward()
    for name in trained_names(train, parametrisation):
        assert torch.allclose(getattr(layer, name).grad, twins[name].grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parametrisation", ["scale", "log"])
def test_a_singular_value_of_zero_stays_zero_without_nan(parametrisation: str) -> None:
    layer = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        layer.weight[3:] = 0
    svf.decompose(layer, parametrisation=parametrisation)
    layer.S0[:, 3:] = 0  # whatever rounding made of them
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    s = layer.singular_values()
    assert torch.isfinite(s).all()
    assert (s[:, 3:] == 0).all()
    assert not torch.equal(s, layer.S0)


def test_log_stays_positive_where_direct_does_not() -> None:
    signs = {}
    for parametrisation in ("direct", "log"):
        layer = svf.decompose(nn.Linear(4, 4), parametrisation=parametrisation)
        with torch.no_grad():
            getattr(layer, NAMES[parametrisation]).sub_(5)
        signs[parametrisation] = bool((layer.singular_values() > 0).all())
    assert signs == {"direct": False, "log": True}


@pytest.mark.parametrize(("arguments", "words"), [
    ({"train": ()}, r"train \[\] is not one or more of S, U, V"),
    ({"train": ("S", "S")}, "each once"),
    ({"train": ("Vh",)}, "is not one or more of S, U, V"),
    ({"parametrisation": "exp"}, "parametrisation 'exp' is not one of direct, scale, log"),
])  # fmt: skip
def test_impossible_forms_are_refused(arguments: dict, words: str) -> None:
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        svf.decompose(model, **arguments)
    assert same(before, model.state_dict())


def test_repr_tells_what_trains() -> None:
    layer = svf.decompose(nn.Linear(5, 4), train=("V", "S"), parametrisation="log")
    assert repr(layer).endswith("rank=4 (full), train=S+V, log)")


# Merging and leaving, for every form


@pytest.mark.parametrize("rank", [None, 2])
@every_form
def test_merged_disabled_and_plain(train: tuple[str, ...], parametrisation: str, rank: int | None) -> None:
    model, x = net(), image()
    plain, pretrained = copy.deepcopy(model), model(x)
    svf.decompose(model, rank=rank, train=train, parametrisation=parametrisation)
    move(model)
    tuned, state = model(x), snapshot(model)
    assert torch.equal(svf.merge(model)(x), tuned)
    with svf.disabled(model):
        assert torch.equal(model(x), pretrained)
    assert torch.equal(svf.plain_copy(model)(x), pretrained)
    exported = svf.to_plain(model)
    assert torch.equal(svf.unmerge(model)(x), tuned)
    assert same(state, model.state_dict())

    assert not list(svf.layers(exported))
    assert [type(m) for m in exported] == [type(m) for m in plain]
    assert torch.equal(exported(x), tuned)
    plain.load_state_dict(exported.state_dict())  # strict: the undecomposed model's names and shapes
    assert torch.equal(plain(x), tuned)


def test_to_plain_bakes_what_a_merge_has_not_seen_and_shares_nothing() -> None:
    model, x = svf.decompose(net()), image()
    svf.merge(model)
    move(model)
    exported = svf.to_plain(model)
    assert torch.equal(exported(x), svf.unmerge(model)(x))
    assert not {p.data_ptr() for p in exported.parameters()} & {p.data_ptr() for p in model.parameters()}


@every_form
def test_ties_stay(train: tuple[str, ...], parametrisation: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2))
    model[2].weight = model[0].weight
    x = torch.randn(2, 4, 8, 8)
    svf.decompose(model, train=train, parametrisation=parametrisation)
    own = NAMES[parametrisation]
    for twin in (model, copy.deepcopy(model)):
        assert all(getattr(twin[0], name) is getattr(twin[2], name) for name in (own, "U", "Vh"))
    assert len(list(svf.trainable_parameters(model))) == len(train)
    assert len(list(svf.singular_values(model))) == 1
    assert sum(line.trainable for line in svf.report(model)) == sum(
        p.numel() for _, p in svf.trainable_parameters(model)
    )
    move(model)
    exported = svf.to_plain(model)
    assert exported[0].weight is exported[2].weight
    assert torch.equal(exported(x), model(x))


# report()


def test_the_report_tells_what_moved() -> None:
    model = svf.decompose(net())
    at_start = svf.report(model)
    assert all(line.drift_max == line.drift_mean == line.change == 0 for line in at_start)
    with torch.no_grad():
        model[0].S[0, 1] *= 1.5
        model[3].S[:] *= 0.9
    first, second, third = svf.report(model)
    assert (first.drift_max, first.drift_mean) == pytest.approx((0.5, 0.5 / 8))
    assert (second.drift_max, second.drift_mean, second.change) == pytest.approx((0.1, 0.1, 0.1), rel=1e-4)
    assert third == at_start[2]
    s = model[0].S0.double()
    assert first.change == pytest.approx(float(0.5 * s[0, 1] / s.norm()), rel=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
@every_form
def test_the_report_of_every_form(train: tuple[str, ...], parametrisation: str, rank: int | None) -> None:
    model = net().double()
    reference = svf.report(svf.decompose(copy.deepcopy(model), rank=rank))
    svf.decompose(model, rank=rank, train=train, parametrisation=parametrisation)
    for moved in (False, True):
        lines = svf.report(model)
        for line, expected in zip(lines, reference):
            assert line.error == pytest.approx(expected.error, abs=1e-7)  # what the cut lost, not what training moved
            assert (line.drift_max > 0.01) == (moved and "S" in train)
            assert moved == (line.change > expected.change + 1e-3)
        move(model)


def test_the_report_prints_as_a_table() -> None:
    lines = str(svf.report(svf.decompose(net(), rank=2, train="SU"))).splitlines()
    assert lines[0].split() == ["layer", "shape", "rank", "trains", "error", "drift", "max", "drift", "mean", "change"]
    assert lines[2].split()[:4] == ["0", "8x3x3x3", "2", "18"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == "3 layers, 62 trainable values"


def test_a_report_of_zeros_and_halves_is_finite() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).half())
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    for line in svf.report(svf.decompose(model)):
        assert (line.error, line.drift_max, line.drift_mean, line.change) == (0, 0, 0, 0)


# torch's own tools, for every form


@pytest.mark.parametrize("rank", [None, 2])
@every_form
def test_state_dicts_deepcopy_and_meta(train: tuple[str, ...], parametrisation: str, rank: int | None) -> None:
    arguments = {"rank": rank, "train": train, "parametrisation": parametrisation}
    model, other, x = svf.decompose(net(), **arguments), svf.decompose(net(), **arguments), image()
    move(model)
    state = through_torch_save(model.state_dict())
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))
    with torch.device("meta"):
        shell = svf.decompose(net(), **arguments)
    shell.load_state_dict(state, assign=True)
    assert torch.equal(shell(x), model(x))
    twin = copy.deepcopy(model)
    move(twin)
    assert not torch.equal(twin(x), model(x))
    assert torch.equal(other(x), model(x))


# A graph has the factors that train and how S is written: each of the two by itself, and all of both.
@pytest.mark.parametrize(("train", "parametrisation"), [
    pytest.param(
        train, parametrisation, id="".join(train) + f"-{parametrisation}",
        marks=[] if parametrisation == "direct" or train in (("S",), ("S", "U", "V")) else [pytest.mark.long],
    )
    for train, parametrisation in FORMS
])  # fmt: skip
def test_export_and_compile(train: tuple[str, ...], parametrisation: str) -> None:
    model, x = svf.decompose(net(), train=train, parametrisation=parametrisation), image()
    move(model)
    exported = torch.export.export(model, (x,)).module()
    assert relative_error(exported(x), model(x)) < 1e-5
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_error(compiled(x), model(x)) < 1e-5
    move(model)
    assert relative_error(compiled(x), model(x)) < 1e-5


@every_form
def test_autocast_and_channels_last(train: tuple[str, ...], parametrisation: str) -> None:
    layer, x = make("3x3", torch.float32)
    svf.decompose(layer, train=train, parametrisation=parametrisation)
    move(layer)
    weight, y = layer.effective_weight(), layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.effective_weight(), weight)
        assert layer(x).dtype == torch.bfloat16
    layer.to(memory_format=torch.channels_last)
    assert relative_error(layer(x.to(memory_format=torch.channels_last)), y) < 1e-5


# Adapters, for every form


@pytest.mark.parametrize("rank", [None, 2])
@every_form
def test_adapters_into_decomposed_and_plain_models(
    tmp_path: Path, train: tuple[str, ...], parametrisation: str, rank: int | None
) -> None:
    pretrained, x = net(), image()
    arguments = {"rank": rank, "train": train, "parametrisation": parametrisation}
    model = svf.decompose(copy.deepcopy(pretrained), **arguments)
    move(model)
    svf.save_adapter(model, tmp_path / "adapter")
    for other in (copy.deepcopy(pretrained), svf.decompose(copy.deepcopy(pretrained), **arguments)):
        svf.load_adapter(other, tmp_path / "adapter")
        assert torch.equal(other(x), model(x))
        assert same(snapshot(other), snapshot(model))
        assert {n for n, p in other[0].named_parameters() if p.requires_grad} == {
            *trained_names(train, parametrisation), "bias"}  # fmt: skip


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    return svf.adapter_state_dict(model)


def test_factors_go_along_where_u_or_v_trains() -> None:
    # A new SVD may turn u and v the other way round, which is no matter where both are new.
    s_alone = svf.decompose(net())
    assert set(adapters_of(s_alone)) == {"0.S", "3.S", "5.S"}
    assert set(adapters_of(svf.decompose(net(), train="U"))) == {
        f"{i}.{n}" for i in (0, 3, 5) for n in ("S", "S0", "U", "Vh")
    }
    assert len(svf.adapter_state_dict(s_alone, factors=True)) == 12
