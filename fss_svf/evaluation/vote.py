"""K supports by a model of one: each says a mask of its own, and the masks vote.

Source: HSNet (ICCV 2021, arXiv 2104.01538), its extension to K shots, and the behaviour of its official code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fss_svf.methods.blocks import vote_margin


def vote(masks: Tensor) -> Tensor:
    """(K, H, W) masks of 0 and 1 to one of (H, W), uint8: 1 where a pixel has half of the highest vote or more.

    The highest vote of any pixel in the image counts, not K: an object that two of five supports find is kept where
    one of them sees it. Without any vote all is background.
    """
    return (vote_margin(masks.sum(0)) >= 0).to(torch.uint8)
