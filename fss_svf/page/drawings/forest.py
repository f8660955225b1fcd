"""Forest plot: differences to one row with their intervals, and a line at no difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fss_svf.page.looks import Look
from fss_svf.page.paired import Paired
from fss_svf.page.plots import MARKERS, SOFT, Plot, colour, draw, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def forest(name: str, caption: str, pairs: Sequence[tuple[Look, Paired]]) -> Plot:
    """Thick: the interval over episodes; thin: Student's over trainings, where there are several."""
    # Names have a part of the width, not all of it.
    names = [wrapped(look.name, 26) for look, _ in pairs]
    most = max(text.count("\n") + 1 for text in names)

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=SOFT[0], linewidth=1)
        for place, (look, pair) in enumerate(pairs):
            low, high = (100 * end for end in pair.interval)
            of_trainings = pair.trainings_interval
            if of_trainings is not None:
                axes.plot([100 * end for end in of_trainings], [place, place], color=colour(look), linewidth=1)
            axes.plot([low, high], [place, place], color=colour(look), linewidth=3.5, solid_capstyle="butt")
            axes.plot(100 * pair.difference, place, MARKERS[look.style], color=colour(look), markersize=7)
        axes.set_yticks(range(len(pairs)), names)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference (percentage points)")

    return draw(name, caption, paint, height=45 + (10 + 14 * most) * len(pairs))
