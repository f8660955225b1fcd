"""mIoU against the number of backbone values that train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fss_svf.page.looks import Look
from fss_svf.page.plots import MARKERS, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trainable_plot(
    name: str, caption: str, rows: Sequence[tuple[Look, int, float, tuple[float, float] | None]]
) -> Plot:
    """rows: of each the number of trainable values, mIoU and its interval, fractions. 0 values are at the left end."""
    smallest = min((values for _, values, _, _ in rows if values), default=1)

    def paint(axes: Axes) -> None:
        for look, values, miou, ends in rows:
            if ends is not None:
                axes.plot([values, values], [100 * end for end in ends], color=colour(look), linewidth=1.4)
            axes.plot(values, 100 * miou, MARKERS[look.style], color=colour(look), markersize=7, label=look.name)
        axes.set_xscale("symlog", linthresh=smallest / 3, linscale=0.3)
        axes.set_xlim(-smallest / 10, 2 * max(values for _, values, _, _ in rows))
        axes.minorticks_off()
        axes.set_xticks(_ticks([values for _, values, _, _ in rows]))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.set_xlabel("trainable values of the backbone")
        axes.set_ylabel("mIoU (%)")

    return draw(name, caption, paint)


def _ticks(values: Sequence[int]) -> list[float]:
    """The values themselves where they are few, else 0 and powers of ten."""
    known = sorted(set(values))
    if len(known) < 4:
        return [float(value) for value in known]
    powers = [10.0**n for n in range(12) if known[0] <= 10**n <= known[-1]]
    return [0.0, *(power for power in powers if power >= min(filter(None, known)) / 2)]


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"
