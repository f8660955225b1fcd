"""The plain loop that the engine's counts must equal: one episode after the other, every image encoded again each time."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.data import loading
from fss_svf.episode import Episode
from fss_svf.evaluation.at_label import at_label


@dataclass(frozen=True)
class EvalEpisode:
    """An episode (B = 1), and its query's mask (H, W) uint8 in {0..N, 255} at the original size."""

    episode: Episode
    original_mask: Tensor


class EvalEpisodes(loading.Episodes):
    """Makes evaluation episodes by their place in a list."""

    def __init__(self, split, episodes, transform, annotation="mask"):
        super().__init__(split, annotation)
        self.episodes, self.transform = episodes, transform

    def __call__(self, number):
        spec = self.episodes[number]
        query = self.query(spec)
        transformed = [self.transform(*pair) for pair in [query, *self.supports(spec)]]
        return EvalEpisode(loading.episode_of(transformed, spec, number), torch.from_numpy(query[1]))


@torch.inference_mode()
def plain_counts(task, episodes, name=""):
    """(E, 2 + C, 2) counts of an EpisodeList in order, of the method's prediction or of Prediction.aux[name]."""
    make, model = EvalEpisodes(task.split, episodes, task.transform, task.annotation), task.model.eval()
    svf.merge(model)
    counts = np.zeros((len(episodes), 2 + len(task.classes), 2), np.int64)
    for n in range(len(episodes)):
        one = make(n)
        prediction = model(as_float(one.episode, next(model.backbone.parameters()).dtype))
        mask = mask_at_label(prediction.aux[name] if name else prediction.logits, one, task.protocol)
        truth = one.episode.query_mask[0] if task.protocol.label == "resized" else one.original_mask
        counts[n] = plain_count(mask.numpy(), truth.numpy(), episodes.measured(episodes[n]), task.classes)
    svf.unmerge(model)
    return counts


def plain_true(task, episodes):
    """(E, C) pixels of each class in the label of an EpisodeList's episodes, 0 where it is not measured."""
    make = EvalEpisodes(task.split, episodes, task.transform, task.annotation)
    true = np.zeros((len(episodes), len(task.classes)), np.int64)
    for n in range(len(episodes)):
        one = make(n)
        truth = one.episode.query_mask[0] if task.protocol.label == "resized" else one.original_mask
        for way, c in episodes.measured(episodes[n]).items():
            true[n, list(task.classes).index(c)] = (truth == way).sum()
    return true


def plain_count(mask, truth, measured, classes):
    """(2 + C, 2) pixels of one episode: background, foreground, and each of `classes`, by the definitions."""
    counts = np.zeros((2 + len(classes), 2), np.int64)
    mask, truth = mask[truth != 255], truth[truth != 255]
    counts[0] = ((mask == 0) & (truth == 0)).sum(), ((mask == 0) | (truth == 0)).sum()
    counts[1] = ((mask > 0) & (truth > 0)).sum(), ((mask > 0) | (truth > 0)).sum()
    for way, c in measured.items():
        counts[2 + list(classes).index(c)] = (
            ((mask == way) & (truth == way)).sum(),
            ((mask == way) | (truth == way)).sum(),
        )
    return counts


def as_float(episode, dtype):
    """The normalised episode with images of a model's precision."""
    episode = episode.normalized()
    return replace(episode, **{key: getattr(episode, key).to(dtype) for key in ("query_image", "support_images")})


def mask_at_label(logits, one, protocol):
    """The mask (H, W) of an EvalEpisode's logits (1, C, h, w)."""
    return at_label(logits, tuple(one.original_mask.shape), protocol)[0].argmax(0).to(torch.uint8)
