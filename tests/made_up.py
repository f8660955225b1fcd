"""Evaluations that were never run: episodes with drawn counts."""

import numpy as np

from fss_svf.evaluation.episode_table import EpisodeNames, EpisodeTable

CLASSES = ("cat", "dog", "cow", "sheep", "horse")


def made_up_table(random, episodes, classes=CLASSES, seed=0, drawn=None):
    """Episodes of one way whose IoU is drawn, of the later classes higher ones. drawn: the class of each, by column."""
    drawn = random.integers(len(classes), size=episodes) if drawn is None else np.asarray(drawn)
    true_pixels = random.integers(200, 20_000, size=episodes)
    found = (random.beta(1.0 + drawn, 3.0) * true_pixels).astype(np.int64)
    counted = random.integers(20_000, 40_000, size=episodes)
    counts = np.zeros((episodes, 2 + len(classes), 2), np.int64)
    every = np.arange(episodes)
    counts[every, 2 + drawn] = counts[:, 1] = np.stack([found, true_pixels], axis=1)
    counts[:, 0] = np.stack([counted - true_pixels, counted - found], axis=1)
    measured = np.zeros((episodes, len(classes)), bool)
    measured[every, drawn] = True
    names = tuple(EpisodeNames((classes[c],), f"q{n}", (f"s{n}",)) for n, c in enumerate(drawn))
    true = np.zeros(measured.shape, np.int64)
    true[every, drawn] = true_pixels
    return EpisodeTable(seed, tuple(classes), names, measured, counts, true=true)


def plain_scores(table, order=None, zero=False):
    """mIoU, FB-IoU and {column: IoU} of the table's episodes, or of those of `order`, by loops and the definitions."""
    pixels = [[0, 0] for _ in range(2 + len(table.classes))]
    for n in range(len(table)) if order is None else order:
        for row, (both, either) in enumerate(table.counts[n].tolist()):
            pixels[row][0] += both
            pixels[row][1] += either
    parts = [both / either for both, either in pixels[:2] if either]
    per_class = {c: both / either if either else 0.0 for c, (both, either) in enumerate(pixels[2:]) if either or zero}
    return mean(per_class.values()), mean(parts), per_class


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0
