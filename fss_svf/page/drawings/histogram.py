"""Histogram of the IoU of single episodes, an outline for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fss_svf.page.looks import Look
from fss_svf.page.plots import DASHES, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 20


def histogram(name: str, caption: str, rows: Sequence[tuple[Look, np.ndarray]]) -> Plot:
    """rows: (n,) IoU of each, fractions."""

    def paint(axes: Axes) -> None:
        for look, values in rows:
            shares, edges = np.histogram(values, bins=_BINS, range=(0, 1))
            axes.stairs(
                100 * shares / max(1, len(values)), 100 * edges, color=colour(look), linestyle=DASHES[look.style],
                linewidth=1.6, label=look.name,
            )  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("IoU of an episode (%)")
        axes.set_ylabel("episodes (%)")

    return draw(name, caption, paint)
