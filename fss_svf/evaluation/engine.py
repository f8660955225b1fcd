"""Running the episodes of a protocol through a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.config import Protocol
from fss_svf.console import progress
from fss_svf.data.loading import EvalBatch, EvalEpisodes, batches, collate_eval
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.base_classes import BaseClassCounts
from fss_svf.evaluation.counts import Counts
from fss_svf.methods.method import FewShotMethod
from fss_svf.reporting.pictures import EpisodePicture


@dataclass(frozen=True)
class Run:
    """The outcome of one run of a protocol: its counts, and the first few episodes to look at.

    others: counts of a method's further predictions (FewShotMethod.also_evaluated) by name
    base: counts of the base classes, where `make` has their labels
    """

    counts: Counts
    pictures: list[EpisodePicture]
    others: dict[str, Counts]
    base: BaseClassCounts | None


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
    svf.merge(model)
    try:
        with progress(len(episodes), f"{episodes.shot}-shot, seed {episodes.seed}", "episode") as bar:
            for batch in batches(make, collate_eval, range(len(episodes)), batch_size, workers):
                prediction = model(batch.episode.to(device).normalized())
                for i, mask in enumerate(masks_at_label(prediction.logits, batch, protocol)):
                    truth, class_id = _truth(batch, i, protocol), int(batch.episode.class_id[i])
                    both, either = counts.update(class_id, mask, truth)
                    if len(drawn) < pictures:
                        drawn.append(_picture(make, int(batch.episode.number[i]), class_id, mask, truth, both, either))
                for name, its in others.items():
                    for i, mask in enumerate(masks_at_label(prediction.aux[name], batch, protocol)):
                        its.update(int(batch.episode.class_id[i]), mask, _truth(batch, i, protocol))
                if base is not None:
                    base.update(prediction, batch, protocol)
                bar.set_postfix_str(f"mIoU {100 * counts.miou():.1f}", refresh=False)
                bar.update(len(batch.original_masks))
    finally:
        svf.unmerge(model)
    return Run(counts, drawn, others, base)


def masks_at_label(logits: Tensor, batch: EvalBatch, protocol: Protocol) -> list[Tensor]:
    """(B, 2, H, W) logits as a bool mask on the CPU for each episode, in the size and place of the protocol's label."""
    return [(one[1] > one[0]).cpu() for one in at_label(logits, batch, protocol)]


def _truth(batch: EvalBatch, i: int, protocol: Protocol) -> Tensor:
    if protocol.label == "original":
        return batch.original_masks[i]
    assert batch.episode.query_mask is not None
    return batch.episode.query_mask[i]


def _picture(
    make: EvalEpisodes,
    number: int,
    class_id: int,
    mask: Tensor,
    truth: Tensor,
    both: int,
    either: int,
) -> EpisodePicture:
    spec = make.episodes[number]
    image, mask_of_support = make.support(spec, 0)
    return EpisodePicture(
        title=f"{make.episodes.index.class_name(class_id)}  IoU {100 * both / max(either, 1):.0f}",
        support_image=image,
        support_mask=(mask_of_support == 1),
        query_image=make.split.image(spec.query),
        truth=(truth == 1).numpy(),
        prediction=mask.numpy(),
    )
