"""IoU of each class, a mark for each row, with intervals over episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fss_svf.page.looks import Look
from fss_svf.page.plots import LINE, MARKERS, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By the name of the class: its IoU and the interval, fractions; None where it was not measured.
Values = Mapping[str, tuple[float | None, tuple[float, float] | None]]


def class_plot(name: str, caption: str, classes: Sequence[str], rows: Sequence[tuple[Look, Values]]) -> Plot:
    def paint(axes: Axes) -> None:
        band = 0.8 / len(rows)
        for number, (look, values) in enumerate(rows):
            known = [(place, *values[c]) for place, c in enumerate(classes) if c in values]
            marks = [(p - 0.4 + band * (number + 0.5), value, ends) for p, value, ends in known if value is not None]
            for place, _, ends in marks:
                if ends is not None:
                    axes.plot([100 * end for end in ends], [place, place], color=colour(look), linewidth=1.2)
            axes.plot(
                [100 * value for _, value, _ in marks], [place for place, _, _ in marks], MARKERS[look.style],
                color=colour(look), label=look.name, linestyle="none",
            )  # fmt: skip
        for place in range(1, len(classes)):
            axes.axhline(place - 0.5, color=LINE[0], linewidth=0.8)
        axes.set_yticks(range(len(classes)), [c if len(c) < 24 else f"{c[:21]}..." for c in classes])
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("IoU (%)")

    return draw(name, caption, paint, height=40 + len(classes) * max(16, 8 + 8 * len(rows)))
