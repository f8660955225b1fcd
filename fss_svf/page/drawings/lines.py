"""Curves over the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fss_svf.page.curves import Curve
from fss_svf.page.looks import Look
from fss_svf.page.plots import DASHES, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Lines:
    """Curves of one look and one entry in the legend."""

    look: Look
    curves: Sequence[Curve]


def line_plot(name: str, caption: str, series: Sequence[Lines], unit: str = "") -> Plot | None:
    """unit: of the values, which is written beside the axis. None if no curve has a point."""
    shown = [lines for lines in series if any(lines.curves)]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        for lines in shown:
            for number, curve in enumerate(filter(None, lines.curves)):
                steps, values = zip(*curve)
                axes.plot(
                    steps, values, color=colour(lines.look), linestyle=DASHES[lines.look.style],
                    marker="o" if len(curve) < 3 else None, alpha=1 if len(lines.curves) == 1 else 0.75,
                    label=None if number else lines.look.name,
                )  # fmt: skip
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)

    return draw(name, caption, paint)
