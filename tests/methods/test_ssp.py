"""SSP: against a plain implementation in loops, for several ways, in training, and at its edges."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, tiny
from fss_svf.backbones.vgg import VGGOptions, vgg16_hsnet
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.methods import ssp as ssp_module
from fss_svf.methods.method import flat_supports, regroup
from fss_svf.methods.ssp import SSP, SSPOptions, matched, own_prototypes, sure_positions
from fss_svf.registry import TUNINGS
from tests.cli.test_config import shipped_tuning
from tests.methods.test_panet import SIZE, episode

pytestmark = pytest.mark.numeric

SMALL = TinyOptions(width=8)


def ssp(**options):
    torch.manual_seed(1)
    return SSP(tiny(SMALL)[0], SSPOptions(**options))


@pytest.fixture(params=[False, True], ids=["few sure", "many sure"])
def double(request):
    """A model of float64 parameters. Features around 0 have cosines far from 1, so that positions pass the thresholds."""
    model = ssp().double().train()
    if request.param:
        images = episode(batch=4, seed=9, dtype=torch.float64).query_image
        with torch.no_grad():
            model.backbone.layer3[0].bn2.bias -= model.encode_query(images)["feature"].mean((0, 2, 3))
    return model, request.param


# The method as methods.md and the paper tell it, image by image, with sets of positions


def enlarged(x):
    return F.interpolate(x[None], size=(SIZE, SIZE), mode="bilinear", align_corners=True)[0]


def mean_by(feature, mask):
    small = F.interpolate(mask[None, None].to(feature.dtype), feature.shape[1:], mode="bilinear", align_corners=True)[
        0, 0
    ]
    return (feature * small).sum((1, 2)) / (small.sum() + 1e-5)


def cosines(feature, prototypes):
    """(C, h, w) and a list of (C,) or (C, h, w) to (n, h, w)."""
    maps = [p if p.dim() == 3 else p[:, None, None].expand_as(feature) for p in prototypes]
    return 10 * torch.stack([F.cosine_similarity(feature, p, dim=0) for p in maps])


def search(feature, scores, foregrounds):
    """Background map (C, h, w) and foreground prototypes by the sure positions."""
    flat, probability = feature.flatten(1), scores.softmax(0).flatten(1)

    def chosen(p, threshold):
        sure = (p > threshold).nonzero().flatten()
        return flat[:, sure if len(sure) else p.topk(12).indices]

    background = chosen(probability[0], 0.6)
    unit = flat / flat.norm(dim=0)
    weights = (2 * (unit.T @ (background / background.norm(dim=0)))).softmax(1)
    around = 0.3 * background.mean(1)[:, None] + 0.7 * (background @ weights.T)
    objects = [0.5 * f + 0.5 * chosen(p, 0.7).mean(1) for f, p in zip(foregrounds, probability[1:])]
    return around.view_as(feature), objects


def plain(model, e, refine):
    logits, before, own, supports = [], [], [], []

    def features(image):
        return model.backbone(image[None], [model.tap])[model.tap][0]

    for b in range(len(e.query_image)):
        query = features(e.query_image[b])
        images, masks = (x[b] if e.way > 1 else x[b, None] for x in (e.support_images, e.support_masks))
        foregrounds, backgrounds = [], []
        for n in range(e.way):
            row = [features(images[n, k]) for k in range(e.shot)]
            pairs = [(mean_by(f, masks[n, k] == 0), mean_by(f, masks[n, k] == 1)) for k, f in enumerate(row)]
            supports += [(enlarged(cosines(f, pair)), masks[n, k]) for k, (f, pair) in enumerate(zip(row, pairs))]
            backgrounds.append(sum(pair[0] for pair in pairs) / e.shot)
            foregrounds.append(sum(pair[1] for pair in pairs) / e.shot)
        background = sum(backgrounds) / e.way
        around, objects = search(query, cosines(query, [background, *foregrounds]), foregrounds)
        scores = cosines(query, [around, *objects])
        before.append(enlarged(scores))
        if refine:
            around2, objects2 = search(query, scores, foregrounds)
            around = 0.5 * background[:, None, None] + 0.2 * around + 0.3 * around2
            objects = [0.5 * f + 0.2 * one + 0.3 * two for f, one, two in zip(foregrounds, objects, objects2)]
            scores = 0.7 * cosines(query, [around, *objects]) + 0.3 * scores
        logits.append(enlarged(scores))
        mine = [mean_by(query, e.query_mask[b] == value) for value in range(1 + e.way)]
        own.append(enlarged(cosines(query, mine)))

    def ce(x, mask):
        return F.cross_entropy(torch.stack(x), mask.long(), ignore_index=255)

    losses = {"main": ce(logits, e.query_mask)} | ({"plain": ce(before, e.query_mask)} if refine else {})
    losses["query_self"] = ce(own, e.query_mask)
    losses["support_self"] = 0.2 * ce([s for s, _ in supports], torch.stack([m for _, m in supports]))
    return torch.stack(logits), losses


@pytest.mark.parametrize(("way", "shot", "refine"), [(1, 2, True), (2, 3, True), (1, 1, False)])
def test_it_equals_the_plain_loops(double, way, shot, refine):
    model, many = double
    model.refine = refine
    e = episode(way=way, shot=shot, dtype=torch.float64)
    logits, losses = plain(model, e, refine)
    prediction = model(e)
    found = model.losses(prediction, e)
    torch.testing.assert_close(prediction.logits, logits, rtol=1e-9, atol=1e-9)
    assert list(found) == list(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for name in losses:
        torch.testing.assert_close(found[name], losses[name], rtol=1e-9, atol=0)
        theirs = torch.autograd.grad(losses[name], parameters, retain_graph=True)
        ours = torch.autograd.grad(found[name], parameters, retain_graph=True)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max()))
    if many:
        with torch.no_grad():
            feature = model.eval().encode_query(e.query_image)["feature"].flatten(2)
            given = own_prototypes(feature.unflatten(2, (5, 5)), e.query_mask, way)
            sure = sure_positions(
                torch.einsum("bcn,bmc->bmn", F.normalize(feature, dim=1), F.normalize(given, dim=2)) * 10
            )
        assert (sure.sum(2) != 12).any()  # or the thresholds would never be tried


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("way", [1, 2])
def test_encoding_apart_equals_forward(shot, way):
    model, e = ssp().eval(), episode(way, shot)
    with torch.no_grad():
        whole = model(e)
        support = model.encode_support(*flat_supports(e))
        parts = model.segment(model.encode_query(e.query_image), regroup(support, shot, way), e.size)
    assert whole.logits.shape == (2, 1 + way, SIZE, SIZE)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert list(support) == ["prototypes"]
    assert not whole.aux


def test_a_query_that_several_episodes_share_is_compared_with_itself_once(monkeypatch):
    g = torch.Generator().manual_seed(0)
    feature, given = torch.randn(1, 6, 30, generator=g).double(), torch.randn(4, 2, 6, generator=g).double()
    sizes, attention = [], ssp_module._attention
    monkeypatch.setattr(ssp_module, "_attention", lambda unit: sizes.append(unit.shape) or attention(unit))
    shared = matched(feature.expand(4, -1, -1), given, refine=True)
    assert sizes == [(6, 30)]
    alone = matched(feature.repeat(4, 1, 1), given, refine=True)
    for a, b in zip(shared, alone):
        torch.testing.assert_close(a, b)


def test_positions_above_the_threshold_or_the_12_of_the_largest_are_sure():
    scores = torch.zeros(2, 2, 40)
    scores[0, 1, :3] = 5.0  # three sure positions of the object; the others are even: the 12 largest of the background
    scores[1, 0] = torch.linspace(0.1, 0.39, 40)  # below 0.6 of probability everywhere
    sure = sure_positions(scores)
    assert sure.sum(2).tolist() == [[12, 3], [12, 12]]
    assert sure[0, 1, :3].tolist() == [1, 1, 1]
    assert sure[1, 0, 28:].tolist() == [1] * 12
    assert sure[1, 1, :12].tolist() == [1] * 12
    assert sure_positions(torch.zeros(1, 2, 5)).sum(2).tolist() == [[5, 5]]  # a map of fewer positions


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_masks_of_one_value_train_without_nan(fill):
    model, e = ssp().train(), episode(way=2, shot=2)
    e.support_masks[:, 0].fill_(fill)
    e.query_mask.fill_(255)
    losses = model.losses(model(e), e)
    sum(losses.values()).backward()
    assert losses["main"] == losses["query_self"] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_the_loss_of_the_supports_is_a_mean_over_their_pixels():
    """So that a batch that is done in parts, or shared, gives the loss of the whole: train.py weighs terms by means_over."""
    model, e = ssp().train(), episode(shot=2, batch=3, dtype=torch.float32)
    e.support_masks[0, :, 9:] = 255
    with torch.no_grad():
        whole = model.losses(model(e), e)["support_self"]
        sums, counts = 0.0, 0
        for i in range(3):
            one = Episode(*(x[i : i + 1] for x in (e.query_image, e.support_images, e.support_masks, e.query_mask)))
            count = one.count(model.means_over["support_self"])
            sums, counts = sums + count * model.losses(model(one), one)["support_self"], counts + count
    torch.testing.assert_close(sums / counts, whole)


def test_bfloat16_does_not_reach_cosines():
    e = episode(shot=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = ssp().train()(e)
    assert prediction.logits.dtype == prediction.aux["self"].dtype == torch.float32


@pytest.mark.parametrize(
    ("backbone", "tap", "expected"),
    [
        (lambda: tiny(SMALL), "mid", "layer3.0:sum"),
        (lambda: resnet18(ResNetOptions()), "mid", "layer3.1:sum"),
        (lambda: resnet18(ResNetOptions()), "low", "layer2.1:sum"),
        (lambda: resnet18(ResNetOptions()), "layer3", "layer3"),
        (lambda: vgg16_hsnet(VGGOptions()), "mid", "layer3.21:sum"),
    ],
)
def test_a_role_is_read_before_its_last_relu_and_what_lies_behind_is_frozen(backbone, tap, expected):
    with torch.device("meta"):
        net = backbone()[0].requires_grad_(True)
    model = SSP(net, SSPOptions(tap=tap))
    assert model.tap == expected
    stage = expected.split(".")[0]
    trains = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trains == {f"layer{i}" for i in range(int(stage[-1]) + 1)}


def test_an_unknown_tap_is_named():
    with pytest.raises(ConfigError, match=r"method\.tap: layer5: no tap of this backbone"):
        ssp(tap="layer5")


@pytest.mark.parametrize("tuning", ["layers", "svf", "lora", "full", "bias", "adapter", "usv"])
def test_every_parameter_that_a_tuning_trains_gets_a_gradient_and_no_other(tuning):
    torch.manual_seed(0)
    net = tiny(SMALL)[0]
    TUNINGS.build(shipped_tuning(tuning), net)
    model, e = SSP(net, SSPOptions()).train(), episode(shot=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    sum(model.losses(model(e), e).values()).backward()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trains
    assert trains
    assert not any("layer4" in name for name in trains)
