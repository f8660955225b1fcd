"""Running the episodes of a protocol through a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.config import Protocol
from fss_svf.console import progress
from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.loading import EvalBatch, EvalEpisodes, batches, collate_eval
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.base_classes import BaseClassCounts
from fss_svf.evaluation.counts import Counts, EpisodeCount, count_episode
from fss_svf.methods.method import FewShotMethod
from fss_svf.reporting.pictures import EpisodePicture


@dataclass(frozen=True)
class Run:
    """The outcome of one run of a protocol: its counts, and the first few episodes to look at.

    others: counts of a method's further predictions (FewShotMethod.also_evaluated) by name
    base: counts of the base classes, where `make` has their labels
    episodes: the counts of each episode, in order
    """

    counts: Counts
    pictures: list[EpisodePicture]
    others: dict[str, Counts]
    base: BaseClassCounts | None
    episodes: list[EpisodeCount]


@torch.inference_mode()
def evaluate_run(
    model: FewShotMethod,
    make: EvalEpisodes,
    protocol: Protocol,
    device: torch.device,
    batch_size: int,
    workers: int,
    pictures: int = 0,
) -> Run:
    """Evaluate all episodes of `make` with SVF merged. The model is left in eval mode, unmerged."""
    model.eval()
    episodes = make.episodes
    counts = Counts(len(episodes.index.class_names))
    others = {name: Counts(len(episodes.index.class_names)) for name in model.also_evaluated}
    base = None
    if make.base is not None:
        base = BaseClassCounts(len(episodes.index.class_names), make.base, protocol.novel_threshold)
    drawn: list[EpisodePicture] = []
    each: list[EpisodeCount] = []
    svf.merge(model)
    try:
        with progress(len(episodes), f"{episodes.shot}-shot, seed {episodes.seed}", "episode") as bar:
            for batch in batches(make, collate_eval, range(len(episodes)), batch_size, workers):
                prediction = model(batch.episode.to(device).normalized())
                for i, mask in enumerate(masks_at_label(prediction.logits, batch, protocol)):
                    truth, spec = _truth(batch, i, protocol), episodes[int(batch.episode.number[i])]
                    counted = count_episode(episodes.measured(spec), mask, truth)
                    counts.add(counted)
                    each.append(counted)
                    if len(drawn) < pictures:
                        drawn.append(_picture(make, spec, mask, truth, *counted.foreground))
                for name, its in others.items():
                    for i, mask in enumerate(masks_at_label(prediction.aux[name], batch, protocol)):
                        spec = episodes[int(batch.episode.number[i])]
                        its.add(count_episode(episodes.measured(spec), mask, _truth(batch, i, protocol)))
                if base is not None:
                    base.update(prediction, batch, protocol)
                bar.set_postfix_str(f"mIoU {100 * counts.miou():.1f}", refresh=False)
                bar.update(len(batch.original_masks))
    finally:
        svf.unmerge(model)
    return Run(counts, drawn, others, base, each)


def masks_at_label(logits: Tensor, batch: EvalBatch, protocol: Protocol) -> list[Tensor]:
    """(B, 1 + N, H, W) logits as a uint8 mask in 0..N on the CPU for each episode, where the protocol counts."""
    return [one.argmax(0).to(torch.uint8).cpu() for one in at_label(logits, batch, protocol)]


def _truth(batch: EvalBatch, i: int, protocol: Protocol) -> Tensor:
    if protocol.label == "original":
        return batch.original_masks[i]
    assert batch.episode.query_mask is not None
    return batch.episode.query_mask[i]


def _picture(
    make: EvalEpisodes, spec: EpisodeSpec, mask: Tensor, truth: Tensor, both: int, either: int
) -> EpisodePicture:
    names = ", ".join(make.episodes.index.class_name(c) for c in spec.class_ids)
    return EpisodePicture(
        title=f"{names}  IoU {100 * both / max(either, 1):.0f}",
        supports=[make.support(spec, 0, way) for way in range(1, spec.way + 1)],
        query_image=make.split.image(spec.query),
        truth=truth.numpy(),
        prediction=mask.numpy(),
    )
