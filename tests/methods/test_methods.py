"""What every method promises on the seam, and the blocks behind them."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, resnet50, resnet101, tiny
from fss_svf.backbones.vgg import VGGOptions, vgg16, vgg16_plain
from fss_svf.episode import Episode
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.baseline import Baseline, BaselineOptions
from fss_svf.methods.blocks import (
    ASPP,
    ResidualPair,
    _best_cosine,
    gram_distance,
    gram_matrix,
    masked_average_pooling,
    prior_mask,
)
from fss_svf.methods.method import cross_entropy, flat_supports, regroup
from fss_svf.methods.pfenet import PFENet, PFENetOptions
from fss_svf.registry import METHODS

pytestmark = pytest.mark.numeric

BACKBONES = {
    "tiny": lambda: tiny(TinyOptions(width=8))[0],
    "vgg16": lambda: vgg16(VGGOptions())[0],
    "vgg16_plain": lambda: vgg16_plain(VGGOptions())[0],
    "resnet18": lambda: resnet18(ResNetOptions())[0],
    "resnet50": lambda: resnet50(ResNetOptions(dilation="pfenet"))[0],
    "resnet101": lambda: resnet101(ResNetOptions(stem="deep"))[0],
}
CONTROLS = ("prototype", "background")
# What makes a method small and fast; a BAM takes the shots of its training.
SMALL = {"width": 16, "bins": (9, 4, 0.5), "base_classes": 3, "svd_components": 8}


def episode(batch=2, shot=1, size=65, seed=0):
    g = torch.Generator().manual_seed(seed)
    masks = (torch.rand(batch, shot, size, size, generator=g) < 0.3).to(torch.uint8)
    masks[..., :3] = 255
    return Episode(
        torch.randn(batch, 3, size, size, generator=g),
        torch.randn(batch, shot, 3, size, size, generator=g),
        masks,
        masks[:, 0].clone(),
    )


def in_float64(e):
    """The episode for a method in float64, whose results depend on no order of sums that a test can see."""
    return replace(e, query_image=e.query_image.double(), support_images=e.support_images.double())


def model(name, backbone="tiny", shot=1):
    torch.manual_seed(1)
    entry = METHODS.entry(name)
    values = {**SMALL, "shot": shot}
    options = entry.options(**{f.name: values[f.name] for f in fields(entry.options) if f.name in values})
    net = BACKBONES[backbone]().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: no two layers alike
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return entry.build(net, options)


# A ResNet-101 has a ResNet-50's blocks, and the controls read one stage.
LARGE = [
    pytest.param(method, backbone, 2, marks=[pytest.mark.long] if backbone == "resnet101" or method in CONTROLS else [])
    for method in METHODS.names()
    for backbone in BACKBONES
    if backbone != "tiny"
]


@pytest.mark.parametrize(
    ("name", "backbone", "shot"), [*((name, "tiny", shot) for name in METHODS.names() for shot in (1, 2, 5)), *LARGE]
)
def test_encoding_apart_equals_forward(name, backbone, shot):
    size = 65 if backbone == "tiny" else 33
    method, e = model(name, backbone, shot).eval(), episode(shot=shot, size=size)
    if name == "matcher":  # it decides by thresholds: the order of float32's sums may turn a patch
        method, e = method.double(), in_float64(e)
    with torch.no_grad():
        whole = method(e)
        support = regroup(method.encode_support(*flat_supports(e)), shot)
        parts = method.segment(method.encode_query(e.query_image), support, e.size)
    assert whole.logits.shape == (2, 2, size, size)
    assert whole.aux.keys() == parts.aux.keys()
    for ours, theirs in [(parts.logits, whole.logits), *((parts.aux[k], whole.aux[k]) for k in whole.aux)]:
        assert ours.shape[-2:] == (size, size)
        assert torch.isfinite(theirs).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, float(theirs.abs().max())))


@pytest.mark.parametrize("name", METHODS.names())
def test_an_episode_does_not_see_its_batch(name):
    method, e = model(name, shot=2).eval().double(), in_float64(episode(batch=3, shot=2))
    with torch.no_grad():
        together = method(e).logits
        for i in range(3):
            alone = Episode(e.query_image[i : i + 1], e.support_images[i : i + 1], e.support_masks[i : i + 1])
            torch.testing.assert_close(method(alone).logits, together[i : i + 1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", METHODS.names())
def test_shots_have_no_order(name):
    method, e = model(name, shot=3).eval().double(), in_float64(episode(shot=3))
    turned = Episode(e.query_image, e.support_images.flip(1), e.support_masks.flip(1))
    with torch.no_grad():
        torch.testing.assert_close(method(e).logits, method(turned).logits, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_support_mask_gives_finite_logits(name, value):
    e = episode()
    e.support_masks.fill_(value)
    with torch.no_grad():
        assert torch.isfinite(model(name).eval()(e).logits).all()


def test_ignored_support_pixels_count_as_outside_the_object():
    method, e = model("baseline").eval(), episode()
    without = Episode(e.query_image, e.support_images, torch.where(e.support_masks == 255, 0, e.support_masks))
    with torch.no_grad():
        assert torch.equal(method(e).logits, method(without).logits)


def test_batch_norm_stays_in_eval_mode_while_training():
    method = model("baseline").train()
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert method.classifier.training


def test_baseline_trains_down_query_only_when_asked():
    for trains in (False, True):
        method = Baseline(tiny(TinyOptions(width=8))[0], BaselineOptions(width=8, down_query_trains=trains))
        assert all(p.requires_grad == trains for p in method.down_query.parameters())


def test_shots_sum_as_the_official_code_or_mean():
    e = episode(shot=1)
    doubled = Episode(e.query_image, e.support_images.repeat(1, 2, 1, 1, 1), e.support_masks.repeat(1, 2, 1, 1))
    outputs = {}
    for reduce in ("sum", "mean"):
        torch.manual_seed(0)
        method = Baseline(tiny(TinyOptions(width=8))[0], BaselineOptions(width=8, shots_reduce=reduce)).eval()
        with torch.no_grad():
            outputs[reduce] = (method(e).logits, method(doubled).logits)
    # The same support twice changes nothing in a mean; in a sum it doubles prototype and prior.
    torch.testing.assert_close(*outputs["mean"])
    assert not torch.allclose(*outputs["sum"], atol=1e-4)


def test_masked_average_pooling_by_hand():
    features = torch.arange(8.0).view(1, 2, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    expected = torch.tensor([[(0 + 0.5 * 2) / 1.5005, (4 + 0.5 * 6) / 1.5005]])
    torch.testing.assert_close(masked_average_pooling(features, mask), expected)


def test_prior_mask_by_plain_loops():
    g = torch.Generator().manual_seed(0)
    query, support = torch.randn(2, 5, 3, 4, generator=g), torch.randn(2, 3, 5, 2, 3, generator=g)
    support[:, :, :, 0] = 0  # masked out
    found = prior_mask(query, support)
    for b in range(2):
        for k in range(3):
            best = torch.empty(3, 4)
            for y in range(3):
                for x in range(4):
                    q = query[b, :, y, x]
                    s = support[b, k].flatten(1)
                    best[y, x] = ((s.T @ q) / (s.norm(dim=0) * q.norm() + 1e-7)).max()
            expected = (best - best.min()) / (best.max() - best.min() + 1e-7)
            torch.testing.assert_close(found[b, k, 0], expected)


@pytest.mark.parametrize("empty", [0, 1, 20])
def test_prior_mask_has_the_gradient_of_all_pairs(empty):
    """Only the pairs of the maximum have a graph; autograd through every pair gives the same."""
    query, support = torch.randn(2, 6, 5, 5, dtype=torch.double), torch.randn(2, 2, 6, 5, 5, dtype=torch.double)
    support.flatten(3)[..., :empty] = 0
    found, expected = [], []
    for gradients in (found, expected):
        q, s = query.clone().requires_grad_(), support.clone().requires_grad_()
        if gradients is found:
            prior = prior_mask(q, s * (s != 0))
        else:
            a, b = q.flatten(2), (s * (s != 0)).flatten(3)
            dot = torch.einsum("bcn,bkcm->bkmn", a, b)
            norms = a.norm(dim=1)[:, None, None] * b.norm(dim=2)[..., None] + 1e-7
            best = (dot / norms).max(2)[0]
            low = best.amin(-1, keepdim=True)
            prior = ((best - low) / (best.amax(-1, keepdim=True) - low + 1e-7)).view(2, 2, 1, 5, 5)
        (prior * torch.linspace(0, 1, prior.numel()).view_as(prior)).sum().backward()
        gradients += [prior.detach(), q.grad, s.grad * (support != 0)]
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.float(), b.float())


def test_shots_in_one_product_as_shot_by_shot():
    """As a GPU computes the prior, with its gradient."""
    query, support = torch.randn(2, 6, 20, dtype=torch.double), torch.randn(2, 3, 6, 9, dtype=torch.double)
    found, expected = [], []
    for results in (found, expected):
        q, s = query.clone().requires_grad_(), support.clone().requires_grad_()
        parts = [s] if results is found else s.split(1, dim=1)
        best = torch.cat([_best_cosine(q, part) for part in parts], dim=1)
        (best * torch.linspace(0, 1, best.numel()).view_as(best)).sum().backward()
        results += [best.detach(), q.grad, s.grad]
    assert found[0].shape == (2, 3, 20)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gram_distance_by_hand():
    """Two channels that agree have 1 everywhere; two that never fire together 0 off the diagonal."""
    agree, apart = torch.tensor([[[1.0, 2.0]], [[2.0, 4.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    query, support = gram_matrix(agree[None]), gram_matrix(torch.stack([agree, apart]))[None]
    torch.testing.assert_close(gram_distance(query, support), torch.tensor([[0.0, 2**0.5 / 2]]))


def test_the_aspp_begins_as_bams_and_other_layers_as_pytorchs():
    torch.manual_seed(0)
    for branch in (ASPP(64).pointwise, ASPP(64).dilated[1]):
        weight = branch[0].weight
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert weight.abs().max() > 3 * (2 / fan_in) ** 0.5  # normal, not uniform
    # PyTorch's own is uniform up to 1 / sqrt(fan in).
    assert ResidualPair(64).body[0].weight.abs().max() <= (64 * 9) ** -0.5


def test_the_pyramid_has_absolute_sizes_and_ratios():
    """A ratio of the feature's height (9 of 65 pixels): 1.0 pools nothing away, 0.5 to 4 cells; the same as absolute."""
    e, outputs = episode(), []
    for bins in ((9, 4), (1.0, 0.5)):
        torch.manual_seed(0)
        method = PFENet(tiny(TinyOptions(width=8))[0], PFENetOptions(width=8, bins=bins)).train()
        outputs.append(method.eval()(e).logits)
    assert torch.equal(*outputs)


