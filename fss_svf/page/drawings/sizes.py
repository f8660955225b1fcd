"""IoU against the size of the object: means of episodes in bins of as many episodes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fss_svf.page.looks import Look
from fss_svf.page.plots import DASHES, MARKERS, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 8
# Of a normal mean, two-sided 95 %.
_Z = 1.96


def size_plot(name: str, caption: str, rows: Sequence[tuple[Look, np.ndarray, np.ndarray]]) -> Plot:
    """rows: of each (n,) the share of the image that the object covers, and (n,) the IoU, fractions."""
    every = np.concatenate([shares[shares > 0] for _, shares, _ in rows])
    edges = np.unique(np.quantile(every, np.linspace(0, 1, _BINS + 1))) if len(every) else np.array([0.0, 1.0])

    def paint(axes: Axes) -> None:
        for look, shares, ious in rows:
            bins = np.clip(np.searchsorted(edges, shares, side="right") - 1, 0, max(0, len(edges) - 2))
            points = [
                _point(shares[chosen], ious[chosen]) for b in range(len(edges)) if (chosen := bins == b).sum() > 1
            ]
            if not points:
                continue
            x, y, half = 100 * np.array(points).T
            axes.errorbar(
                x, y, half, color=colour(look), linestyle=DASHES[look.style], marker=MARKERS[look.style],
                elinewidth=1, label=look.name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(_ticks(*axes.get_xlim()), minor=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("object, in % of the image")
        axes.set_ylabel("mean IoU of episodes (%)")

    return draw(name, caption, paint)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between the ends."""
    every = [digit * 10.0**power for power in range(-5, 3) for digit in (1, 2, 5)]
    return [value for value in every if low <= value <= high]


def _point(shares: np.ndarray, ious: np.ndarray) -> tuple[float, float, float]:
    """The middle size, the mean IoU and half of its 95 % interval."""
    return float(np.median(shares)), float(ious.mean()), float(_Z * ious.std(ddof=1) / len(ious) ** 0.5)
