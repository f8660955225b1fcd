"""What is the matcher's own beside the golden cases (test_golden_matcher.py)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.methods.clusters import cluster, partition
from fss_svf.methods.matcher import Matcher, MatcherOptions, quantile
from fss_svf.methods.method import require_differentiable
from tests.backbones.networks import network
from tests.methods.test_methods import episode, in_float64

pytestmark = pytest.mark.numeric


def matcher(**options):
    torch.manual_seed(0)
    return Matcher(tiny(TinyOptions(width=8))[0], MatcherOptions(**{"svd_components": 8, **options})).eval().double()


@torch.no_grad()
def test_the_positional_basis_is_that_of_the_weights_as_they_are():
    """Computed once a size; anew after a change in place, a loaded state dict, and in a copy."""
    model, e = matcher(), in_float64(episode(size=65))
    seen = []
    model.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    before = model.encode_query(e.query_image)["feature"]
    model.encode_query(e.query_image)
    assert seen == [2, 1, 2]
    model.encode_query(e.query_image[..., :33, :33])
    model.encode_query(e.query_image)
    assert seen[3:] == [2, 1, 2]
    state = copy.deepcopy(model.state_dict())
    for changed in (model.backbone.layer4[0].conv1.weight, model.backbone.layer1[0].bn1.running_mean):
        changed.add_(0.3 * torch.randn_like(changed))
        seen.clear()
        after = model.encode_query(e.query_image)["feature"]
        assert seen == [2, 1]
        fresh = copy.deepcopy(model)
        assert not fresh._basis._bases
        torch.testing.assert_close(fresh.encode_query(e.query_image)["feature"], after, rtol=0, atol=0)
        assert not torch.allclose(before, after)
    model.load_state_dict(state)
    torch.testing.assert_close(model.encode_query(e.query_image)["feature"], before, rtol=0, atol=0)
    assert not pickle.loads(pickle.dumps(model._basis))._bases


@torch.no_grad()
def test_no_direction_of_an_empty_image_is_left():
    model, image = matcher(), torch.randn(1, 3, 65, 65, dtype=torch.double)
    original, debiased = model._maps(image)
    basis = model._basis(model.backbone, model.tap, image, 8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8, dtype=torch.double))
    assert float((basis.T @ debiased.flatten(2)[0]).abs().max()) < 1e-12
    assert float((basis.T @ original.flatten(2)[0]).abs().max()) > 1e-3
    # 9 x 9 positions have 80 directions beside their mean.
    assert matcher(svd_components=60)._basis(model.backbone, model.tap, image[..., :33, :33], 60).shape == (64, 24)


def test_options_that_cannot_be():
    with pytest.raises(
        ConfigError, match=r"svd_components=500: .* 64 channels of deep.*svd_components=31, or method.deb"
    ):
        matcher(svd_components=500)
    assert matcher(svd_components=500, debias=False).components == 0
    with pytest.raises(ConfigError, match=r"method.tap: norm: no tap of this backbone"):
        matcher(tap="norm")
    assert matcher(tap="layer3").tap == "layer3"
    assert Matcher(TimmBackbone(network("vit")), MatcherOptions(svd_components=8)).tap == "norm"
    with pytest.raises(ConfigError, match="tau: expected a cosine"):
        MatcherOptions(tau=1.0)
    with pytest.raises(ConfigError, match="nothing in it can train; measure it with fss-svf evaluate"):
        require_differentiable("matcher")


@torch.no_grad()
def test_a_support_without_the_object_finds_nothing():
    """And is no vote beside others: of 2 supports one vote is enough, of 3 two are needed."""
    model, e = matcher(), in_float64(episode(shot=1, size=65))
    own = Episode(e.query_image, e.query_image.unsqueeze(1), torch.zeros(2, 1, 65, 65, dtype=torch.uint8))
    assert not model(own).logits.argmax(1).any()
    own.support_masks[..., 20:50, 20:50] = 1
    found = model(own).logits.argmax(1)
    assert found.any()

    def with_empty(count):
        images, masks = own.support_images.repeat(1, 1 + count, 1, 1, 1), own.support_masks.repeat(1, 1 + count, 1, 1)
        masks[:, 1:] = 0
        return model(Episode(own.query_image, images, masks)).logits.argmax(1)

    assert torch.equal(with_empty(1), found)
    assert not with_empty(2).any()


def test_average_linkage_by_plain_loops():
    """Clusters are merged, the closest two first, while the mean distance of their pairs is below the cut."""
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(3, 5, 12, generator=g, dtype=torch.double) + 0.4, dim=1)
    labels, most = cluster(x, 0.5)
    assert labels.shape == (3, 12)
    assert most == int(labels.max()) + 1
    for one, found in zip(x, labels):
        distances = (1 - one.T @ one).numpy()
        groups = [[n] for n in range(12)]
        while len(groups) > 1:
            pairs = [
                (distances[np.ix_(a, b)].mean(), i, j)
                for i, a in enumerate(groups)
                for j, b in enumerate(groups)
                if i < j
            ]
            least, i, j = min(pairs)
            if least >= 0.5:
                break
            groups[i] += groups.pop(j)
        assert {frozenset(group) for group in groups} == {
            frozenset((found == label).nonzero().flatten().tolist()) for label in found.unique()
        }


def test_a_merge_at_the_cut_itself_is_none():
    distances = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    assert len(set(partition(distances, 0.5).tolist())) == 2
    assert len(set(partition(distances, 0.5001).tolist())) == 1
    assert partition(torch.zeros(1, 1), 0.5).tolist() == [0]


def test_the_quantile_is_torchs():
    x = torch.randn(3, 17, dtype=torch.double)
    torch.testing.assert_close(quantile(x, 0.9), torch.quantile(x, 0.9, dim=1, keepdim=True))
    assert quantile(x[:, :1], 0.9).shape == (3, 1)
