"""The ranks of fss_svf.svf: numbers, fractions, energies, patterns, in Python and from YAML."""

import copy

import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.svf.rank import Energy, Ranks, count
from tests.svf.test_svf import change, image, net, same, snapshot

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


def ranks(model: nn.Module) -> list[int]:
    return [layer.rank for _, layer in svf.layers(model)]


@pytest.mark.parametrize(("rank", "multiple", "expected"), [
    (None, 1, 100),
    (7, 1, 7),
    (1, 1, 1),
    (1.0, 1, 100),
    (0.5, 1, 50),
    (0.29, 1, 29),  # 0.29 * 100 is 28.999999999999996
    (0.001, 1, 1),
    (0.5, 8, 48),
    (Energy(1.0), 1, 100),
    (Energy(0.9), 1, 2),
    (Energy(0.9), 2, 2),
    (Energy(0.4), 1, 1),
    (Energy(0.999), 4, 8),
])  # fmt: skip
def test_how_many_are_kept(rank: Ranks, multiple: int, expected: int) -> None:
    # Squares 1/2, 1/2.2, then the rest.
    s = torch.full((1, 100), 0.01)
    s[0, :2] = torch.tensor([10.0, 9.5])
    s[0, 2:9] = 1 / torch.arange(1, 8).sqrt()
    assert count(rank, s, multiple) == expected


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_energy_is_the_smallest_rank_that_holds_its_share(share: float) -> None:
    layer = nn.Conv2d(8, 24, 3, groups=2, dtype=torch.float64)
    matrices = layer.weight.detach().reshape(2, 12, -1)
    svf.decompose(layer, rank=Energy(share))
    squares = torch.linalg.svdvals(matrices).square().sum(0)
    held = [float(squares[:r].sum() / squares.sum()) for r in (layer.rank, layer.rank - 1)]
    assert held[0] >= share - 1e-12
    assert held[1] < share
    (line,) = svf.report(layer)
    assert line.error == pytest.approx(max(1 - held[0], 0) ** 0.5, abs=1e-7)


def test_a_weight_of_zeros_keeps_one() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    assert svf.decompose(layer, rank="energy:0.9").rank == 1


def test_patterns_say_the_rank_of_a_layer_and_the_first_match_wins() -> None:
    model = svf.decompose(net(), rank={"^0$": 2, "[05]": 0.5, "^3$": None})
    assert ranks(model) == [2, 3, 2]
    assert ranks(svf.decompose(net(), rank={"5": "energy:0.2"})) == [8, 3, 1]


@pytest.mark.parametrize(("rank", "words"), [
    (0, "rank: expected null .* got 0"),
    (-1, "got -1"),
    (0.0, "got 0.0"),
    (1.5, "got 1.5"),
    (True, "got True"),
    ("all", "got 'all'"),
    ("energy:2", "energy above 0 and up to 1, got 2"),
    ("energy:0", "got 0"),
    ("energy:1.2.3", "got 'energy:1.2.3'"),
    ({"0": "half"}, "got 'half'"),
    ({"(": 1}, r"'\(' is not a regular expression"),
    ({"layer9": 1}, "pattern 'layer9' is the first match of none of the 3 layers"),
    ({"": 2, "5": 1}, "pattern '5' is the first match of none"),
    ({"3": 4}, "layer '3': rank 4 is not between 1 and 3"),
    (9, "layer '0': rank 9 is not between 1 and 8"),
])  # fmt: skip
def test_wrong_ranks_are_refused_and_the_model_is_as_it_was(rank: Ranks, words: str) -> None:
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"^svf.decompose: .*{words}"):
        svf.decompose(model, rank=rank)
    assert same(before, model.state_dict())


def test_an_energy_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        Energy(1.5)


def test_layers_of_one_weight_have_one_rank() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"layer '1': it shares its weight with '0', .* \(3 and 2\)"):
        svf.decompose(model, rank={"0": 2, "1": 3})
    assert ranks(svf.decompose(model, rank={"": 2})) == [2, 2]


def test_a_checkpoint_says_the_energy_rank_of_a_model_without_values() -> None:
    model, x = svf.decompose(net(), rank="energy:0.6", train="SV", parametrisation="log"), image()
    change(model)
    assert ranks(model) != [8, 3, 5]
    with torch.device("meta"):
        shell = svf.decompose(net(), rank="energy:0.6", train="SV", parametrisation="log")
    assert ranks(shell) == [8, 3, 5]
    assert svf.fit_ranks(shell, model.state_dict()) is shell
    assert {n for n, p in shell.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    shell.load_state_dict(model.state_dict(), assign=True)
    assert ranks(shell) == ranks(model)
    assert torch.equal(shell(x), model(x))


@pytest.mark.parametrize(("own", "theirs"), [(None, 2), (2, None), (1, 2)])
def test_a_model_with_values_takes_the_ranks_of_a_state_dict(own, theirs) -> None:
    model, other = svf.decompose(net(), rank=own), svf.decompose(net(), rank=theirs)
    svf.fit_ranks(model, other.state_dict())
    model.load_state_dict(other.state_dict())
    x = image()
    assert torch.equal(model(x), other(x))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in other.parameters()]
    same_ranks = copy.deepcopy(model)
    svf.fit_ranks(same_ranks, other.state_dict())
    assert torch.equal(same_ranks(x), other(x))
