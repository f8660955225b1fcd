"""Drift of the singular values at the end of training, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fss_svf.page.looks import Look
from fss_svf.page.plots import DASHES, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def drift_plot(name: str, caption: str, rows: Sequence[tuple[Look, Mapping[str, float]]]) -> Plot:
    """rows: of each the mean of |S - S0| / S0 by layer, a fraction."""
    layers = list(dict.fromkeys(layer for _, drifts in rows for layer in drifts))
    stages = [layer.split(".")[0] for layer in layers]
    starts = [place for place, stage in enumerate(stages) if place == 0 or stages[place - 1] != stage]

    def paint(axes: Axes) -> None:
        for look, drifts in rows:
            places = [place for place, layer in enumerate(layers) if layer in drifts]
            values = [100 * drifts[layers[place]] for place in places]
            axes.plot(
                places, values, marker="o", markersize=3, linewidth=0.9, color=colour(look),
                linestyle=DASHES[look.style], label=look.name,
            )  # fmt: skip
        axes.set_xticks(starts, [stages[place] for place in starts])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layers, from the input on")
        axes.set_ylabel("drift (%)")

    return draw(name, caption, paint)
