"""What every tuning's layers promise (fss_svf/tuned.py): merged, unmerged, disabled, copied and exported, in float64."""

import copy

import pytest
import torch
from torch import nn

from fss_svf.backbones.resnet import TinyOptions
from fss_svf.model import build_backbone
from fss_svf.registry import TUNINGS, Choice
from fss_svf.tuned import TunedWeight, disabled, merge, plain_copy, to_plain, tuned_layers, unmerge
from tests.cli.test_config import TUNINGS_OF_CNNS, shipped_tuning

pytestmark = pytest.mark.numeric

NAMES = TUNINGS_OF_CNNS


def network(seed=0):
    """A backbone as if it were trained: no two channels alike."""
    torch.manual_seed(seed)
    net, _ = build_backbone(Choice("tiny", TinyOptions(width=8)))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1)
    return net.double().eval()


def tuned(name, seed=0):
    """The network with a tuning, all that trains moved as by a training."""
    net = network(seed)
    TUNINGS.build(shipped_tuning(name), net)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def output(net):
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net(x)["deep"]


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", NAMES)
def test_merged_gives_the_same_output_and_unmerging_restores_every_bit(name):
    net = tuned(name)
    state, expected = state_of(net), output(net)
    if any(tuned_layers(net)):
        assert not torch.equal(expected, output(network()))
    assert merge(net) is net
    torch.testing.assert_close(output(net), expected, rtol=1e-10, atol=1e-10)
    assert same(state, net.state_dict())  # nor has merging a name of its own
    assert all(layer.merged == layer.foldable for _, layer in tuned_layers(net))
    unmerge(net)
    assert not any(layer.merged for _, layer in tuned_layers(net))
    assert same(state, net.state_dict())
    assert torch.equal(output(net), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_layer_computes_no_weight(name, monkeypatch):
    net = merge(tuned(name))
    for _, layer in tuned_layers(net):
        monkeypatch.setattr(type(layer), "effective_weight", None, raising=False)
    assert output(net).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_training_forward_gives_the_merged_output(name):
    net = tuned(name)
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x)["deep"].detach(), output(merge(net)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_disabled_and_a_plain_copy_are_the_pretrained_network(name):
    net, plain = tuned(name), network()
    if not any(tuned_layers(net)):  # what trains in place is gone
        plain = copy.deepcopy(net)
    expected, before = output(plain), output(net)
    for again in (net, merge(net)):
        with disabled(again) as inside:
            assert inside is again
            assert torch.equal(output(again), expected)
        torch.testing.assert_close(output(again), before, rtol=1e-10, atol=1e-10)
    duplicate = plain_copy(net)
    assert torch.equal(output(duplicate), expected)
    assert same(duplicate.state_dict(), plain.state_dict())
    assert not any(tuned_layers(duplicate))
    assert {type(m) for m in duplicate.modules()} <= {type(m) for m in plain.modules()} | {nn.Identity}


@pytest.mark.parametrize("name", NAMES)
def test_exported_it_is_an_ordinary_network_with_the_same_output(name):
    net = tuned(name)
    before = state_of(net)
    exported = to_plain(net)
    torch.testing.assert_close(output(exported), output(net), rtol=1e-10, atol=1e-10)
    left = [layer for _, layer in tuned_layers(exported)]
    assert not any(isinstance(layer, TunedWeight) for layer in left)
    assert {type(layer).__name__ for layer in left} == ({"Adapter"} if name == "adapter" else set())
    if not left:
        plain = network(seed=1)
        plain.load_state_dict(exported.state_dict())
        assert torch.equal(output(plain), output(exported))
    assert same(before, net.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_goes_round(name):
    net, other = tuned(name), tuned(name, seed=1)
    assert not torch.equal(output(other), output(net))
    other.load_state_dict(net.state_dict())
    assert torch.equal(output(other), output(net))
    assert torch.equal(output(merge(other)), output(merge(net)))
