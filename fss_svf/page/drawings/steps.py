"""mIoU of base and of novel classes over the steps of a training, as in Figure 1 of the SVF paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fss_svf.page.curves import Curve
from fss_svf.page.looks import Look
from fss_svf.page.plots import MARKERS, Plot, colour, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Course:
    """Curves of a row's trainings, fractions: the n-th of both are of one training."""

    look: Look
    base: Sequence[Curve]
    novel: Sequence[Curve]


def steps_plot(name: str, caption: str, courses: Sequence[Course]) -> Plot | None:
    """None without a course."""
    if not courses:
        return None

    def paint(axes: Axes) -> None:
        for course in courses:
            for curves, dashes, label in ((course.novel, "-", course.look.name), (course.base, "--", None)):
                for number, curve in enumerate(curves):
                    steps, values = zip(*curve)
                    axes.plot(
                        steps, [100 * value for value in values], color=colour(course.look), linestyle=dashes,
                        marker=MARKERS[course.look.style], markersize=3, label=None if number else label,
                    )  # fmt: skip
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel("mIoU (%)")

    return draw(name, caption, paint)