def test_pfenets_auxiliary_loss_is_the_mean_over_bins():
    e = episode()
    method = PFENet(tiny(TinyOptions(width=8))[0], PFENetOptions(width=8, bins=(9, 4), auxiliary_weight=0.5)).train()
    with torch.no_grad():
        prediction = method(e)
    assert prediction.aux["bins"].shape == (2, 2, 2, 65, 65)
    each = [float(cross_entropy(prediction.aux["bins"][:, i], e.query_mask)) for i in range(2)]
    assert float(method.losses(prediction, e)["auxiliary"]) == pytest.approx(0.5 * sum(each) / 2)
    assert "bins" not in method.eval()(e).aux


def test_background_says_background():
    with torch.no_grad():
        logits = model("background")(episode()).logits
    assert (logits.argmax(1) == 0).all()


def test_prototype_separates_what_its_features_separate():
    """On an image that is its own support, with features that tell the two halves apart, it finds the half."""

    class Half(nn.Module):
        def tap_name(self, name):
            return name

        def forward(self, images, taps):
            return {"mid": torch.cat([(images[:, :1] > 0).float(), (images[:, :1] <= 0).float()], 1)}

    image = torch.ones(1, 3, 32, 32)
    image[..., :16] = -1
    mask = (image[:, 0] < 0).to(torch.uint8)
    method = METHODS.entry("prototype").build(Half(), METHODS.entry("prototype").options())
    said = method(Episode(image, image[None], mask[None])).logits.argmax(1)
    assert torch.equal(said.to(torch.uint8), mask)


def test_cross_entropy_of_ignored_pixels_is_zero_not_nan():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3, 3), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_base_learner_shapes():
    learner = BaseLearner(tiny(TinyOptions(width=8))[0], classes=15)
    assert learner(torch.randn(2, 3, 65, 65)).shape == (2, 16, 65, 65)


def test_episode_refuses_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="support_masks"):
        Episode(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 1, 8, 8))
