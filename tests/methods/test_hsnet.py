"""HSNet: its 4D convolutions against loops, what an evaluation keeps, votes, taps and sizes of other backbones."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torchvision
from torch.nn import functional as F

from fss_svf.backbones.efficientnet import EfficientNetOptions, efficientnet_lite0
from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, resnet50, tiny
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.backbones.vgg import VGGOptions, vgg16, vgg16_hsnet
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.vote import vote
from fss_svf.methods.hsnet import LEVELS, HSNet, HSNetOptions, default_taps
from fss_svf.methods.hypercorrelation import CenterPivotConv4d, correlation, squeeze_strides, squeezed, unit_length
from fss_svf.methods.method import cross_entropy
from fss_svf.registry import TUNINGS, Choice
from tests.backbones.networks import network
from tests.cli.test_config import shipped_tuning
from tests.methods.test_methods import episode, in_float64

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def hsnet(build=lambda: tiny(TinyOptions(width=8))[0]):
    torch.manual_seed(1)
    return HSNet(build().requires_grad_(False), HSNetOptions())


def undilated():
    return resnet18(ResNetOptions(dilation="none"))[0]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 4)])
def test_the_convolution_is_its_sum_over_both_images(kernel, stride):
    g = torch.Generator().manual_seed(0)
    conv = CenterPivotConv4d(2, 3, kernel, stride).double()
    x = torch.randn(2, 2, 3, 4, 5, 7, generator=g).double()
    half, ends = kernel // 2, [-(-n // stride) for n in x.shape[4:]]
    with torch.no_grad():
        found = conv(x)
        expected = (conv.conv1.bias + conv.conv2.bias)[None, :, None, None, None, None].repeat(2, 1, 3, 4, *ends)
        for a, b, c, d in product(range(3), range(4), range(ends[0]), range(ends[1])):
            for i, j in product(range(kernel), range(kernel)):
                y, z = a + i - half, b + j - half
                if 0 <= y < 3 and 0 <= z < 4:
                    expected[:, :, a, b, c, d] += (
                        x[:, :, y, z, c * stride, d * stride] @ conv.conv1.weight[:, :, i, j].T
                    )
                y, z = c * stride + i - half, d * stride + j - half
                if 0 <= y < 5 and 0 <= z < 7:
                    expected[:, :, a, b, c, d] += x[:, :, a, b, y, z] @ conv.conv2.weight[:, :, i, j].T
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_correlation_is_the_cosine_above_0_of_every_pair_of_positions():
    g = torch.Generator().manual_seed(0)
    query, support = torch.randn(2, 3, 5, 2, 3, generator=g).double(), torch.randn(4, 3, 5, 3, 2, generator=g).double()
    found = correlation(unit_length(query), unit_length(support).unflatten(0, (2, 2)))
    assert found.shape == (4, 3, 2, 3, 3, 2)
    for pair, level in product(range(4), range(3)):
        a, b = query[pair // 2, level].flatten(1), support[pair, level].flatten(1)
        expected = F.cosine_similarity(a[:, :, None], b[:, None], dim=0).clamp(min=0)
        torch.testing.assert_close(found[pair, level].flatten(2).flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    assert unit_length(torch.zeros(1, 1, 2, 3, 3)).eq(0).all()


@pytest.mark.parametrize(
    ("stride", "strides"), [(4, (4, 4, 4)), (8, (4, 4, 2)), (14, (4, 2, 2)), (16, (4, 2, 2)), (32, (2, 2, 2))]
)
def test_every_level_ends_at_a_256th_of_the_image(stride, strides):
    assert squeeze_strides(stride) == strides
    for n in (33, 255, 256, 257, 400, 473):
        assert squeezed(-(-n // stride), strides) == -(-n // 256) or stride == 14


def test_an_evaluation_keeps_the_objects_positions_alone_and_predicts_the_same():
    """Supports of objects of different sizes, one of none, compared together."""
    model, e = hsnet(undilated).eval().double(), in_float64(episode(batch=1, shot=4, size=97))
    masks = torch.zeros_like(e.support_masks)
    for k, side in enumerate((70, 40, 0, 17)):
        masks[:, k, :side, 20 : 20 + side] = 1
    e = replace(e, support_masks=masks)
    inference = Inference(model, torch.device("cpu"), "float32")
    with torch.no_grad():
        whole = model(e)
        (query,), supports = inference.encode(
            torch.cat([e.query_image, e.support_images[0]]), masks[0], torch.arange(1), torch.arange(1, 5)
        )
        positions = [row["level2"].shape[-1] for row in supports]
        assert positions == sorted(positions, reverse=True) or positions[2] == 1
        assert positions[0] < 13 * 13
        assert positions[2] == 1  # of no object
        rows = inference.compare(query, supports)
        assert all(list(row) == ["logits"] for row in rows)
        parts = inference.segment(query, [rows], e.size)
        inference.device = torch.device("meta")  # as a GPU compares: all supports together, filled up with zeros
        together = inference.compare(query, supports)
    assert torch.equal(parts.logits, whole.logits)
    assert torch.equal(parts.aux["votes"], whole.aux["votes"])
    for one, other in zip(rows, together):
        torch.testing.assert_close(one["logits"], other["logits"], rtol=0, atol=1e-10)


def test_supports_vote():
    model, e = hsnet().eval(), episode(shot=5, size=97)
    with torch.no_grad():
        alone = [
            model(
                replace(e, support_images=e.support_images[:, k : k + 1], support_masks=e.support_masks[:, k : k + 1])
            ).logits
            for k in range(5)
        ]
        bias = torch.stack([logits[:, 1] - logits[:, 0] for logits in alone]).median()
        model.head.decoder2[-1].bias[0] += bias  # half of the pixels foreground
        masks = torch.stack([(logits[:, 1] - logits[:, 0] > bias).long() for logits in alone], dim=1)
        voted = model(e)
        model.shots = "mean"
        mean = model(e).logits
    assert len(masks.sum(1).unique()) > 3
    assert (voted.aux["votes"] != masks.sum(1)).sum() <= 5
    expected = torch.stack([vote(votes) for votes in masks])
    assert (voted.logits.argmax(1) != expected).sum() <= 5
    assert (mean.argmax(1) != voted.logits.argmax(1)).float().mean() < 0.5
    torch.testing.assert_close(
        mean[:, 1] - mean[:, 0] + bias, torch.stack([x[:, 1] - x[:, 0] for x in alone]).mean(0), rtol=1e-3, atol=1e-4
    )


def test_an_image_in_which_nobody_votes_is_background():
    model, e = hsnet().eval(), episode(shot=2, size=65)
    with torch.no_grad():
        model.head.decoder2[-1].bias[0] += 100
        assert model(e).logits.argmax(1).eq(0).all()


def test_ignored_pixels_are_background_in_supports_and_in_the_loss():
    model, e = hsnet().train(), episode(size=65)
    assert (e.support_masks == 255).any()
    zero = lambda masks: torch.where(masks == 255, 0, masks)  # noqa: E731
    without = replace(e, support_masks=zero(e.support_masks), query_mask=zero(e.query_mask))
    with torch.no_grad():
        prediction, other = model(e), model(without)
        assert torch.equal(prediction.logits, other.logits)
        losses = model.losses(prediction, e)
        assert losses == model.losses(other, without)
        assert losses["main"] == cross_entropy(prediction.logits, without.query_mask)


def test_several_supports_train_as_pairs():
    model, e = hsnet().train(), episode(shot=2, size=65)
    terms = []
    for k in range(2):
        one = Episode(e.query_image, e.support_images[:, k : k + 1], e.support_masks[:, k : k + 1], e.query_mask)
        terms.append(model.losses(model(one), one)["main"])
    loss = model.losses(model(e), e)["main"]
    torch.testing.assert_close(loss, sum(terms) / 2)
    loss.backward()
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("tuning", ["frozen", "layers", "svf", "lora", "full", "bias", "adapter", "usv"])
def test_every_parameter_that_a_tuning_trains_gets_a_gradient_through_the_correlations(tuning):
    torch.manual_seed(0)
    net = tiny(TinyOptions(width=8))[0]
    TUNINGS.build(shipped_tuning(tuning), net)
    model, e = HSNet(net, HSNetOptions()).train(), episode(size=65)
    model.losses(model(e), e)["main"].backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    moves = [p for p in net.parameters() if p.requires_grad]
    assert bool(moves) == (tuning != "frozen")
    assert all(torch.isfinite(p.grad).all() for p in moves)


def sums(stage, *blocks):
    return tuple(f"layer{stage}.{block}:sum" for block in blocks)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: resnet50(ResNetOptions(dilation="none"))[0],
            (sums(2, *range(4)), sums(3, *range(6)), sums(4, *range(3))),
        ),
        (lambda: resnet18(ResNetOptions())[0], (sums(2, 0, 1), sums(3, 0, 1), sums(4, 0, 1))),
        (lambda: vgg16_hsnet(VGGOptions())[0], (sums(3, 17, 19, 21), sums(4, 24, 26, 28), ("layer4",))),
        (lambda: vgg16(VGGOptions())[0], (sums(2, 14, 17, 20), sums(3, 24, 27, 30), sums(4, 34, 37, 40))),
        (
            lambda: efficientnet_lite0(EfficientNetOptions(weights=None, output_stride=32))[0],
            (("low",), ("mid",), ("deep",)),
        ),
        (lambda: TimmBackbone(network("vit")), (("low",), ("mid",), ("deep",))),
    ],
)
def test_the_maps_of_a_backbone(build, expected):
    with torch.device("meta"):
        net = build()
    assert default_taps(net) == expected


def test_a_vit_may_be_read_at_any_blocks():
    net = TimmBackbone(network("vit"))
    taps = (("blocks.0",), ("blocks.1", "blocks.2"), ("deep",))
    model = HSNet(net.requires_grad_(True), HSNetOptions(taps=taps)).eval()
    e = episode(size=64)
    with torch.no_grad():
        assert model.encode_query(e.query_image)["level3"].shape[1] == 2
        assert torch.isfinite(model(e).logits).all()


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ((("layer2",), ("layer3",)), r"taps: expected null or three lists of taps"),
        ((("layer2",), ("layer3",), ()), r"taps: expected null or three lists of taps"),
        ((("layer2",), ("layer9",), ("layer4",)), r"method\.taps\[1\]: layer9: no tap of this backbone"),
        (
            (("layer1", "layer2"), ("layer3",), ("layer4",)),
            r"method\.taps\[0\]: expected taps of the same channels and stride",
        ),
        ((("layer4",), ("layer3",), ("layer1",)), r"method\.taps: expected levels from fine to coarse"),
    ],
)
def test_taps_that_fit_nothing_are_named(taps, message):
    with pytest.raises(ConfigError, match=message):
        HSNet(tiny(TinyOptions(width=8))[0], HSNetOptions(taps=taps))


def test_a_dilated_network_is_said(caplog):
    HSNet(tiny(TinyOptions(width=8))[0], HSNetOptions())
    assert "method=hsnet: its levels are all at 1/8 of the image" in caplog.text


def test_sizes_where_the_levels_would_not_end_alike_are_refused():
    with torch.device("meta"):
        net = vgg16_hsnet(VGGOptions())[0]
    model = HSNet(net, HSNetOptions())
    for size in (288, 400, 473):
        model.check_size(size)
    with pytest.raises(ConfigError, match=r"^size: at 264 .* of HSNet .*; the nearest possible: 263$"):
        model.check_size(264)
    images, mask = torch.empty(1, 3, 264, 264, device="meta"), torch.empty(1, 264, 264, device="meta")
    support = {name: value.unsqueeze(1) for name, value in model.encode_support(images, mask).items()}
    with pytest.raises(ConfigError, match=r"maps of 33 x 33, 16 x 16, 8 x 8 do not end at one size"):
        model.correlations(model.encode_query(images), support)
    assert all(f"level{level}" in LEVELS for level in (2, 3, 4))


def test_the_vgg16_is_torchvisions():
    """Of values that are made here: to draw those of a classifier nobody reads takes seconds."""
    with torch.device("meta"):
        plain, net = torchvision.models.vgg16(weights=None).features, vgg16_hsnet(VGGOptions())[0]
    net.to_empty(device="cpu")
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * (2 / max(1, p[0].numel())) ** 0.5
    state = {name.split(".", 1)[1]: value for name, value in net.state_dict().items()}
    plain.load_state_dict(state, assign=True)  # layers keep torchvision's numbers
    image = torch.randn(1, 3, 97, 97, generator=g)
    with torch.no_grad():
        maps = net.eval()(image, ("layer3.17:sum", "layer4.28:sum", "layer4"))
        expected = [plain[: n + 1](image) for n in (17, 28, 30)]
    for (name, ours), theirs in zip(maps.items(), expected):
        tap = net.tap(name)
        assert (tap.channels, 97 // tap.stride) == (theirs.shape[1], theirs.shape[2])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("tuning", ["svf", "lora", "adapter"])
@pytest.mark.parametrize(
    "build",
    [
        undilated,
        lambda: efficientnet_lite0(EfficientNetOptions(weights=None, output_stride=32))[0],
        lambda: TimmBackbone(network("swin")),
        lambda: TimmBackbone(network("convnext")),
    ],
    ids=["resnet18", "efficientnet_lite0", "swin", "convnext"],
)
def test_sizes_are_checked_of_a_tuned_backbone_without_touching_it(build, tuning):
    torch.manual_seed(0)
    net = build()
    options = shipped_tuning(tuning).options
    if hasattr(options, "include"):
        options = replace(options, include=())
    try:
        TUNINGS.build(Choice(tuning, options), net)
    except ConfigError as error:
        pytest.skip(str(error))
    model = HSNet(net, HSNetOptions())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.check_size(129 if net.sizes.rest else 128)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.device.type == "cpu" for p in model.parameters())
