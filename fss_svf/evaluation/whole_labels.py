"""Labels of a query with all classes of its episodes (protocol.classes=all), some ways at a time.

A query may have 80 ways of 5 supports. Ways that are predicted alone need not be compared or segmented together: of those
that are done, an episode's labels and how sure they are is all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, log

import torch
from torch import Tensor

from fss_svf.episode import Features
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.features import ImageFeatures
from fss_svf.evaluation.groups import QueryGroup, Support
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.task import EvaluationTask
from fss_svf.evaluation.timer import Timer
from fss_svf.evaluation.ways import foreground_odds
from fss_svf.methods.blocks import argmax


class WholeLabels:
    """Called with a group, its encoded query and the label's (H, W): labels (E, H, W) uint8 in 0..N, n of way n, of its E
    different episodes."""

    def __init__(
        self, task: EvaluationTask, inference: Inference, features: ImageFeatures, batch_size: int, timer: Timer
    ) -> None:
        """batch_size: predictions at a time, of all ways or, where each is predicted alone, of one."""
        self.task, self.inference, self.features, self.timer = task, inference, features, timer
        self.batch_size, self.size = batch_size, (task.transform.size, task.transform.size)
        # Any method of one class is as sure as not at 0.5; that of a method with a base learner is the protocol's.
        threshold = 0.5 if task.base is None else task.protocol.novel_threshold
        self.threshold = _odds(0.5 if threshold is None else threshold)

    def __call__(self, group: QueryGroup, query: Features, size: tuple[int, int]) -> Tensor:
        if self.task.way_rule == "joint":
            return self._joint(group, query, size)
        return self._argmax(group, query, size)

    def _joint(self, group: QueryGroup, query: Features, size: tuple[int, int]) -> Tensor:
        episodes, found = [group.supports(images) for images in group.episodes], []
        for batch in _alike(episodes, self.batch_size):
            logits = self._logits(query, [episodes[e] for e in batch], len(group.class_ids), size)
            found.append(argmax(logits, 1).to(torch.uint8))
        return torch.cat(found)

    def _argmax(self, group: QueryGroup, query: Features, size: tuple[int, int]) -> Tensor:
        """As join_ways, which sees all ways at once."""
        ways = len(group.class_ids)
        parts = []
        for images in group.episodes:
            supports = group.supports(images)
            shot = len(supports) // ways
            parts += [supports[way * shot : (way + 1) * shot] for way in range(ways)]
        best: list[Tensor | None] = [None] * len(group.episodes)
        labels: list[Tensor] = [torch.empty(0)] * len(group.episodes)
        for batch in _alike(parts, self.batch_size):
            odds = foreground_odds(self._logits(query, [parts[i] for i in batch], 1, size))
            for i, of_way in zip(batch, odds):
                e, way = divmod(i, ways)
                before = best[e]
                if before is None:
                    before = torch.full_like(of_way, self.threshold)
                    labels[e] = torch.zeros_like(of_way, dtype=torch.uint8)
                # Of equal ways the first has the pixel, and they come in order.
                labels[e] = torch.where(of_way > before, way + 1, labels[e]).to(torch.uint8)
                best[e] = torch.maximum(of_way, before)
        return torch.stack(labels)

    def _logits(
        self, query: Features, episodes: Sequence[Sequence[Support]], ways: int, size: tuple[int, int]
    ) -> Tensor:
        """(B, 1 + ways, H, W) of B episodes, of each its supports way by way, at the label's size."""
        keys = list(dict.fromkeys(key for supports in episodes for key in supports))
        rows = [self.features[key] for key in keys]
        with self.timer("comparing"):
            compared: Mapping[Support, Features] = dict(zip(keys, self.inference.compare(query, rows)))
        with self.timer("segmenting"):
            of_episodes = [[compared[key] for key in supports] for supports in episodes]
            logits = self.inference.segment(query, of_episodes, self.size, ways).logits
        with self.timer("upsampling"):
            return at_label(logits, size, self.task.protocol)


def _odds(probability: float) -> float:
    """The log odds of a probability in [0, 1)."""
    return log(probability / (1 - probability)) if probability else -inf


def _alike(parts: Sequence[Sequence[Support]], size: int) -> list[list[int]]:
    """The numbers of all parts, in batches of up to `size` neighbours with as many supports."""
    batches: list[list[int]] = []
    for i, part in enumerate(parts):
        if not batches or len(batches[-1]) == size or len(parts[batches[-1][0]]) != len(part):
            batches.append([])
        batches[-1].append(i)
    return batches
