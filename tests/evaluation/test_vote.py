"""HSNet's vote over K masks, by hand and against a loop over pixels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fss_svf.evaluation.vote import vote


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),  # none: background, though 0 is half of 0
        ((0, 1, 0), (0, 1, 0)),
        ((1, 2, 0), (1, 1, 0)),  # half of the highest vote is enough
        ((1, 2, 3), (0, 1, 1)),  # 1 / 3 and 2 / 3
        ((2, 4, 1), (1, 1, 0)),
        ((2, 5, 3), (0, 1, 1)),  # 0.4 and 0.6
        ((1, 1, 2), (1, 1, 1)),  # the highest vote of the image counts, not the five supports
    ],
)
def test_by_hand(votes, expected):
    masks = torch.tensor([[[int(k < v) for v in votes]] for k in range(5)], dtype=torch.uint8)  # (5, 1, 3)
    found = vote(masks)
    assert found.dtype == torch.uint8
    assert found.tolist() == [list(expected)]


def test_one_mask_stays_as_it_is():
    mask = (torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    assert torch.equal(vote(mask), mask[0])


@given(arrays("uint8", array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 1)))
def test_against_a_loop(masks):
    shots, height, width = masks.shape
    votes = [[sum(int(masks[k, y, x]) for k in range(shots)) for x in range(width)] for y in range(height)]
    most = max(1, max(max(row) for row in votes))
    expected = [[1 if v / most >= 0.5 else 0 for v in row] for row in votes]
    assert vote(torch.from_numpy(masks)).tolist() == expected
