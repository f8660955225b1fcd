"""What became of large and of small singular values at the end of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fss_svf.page.looks import Look
from fss_svf.page.plots import DASHES, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectrum_plot(name: str, caption: str, rows: Sequence[tuple[Look, Sequence[float], Sequence[float]]]) -> Plot:
    """rows: of each the mean and the standard deviation of S / S0 - 1, a fraction, by tenth; the largest values first."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color="grey", linewidth=0.6)
        for look, means, deviations in rows:
            tenths = range(1, len(means) + 1)
            low, high = ([100 * (m + sign * d) for m, d in zip(means, deviations)] for sign in (-1, 1))
            axes.fill_between(tenths, low, high, color=colour(look), alpha=0.15, linewidth=0)
            axes.plot(
                tenths, [100 * m for m in means], marker="o", markersize=3, linewidth=0.9, color=colour(look),
                linestyle=DASHES[look.style], label=look.name,
            )  # fmt: skip
        axes.set_xticks([1, 10], ["largest tenth", "smallest tenth"])
        axes.set_xlabel("singular values of a layer, by size")
        axes.set_ylabel("change (%)")

    return draw(name, caption, paint)
