"""Evaluations that were never run: episodes with drawn counts."""

import numpy as np

from fss_svf.evaluation.episode_table import EpisodeTable, Shown

CLASSES = ("cat", "dog", "cow", "sheep", "horse")


def made_up_table(random, episodes, classes=CLASSES, seed=0, drawn=None):
    """Episodes of one way whose IoU is drawn, of the later classes higher ones. drawn: the class of each, by column."""
    drawn = random.integers(len(classes), size=episodes) if drawn is None else np.asarray(drawn)
    true_pixels = random.integers(200, 20_000, size=episodes)
    found = (random.beta(1.0 + drawn, 3.0) * true_pixels).astype(np.int64)
    intersection, union = np.zeros((2, episodes, len(classes)), np.int64)
    here = np.arange(episodes), drawn
    intersection[here], union[here] = found, true_pixels
    measured = np.zeros((episodes, len(classes)), bool)
    measured[here] = True
    return EpisodeTable(
        seed=seed,
        classes=tuple(classes),
        shown=tuple(Shown((classes[c],), f"q{n}", (f"s{n}",)) for n, c in enumerate(drawn)),
        measured=measured,
        intersection=intersection,
        union=union,
        foreground=np.stack([found, true_pixels], axis=1),
        counted=random.integers(20_000, 40_000, size=episodes),
    )


def counts_of(table, order=None):
    """The table's episodes, or those of `order`, through evaluation/counts.py; class c is number c + 1."""
    from fss_svf.evaluation.counts import Counts, EpisodeCount

    counts = Counts(len(table.classes))
    for n in range(len(table)) if order is None else order:
        own = np.flatnonzero(table.measured[n])
        counts.add(
            EpisodeCount(
                classes=tuple(int(c) + 1 for c in own),
                intersection=tuple(int(table.intersection[n, c]) for c in own),
                union=tuple(int(table.union[n, c]) for c in own),
                foreground=(int(table.foreground[n, 0]), int(table.foreground[n, 1])),
                counted=int(table.counted[n]),
            )
        )
    return counts
