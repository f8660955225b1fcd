"""The loss of an evaluation, of the logits that it has anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fss_svf import distributed
from fss_svf.methods.method import cross_entropy_of_each


class EpisodeLoss:
    """Mean over episodes of the cross-entropy of an episode's logits: the mean over its pixels that are not ignored.

    Logits and mask have the size at which the protocol counts. The sums stay on the device.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._episodes = 0

    def add(self, logits: Tensor, truth: Tensor, times: Sequence[int]) -> None:
        """(B, C, H, W) logits of B different predictions and their mask (H, W); times: how many episodes each is of."""
        losses = cross_entropy_of_each(logits, truth.expand(len(logits), -1, -1))
        if any(n != 1 for n in times):
            losses = losses * torch.tensor(times, dtype=losses.dtype).to(losses.device, non_blocking=True)
        self._sum = losses.sum() if self._sum is None else self._sum + losses.sum()
        self._episodes += sum(times)

    def read(self) -> float | None:
        """Over all processes, each of which must call it; None where no logits came. The host waits for the device."""
        of_this = 0.0 if self._sum is None else float(self._sum)
        total, episodes = distributed.total([of_this, self._episodes])
        return total / episodes if episodes else None
