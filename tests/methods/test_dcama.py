"""What is DCAMA's own beside the golden cases (test_golden_dcama.py)."""

import math
from dataclasses import replace

import pytest
import torch

from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet50, tiny
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.backbones.vgg import VGGOptions, vgg16_plain
from fss_svf.errors import ConfigError
from fss_svf.evaluation.inference import joined
from fss_svf.methods.blocks import resize
from fss_svf.methods.dcama import DCAMA, MASKS, DCAMAOptions, pyramid
from fss_svf.methods.dcama_blocks import MaskAttention, combined, position_codes
from fss_svf.methods.method import flat_supports, regroup
from fss_svf.training.optim import require_gradients
from tests.backbones.networks import network
from tests.cli.test_config import TUNINGS_OF_CNNS
from tests.methods.test_methods import episode, in_float64
from tests.training.test_fake_gpu import tuned

pytestmark = pytest.mark.numeric


@torch.no_grad()
def test_attention_by_plain_loops():
    """One softmax over the positions of all supports, of the batch's own episode alone; a map of its own size each."""
    g = torch.Generator().manual_seed(0)
    attention = MaskAttention(16, 4, 0.5).eval().double()
    query = torch.randn(2, 3, 16, 3, 5, generator=g, dtype=torch.double)  # B, L, C, h, w
    support = torch.randn(2, 2, 3, 16, 4, 2, generator=g, dtype=torch.double)  # B, K, L, C, h, w
    masks = torch.rand(2, 2, 4, 2, generator=g, dtype=torch.double)
    keys = attention.keys(support.flatten(0, 1)).unflatten(0, (2, 2))
    found = combined(*attention(attention.queries(query), keys, masks))
    for b in range(2):
        for block in range(3):
            heads = []
            for head in range(4):
                part = slice(4 * head, 4 * head + 4)
                q = attention.query(query[b, block].flatten(1).T + position_codes(15, 16, query.device))[:, part]
                k = torch.cat(
                    [
                        attention.key(one[block].flatten(1).T + position_codes(8, 16, query.device))[:, part]
                        for one in support[b]
                    ]
                )
                heads.append((q @ k.T / math.sqrt(4)).softmax(1) @ masks[b].flatten())
            torch.testing.assert_close(found[b, block].flatten(), torch.stack(heads).mean(0), rtol=0, atol=1e-12)


def test_the_plain_mean_of_shots():
    g = torch.Generator().manual_seed(0)
    values, weights = (torch.rand(1, 3, 2, 4, 5, 5, generator=g).double() for _ in range(2))
    mean = combined(values, weights, mean=True)
    torch.testing.assert_close(mean, torch.stack([combined(values[:, [k]], weights[:, [k]]) for k in range(3)]).mean(0))
    assert not torch.allclose(mean, combined(values, weights))


@torch.no_grad()
def test_the_decoders_first_convolution_in_parts_equals_it_whole():
    model, e = tuned("dcama", "frozen", shot=2).eval().double(), in_float64(episode(shot=2, size=33))
    images, masks = flat_supports(e)
    support = model.encode_support(images, masks)
    of_query, of_supports = (model._skips(model._maps(x)) for x in (e.query_image, images))
    low, fine = (of_supports[name].unflatten(0, (2, 2)) for name in ("low", "fine"))
    mixed = torch.randn(2, model.inputs[0], *fine.shape[-2:], dtype=torch.double)

    def whole(low, fine):
        lows = [resize(x, fine.shape[-2:]) for x in (of_query["low"], low)]
        return model.decoder[0][0](torch.cat([mixed, *lows, of_query["fine"], fine], dim=1))

    def in_parts(support):
        query = model.encode_query(e.query_image)
        x = model._convolved(MASKS, mixed) + query["skip"] + model._support_skip(support)
        return x + model.decoder[0][0].bias.view(-1, 1, 1)

    torch.testing.assert_close(in_parts(regroup(support, 2)), whole(low.amax(1), fine.amax(1)), rtol=0, atol=1e-12)
    first = regroup(joined(model.kept(support)[::2]), 1)
    assert "skip" in first
    torch.testing.assert_close(in_parts(first), whole(low[:, 0], fine[:, 0]), rtol=0, atol=1e-12)
    of_both = regroup(joined(model.kept(support)), 2)
    assert torch.equal(in_parts(of_both), in_parts(regroup(support, 2)))


def test_position_codes_by_hand():
    codes = position_codes(3, 4, torch.device("cpu"))
    expected = [[f(p * 10000 ** (-2 * i / 4)) for i in range(2) for f in (math.sin, math.cos)] for p in range(3)]
    torch.testing.assert_close(codes, torch.tensor(expected))


def test_the_stages_of_backbones():
    stages, fine = pyramid(resnet50(ResNetOptions(dilation="none"))[0])
    assert stages[0] == tuple(f"layer2.{i}:sum" for i in range(4))
    assert [len(stage) for stage in stages] == [4, 6, 3]
    assert fine == "layer1.2:sum"
    # Of a Swin timm gives the ends of stages alone; of a ViT every block.
    assert pyramid(TimmBackbone(network("swin"))) == ([("layers.1",), ("layers.2",), ("layers.3",)], "layers.0")
    assert pyramid(TimmBackbone(network("vit"))) == (
        [("blocks.0", "blocks.1"), ("blocks.2",), ("blocks.3",)],
        "blocks.1",
    )
    stages, fine = pyramid(vgg16_plain(VGGOptions())[0])
    assert [len(stage) for stage in stages] == [1, 3, 2]  # layer2 ends behind a pool; the last convolution has no ReLU
    assert fine == "layer2.14:sum"
    with pytest.raises(ConfigError, match=r"low, mid and deep maps in this order, got blocks.2, blocks.2, blocks.3"):
        pyramid(TimmBackbone(network("vit"), {"low": "blocks.2", "mid": "blocks.2"}))


def test_ignored_pixels_are_background_in_the_loss():
    model, e = tuned("dcama", "frozen"), episode(size=33)
    background = replace(e, query_mask=torch.where(e.query_mask == 255, 0, e.query_mask))
    prediction = model.eval()(e)
    assert torch.equal(model.losses(prediction, e)["main"], model.losses(prediction, background)["main"])
    assert model.means_over["main"] == "episodes"


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match=r"method.heads: expected a divisor of the stage's 16 channels, got 3"):
        DCAMA(tiny(TinyOptions(width=8))[0], DCAMAOptions(heads=3))
    with pytest.raises(ConfigError, match="width: expected a multiple of 8, got 12"):
        DCAMAOptions(width=12)


@pytest.mark.parametrize("tuning", TUNINGS_OF_CNNS)
def test_every_tuning_trains(tuning):
    model, e = tuned("dcama", tuning, shot=2), episode(shot=2, size=33)
    loss = model.losses(model(e), e)["main"]
    loss.backward()
    require_gradients(model)
    assert torch.isfinite(loss)


def test_dropout_is_of_training_alone():
    model, e = tuned("dcama", "frozen"), episode(size=33)
    with torch.no_grad():
        assert not torch.equal(model(e).logits, model(e).logits)
        assert torch.equal(model.eval()(e).logits, model(e).logits)
