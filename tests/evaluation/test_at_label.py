"""Masks at the size of the label: label=exact and predict put them where the pixels came from, whatever the image's size."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fss_svf import Segmenter
from fss_svf.config import Protocol
from fss_svf.data.augment import EvalTransform
from fss_svf.episode import Prediction
from fss_svf.evaluation.at_label import at_label, label_off, rows_at_label
from fss_svf.evaluation.conditions import warn_of_stretch
from fss_svf.methods.method import FewShotMethod

ORIGINAL = Protocol("svf", 1, 1, 0, "in_order", "pad", "original", "error")
EXACT = replace(ORIGINAL, label="exact")
SIDE = 97


class Bright(FewShotMethod):
    """A network that sees every pixel of its input: what is bright is the object."""

    def __init__(self):
        nn.Module.__init__(self)
        self.backbone = nn.Conv2d(3, 3, 1)

    def encode_query(self, images):
        return {"images": images}

    def encode_support(self, images, masks):
        return {"nothing": images[:, :1, :1, :1]}

    def segment(self, query, support, size):
        bright = query["images"].mean(1, keepdim=True)
        return Prediction(torch.cat([-bright, bright], 1))


def resized(values, height, width):
    """(h, w) to (height, width) float64, bilinear between pixel centres, by its formula."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1) for old, new in zip(values.shape, (height, width))
    )
    over_rows = np.stack([np.interp(rows, np.arange(values.shape[0]), column) for column in values.T], 1)
    return np.stack([np.interp(columns, np.arange(values.shape[1]), row) for row in over_rows])


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (60, 90), (7, 300), (300, 7), (97, 97), (1, 1)])
def test_exact_is_the_inverse_of_the_inputs_resizing(size, resize):
    logits = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    height, width = EvalTransform(SIDE, resize).inner(*size)
    found = at_label(logits, size, replace(EXACT, resize=resize))
    assert found.shape == (2, 1, *size)
    for row, values in zip(found[:, 0], logits[:, 0, :height, :width].double().numpy()):
        np.testing.assert_allclose(row, resized(values, *size), rtol=0, atol=1e-4)
    strips = [rows_at_label(logits, size, replace(EXACT, resize=resize), n, n + 1) for n in range(size[0])]
    torch.testing.assert_close(torch.cat(strips, 2), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(375, 500), (1500, 2000), (2000, 1333), (100, 1500), (40, 60)])
def test_what_a_perfect_network_sees_lies_where_it_is(monkeypatch, size):
    monkeypatch.setattr("fss_svf.prediction.segmenter._STRIP", 100_000)  # several strips
    segmenter = Segmenter(Bright(), EvalTransform(SIDE, "pad"), ORIGINAL, torch.device("cpu"))
    code = segmenter.learn([np.zeros((64, 64, 3), np.uint8)], [np.ones((64, 64), np.uint8)])
    height, width = size
    truth = np.zeros(size, np.uint8)
    truth[int(0.5 * height) : int(0.9 * height), int(0.2 * width) : int(0.9 * width)] = 1
    (found,) = segmenter.segment([np.repeat(truth[..., None] * np.uint8(255), 3, 2)], code)
    for axis, (full, inner) in enumerate(zip(size, EvalTransform(SIDE, "pad").inner(*size))):
        # An edge is known to half a pixel of the input.
        ends = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for mask in (found, truth)]
        assert np.abs(ends[0] - ends[1]).max() <= 0.5 * full / inner + 1


def test_how_far_the_official_stretching_is_off_and_when_that_is_a_warning(caplog):
    for size in ((375, 500), (500, 333), (3000, 4000)):
        square, (height, width) = max(size), EvalTransform(473, "pad").inner(*size)
        last_row, last_column = torch.zeros(1, 1, 473, 473), torch.zeros(1, 1, 473, 473)
        last_row[..., height - 1, :], last_column[..., :, width - 1] = 1, 1
        wide = replace(ORIGINAL, resize="squash")  # of a square: the whole of what is stretched
        off = [size[0] - 1 - int(at_label(last_row, (square, square), wide)[0, 0, :, 0].argmax())]
        off += [size[1] - 1 - int(at_label(last_column, (square, square), wide)[0, 0, 0].argmax())]
        assert abs(label_off(size, 473, ORIGINAL) - max(map(abs, off))) <= 1
        assert label_off(size, 473, EXACT) == 0
    caplog.set_level(logging.WARNING)
    papers = np.array([(height, 500) for height in range(100, 501)])
    warn_of_stretch(ORIGINAL, papers, 473)
    warn_of_stretch(EXACT, np.array([(3000, 4000)]), 473)
    assert not caplog.text
    warn_of_stretch(ORIGINAL, np.array([(375, 500), (3000, 4000)]), 473)
    assert "by up to 25 pixels in images of 4000 x 3000" in caplog.text
    assert "protocol.label=exact" in caplog.text
