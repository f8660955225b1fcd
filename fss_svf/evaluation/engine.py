"""Running episodes: every image is encoded once, every query compared once with a support, whatever they serve.

The counts are those of a plain loop, which encodes and segments one episode after the other: equal in float64, and in
float32 but for a pixel here and there (tests/evaluation/test_engine.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fss_svf import tuned
from fss_svf.data.loading import base_label_lookup
from fss_svf.episode import IGNORE, Features
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.base_classes import count_fusions, fused
from fss_svf.evaluation.episode_loss import EpisodeLoss
from fss_svf.evaluation.features import ImageFeatures
from fss_svf.evaluation.groups import QueryGroup, Support, SupportIds
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.metric import count_classes, count_labels, count_masks, count_true
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer
from fss_svf.evaluation.vote import vote
from fss_svf.evaluation.ways import foreground_odds, join_ways
from fss_svf.evaluation.whole_labels import WholeLabels
from fss_svf.methods.base_classes import BaseClassMethod, further_predictions
from fss_svf.methods.blocks import argmax

Counts = TypeVar("Counts", Tensor, np.ndarray)
# Of different episodes, by their supports: the mask (H, W) uint8 in 0..N at the label's place, and the true one.
Masks = dict[SupportIds, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class GroupCounts(Generic[Counts]):
    """The counts of a group's E different episodes, int64, in the order of group.episodes.

    prediction  (E, 2 + N, 2) of the method's masks, as count_masks; N: the ways, with protocol.classes=all all classes
    further     the same of its further predictions, by name
    base        (n + 1, 2) of the base classes in the query, as count_labels; None where they are not measured
    fusions     (E, n + 2, 2) of base classes and the novel one, as count_labels, by the names of count_fusions
    true        (N,) pixels of each way in the label, the same for all E, as count_true
    """

    prediction: Counts
    further: dict[str, Counts]
    base: Counts | None
    fusions: dict[str, Counts]
    true: Counts


class Engine:
    """Runs groups of episodes. Iterated, it yields the number of each group, its counts and its masks."""

    def __init__(
        self,
        task: EvaluationTask,
        options: EngineOptions,
        groups: Sequence[QueryGroup],
        positions: Sequence[int],
        progress: Callable[[], object] = lambda: None,
        timer: Timer | None = None,
        loss: EpisodeLoss | None = None,
    ) -> None:
        """`positions`: of `groups`, those to be run, ascending. `progress` is called whenever images were encoded.

        loss: takes the logits of each episode, but where masks vote, or each class has logits of its own.
        """
        self.task, self.options, self.groups, self.positions = task, options, groups, positions
        self.timer, self.loss = timer or Timer(options.device), loss
        self.inference = Inference(task.model, options.device, options.precision, options.batch_size)
        self.features = ImageFeatures(task, options, self.inference, groups, positions, self.timer, progress)
        self._whole = WholeLabels(task, self.inference, self.features, options.batch_size, self.timer)
        self._lookup: Tensor | None = None
        if task.base is not None:
            lookup = torch.from_numpy(base_label_lookup(task.split.index, task.base))
            self._lookup = lookup.to(options.device, non_blocking=True)

    def __iter__(self) -> Generator[tuple[int, GroupCounts[np.ndarray], Masks], None, None]:
        """The tuned layers are merged while it runs. The model is left in eval mode, unmerged."""
        model = self.task.model.eval()
        try:
            tuned.merge(model)
            model.shots = "mean" if self.task.protocol.shots == "mean" else "method"
            with closing(self.features):
                for position in self.positions:
                    # A generator must not leave its caller in inference mode.
                    with self.inference.running():
                        counts, masks = self.run(self.groups[position])
                    yield position, counts, masks
        finally:
            model.shots = "method"
            tuned.unmerge(model)

    def run(self, group: QueryGroup) -> tuple[GroupCounts[np.ndarray], Masks]:
        """Compare the query with every support, segment every different episode, and count.

        On a GPU the host waits for the counts, once; before that where images are encoded, once for each support whose kept
        size depends on its mask (without_empty in methods/blocks.py), and where features go to files.
        """
        if self.task.protocol.classes == "all":
            return self._run_whole(group)
        query, keys = self.features[group.query], group.all_supports()
        supports = [self.features[key] for key in keys]
        with self.timer("comparing"):
            compared = dict(zip(keys, self.inference.compare(query, supports)))
        counts, masks = self.count(group, query, compared, self.features.label(group.query))
        self.features.release(group)
        return _on_host(counts), masks

    def _run_whole(self, group: QueryGroup) -> tuple[GroupCounts[np.ndarray], Masks]:
        """The same where a query is labelled with all classes of the task."""
        query, label = self.features[group.query], self.features.label(group.query)
        labels = {"": self._whole(group, query, (label.shape[0], label.shape[1]))}
        if self.task.base is not None:
            first, second = fused(labels[""], self._base_labels(query, label), len(self.task.base)).values()
            labels = dict(zip(("", *self.task.further), (first, second)))
        classes = self.task.classes
        truth = _truth(label, [self.task.split.index.value(group.query.image, c) for c in classes])
        with self.timer("counting"):
            counts = {name: count_classes(found, truth, len(classes)) for name, found in labels.items()}
        self.features.release(group)
        masks = {images: (mask.to(torch.uint8), truth) for images, mask in zip(group.episodes, labels[""])}
        return _on_host(GroupCounts(counts.pop(""), counts, None, {}, count_true(truth, len(classes)))), masks

    def count(
        self, group: QueryGroup, query: Features, supports: Mapping[Support, Features], label: Tensor
    ) -> tuple[GroupCounts[Tensor], Masks]:
        """The group's counts and masks, on the device. supports: compared with the query; label: see ImageFeatures."""
        truth, ways = _truth(label, self._values(group)), len(group.class_ids)
        names = further_predictions(self.task.model)
        of_predictions: list[list[Tensor]] = [[] for _ in ("", *names)]
        of_fusions: dict[str, list[Tensor]] = defaultdict(list)
        base_counts: Tensor | None = None
        if self.task.base is not None:
            assert self._lookup is not None
            base, n = self._base_labels(query, label), len(self.task.base)
            base_label = self._lookup[label.long()]
            base_counts = count_labels(base[None], base_label, n + 1)[0]
        of_episodes: Masks = {}
        for episodes, masks, novel in self._segmented(group, query, supports, label):
            with self.timer("counting"):
                for parts, predicted in zip(of_predictions, masks):
                    parts.append(count_masks(predicted, truth, ways))
                if novel is not None:
                    for name, fused in count_fusions(novel, base, truth, base_label, n).items():
                        of_fusions[name].append(fused)
            of_episodes |= {images: (mask, truth) for images, mask in zip(episodes, masks[0])}
        prediction, *further = map(torch.cat, of_predictions)
        fusions = {name: torch.cat(parts) for name, parts in of_fusions.items()}
        counts = GroupCounts(prediction, dict(zip(names, further)), base_counts, fusions, count_true(truth, ways))
        return counts, of_episodes

    def _segmented(
        self, group: QueryGroup, query: Features, supports: Mapping[Support, Features], label: Tensor
    ) -> Iterator[tuple[list[SupportIds], list[Tensor], Tensor | None]]:
        """Of every different episode, in order: its supports, its masks (B, H, W) uint8 by the method's prediction and by
        each further one, and, where base and novel classes are fused, where the novel class is (B, H, W)."""
        if self.task.protocol.shots != "vote":
            yield from self._batches(group, list(group.episodes), query, supports, label)
            return
        alone = dict.fromkeys((image,) for images in group.episodes for image in images)
        of_support: dict[int, list[Tensor]] = {}
        for batch, masks, _ in self._batches(group, list(alone), query, supports, label):
            of_support |= {one[0]: [mask[i] for mask in masks] for i, one in enumerate(batch)}
        for images in group.episodes:
            voters = zip(*(of_support[image] for image in images))  # the masks of each prediction
            yield [images], [vote(torch.stack(masks))[None] for masks in voters], None

    def _batches(
        self,
        group: QueryGroup,
        episodes: Sequence[SupportIds],
        query: Features,
        supports: Mapping[Support, Features],
        label: Tensor,
    ) -> Iterator[tuple[list[SupportIds], list[Tensor], Tensor | None]]:
        """The same without a vote."""
        protocol, size = self.task.protocol, (label.shape[0], label.shape[1])
        apart = len(group.class_ids) if self.task.way_rule == "argmax" else 1
        for batch in _of_as_many_supports(episodes, max(1, self.options.batch_size // apart)):
            with self.timer("segmenting"):
                rows = [[supports[key] for key in group.supports(images)] for images in batch]
                # Each class of each episode by itself, or the classes of an episode together.
                rows = [part for of_episode in rows for part in _parts(of_episode, apart)]
                prediction = self.inference.segment(query, rows, self._size, len(group.class_ids) // apart)
            with self.timer("upsampling"):
                further = [prediction.aux[name] for name in further_predictions(self.task.model)]
                at_size = [at_label(logits, size, protocol) for logits in (prediction.logits, *further)]
                masks = [_masks(logits, apart) for logits in at_size]
                if self.loss is not None and apart == 1 and protocol.shots != "vote":
                    times = [len(group.episodes[images]) for images in batch]
                    self.loss.add(at_size[0], _truth(label, self._values(group)), times)
                novel = None
                if self.task.base is not None and protocol.novel_threshold is not None:
                    novel = at_size[0].softmax(1)[:, 1] > protocol.novel_threshold
            yield batch, masks, novel

    def _base_labels(self, query: Features, label: Tensor) -> Tensor:
        """(H, W): the base classes that the model's base learner predicts, 0..n."""
        model = self.task.model
        assert isinstance(model, BaseClassMethod)
        with self.timer("segmenting"):
            logits = model.segment_base(query, self._size)
            return argmax(at_label(logits, (label.shape[0], label.shape[1]), self.task.protocol)[0], 0)

    def _values(self, group: QueryGroup) -> list[int]:
        """Of each way, what its class is in the query's label."""
        return [self.task.split.index.value(group.query.image, c) for c in group.class_ids]

    @property
    def _size(self) -> tuple[int, int]:
        return self.task.transform.size, self.task.transform.size


def _truth(label: Tensor, values: Sequence[int]) -> Tensor:
    """(H, W) uint8: n where the label is the n-th of `values`, from 1 on, 255 where it is ignored, else 0."""
    truth = torch.where(label == IGNORE, IGNORE, 0).to(torch.uint8)
    for way, value in enumerate(values, 1):
        truth = torch.where(label == value, way, truth).to(torch.uint8)
    return truth


def _parts(rows: list[Features], number: int) -> list[list[Features]]:
    """Rows, way by way, in `number` equal parts."""
    length = len(rows) // number
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def _masks(logits: Tensor, apart: int) -> Tensor:
    """(B * apart, C, H, W) logits of B episodes to masks (B, H, W) uint8; `apart`: predictions that make an episode."""
    if apart == 1:
        return argmax(logits, 1).to(torch.uint8)
    return join_ways(foreground_odds(logits).unflatten(0, (-1, apart)), threshold=0)


def _of_as_many_supports(episodes: Sequence[SupportIds], size: int) -> Iterator[list[SupportIds]]:
    """Batches of up to `size` neighbours that have the same number of supports."""
    batch: list[SupportIds] = []
    for images in episodes:
        if batch and (len(batch) == size or len(batch[0]) != len(images)):
            yield batch
            batch = []
        batch.append(images)
    if batch:
        yield batch


def _on_host(counts: GroupCounts[Tensor]) -> GroupCounts[np.ndarray]:
    """All counts in one copy."""
    base = [] if counts.base is None else [counts.base]
    parts = [counts.prediction, *counts.further.values(), *counts.fusions.values(), counts.true, *base]
    flat = torch.cat([part.flatten() for part in parts]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    arrays = iter([one.reshape(part.shape) for one, part in zip(np.split(flat, ends[:-1]), parts)])
    return GroupCounts(
        prediction=next(arrays),
        further={name: next(arrays) for name in counts.further},
        fusions={name: next(arrays) for name in counts.fusions},
        true=next(arrays),
        base=next(arrays, None),
    )
