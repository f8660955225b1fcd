"""Plots as SVG, by matplotlib: one drawing that is light or dark as the page or the reader's system is.

A drawing has the light colours. A style sheet replaces them where the dark ones are wanted; programs without style sheets
show the light ones. Text stays text, so that a browser draws it in its own font.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fss_svf.page.looks import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Light and dark. Each light one is there once, since the style sheet finds it by its value.
TEXT, SOFT, LINE = ("#1b1f24", "#e6e9ec"), ("#59636e", "#a0a9b3"), ("#d1d9e0", "#363c44")
SERIES = (
    ("#0b6fb8", "#56b4e9"), ("#d1580a", "#ff9d4d"), ("#00805a", "#3ecf9a"), ("#a63d86", "#e08ac6"),
    ("#8a6d00", "#e3c94a"), ("#4b5bd6", "#9aa6ff"), ("#b3261e", "#ff8a80"), ("#5f6368", "#b6bcc4"),
)  # fmt: skip
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
# Points (1/72 inch), of which a page shows about one as a pixel: a plot is as wide as a phone.
WIDTH, HEIGHT = 340, 215
_FONT = 10


@dataclass(frozen=True)
class Plot:
    """name: of its file, unique in a page. caption: plain text. svg: an element, without the style sheet."""

    name: str
    caption: str
    svg: str

    def figure(self) -> str:
        """For the page, which has the style sheet."""
        return f'<figure class="plot"><figcaption>{escape(self.caption)}</figcaption>{self.svg}</figure>'

    def file(self) -> str:
        """A file of its own."""
        head, body = self.svg.split(">", 1)
        return f"{head}><style>{dark_style()}</style>{body}"


def draw(name: str, caption: str, paint: Callable[[Axes], None], height: float = HEIGHT, legend: bool = True) -> Plot:
    """A plot with one pair of axes, on which `paint` draws. The legend has a line for each label and is below."""
    import matplotlib  # takes most of a second, which other verbs do not need
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs that it looked for fonts
    with matplotlib.rc_context(_settings()):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        lines = 0
        if legend and handles:
            # A letter is about 5.5 wide. The end of a name is what tells rows apart, so none is cut.
            columns = max(1, min(len(labels), int(WIDTH / (5.5 * max(map(len, labels)) + 35))))
            texts = [wrapped(text, 47) for text in labels]
            lines = -(-sum(text.count("\n") + 1 for text in texts) // columns)
            figure.legend(handles, texts, loc="outside lower left", ncols=columns)
        figure.set_size_inches(WIDTH / 72, (height + 15 * lines) / 72)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return Plot(name, caption, _clean(text.getvalue(), name, caption))


def colour(look: Look) -> str:
    return SERIES[look.colour][0]


@cache
def dark_style() -> str:
    """A style sheet that replaces the light colours of plots where a screen is dark."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in (TEXT, SOFT, LINE, *SERIES)
        for what in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme: dark){{{rules}}}"


def _settings() -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a name may hold a dollar sign
        "svg.hashsalt": "fss-svf",  # the same drawing is the same file
        "font.size": _FONT,
        "text.color": TEXT[0],
        "axes.labelcolor": SOFT[0],
        "axes.edgecolor": SOFT[0],
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE[0],
        "grid.linewidth": 0.8,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.color": SOFT[0],
        "ytick.color": SOFT[0],
        "legend.frameon": False,
        "legend.fontsize": _FONT,
        "legend.handlelength": 1.5,
        "legend.columnspacing": 1.2,
        "legend.borderpad": 0.1,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
    }


def _clean(text: str, name: str, caption: str) -> str:
    """The svg element alone, with a description, ids of its own, and no style that would reach beyond it."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.S)
    text = text.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"font-family: [^;\"]+; ", "", text)
    text = re.sub(r' (d|x|y|transform)="[^"]+"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    label = f' role="img" aria-label="{escape(caption, quote=True)}" font-family="system-ui, sans-serif">'
    return re.sub(r' width="[^"]+pt" height="[^"]+pt"| height="[^"]+pt"| width="[^"]+pt"', "", text, count=2).replace(
        ">", label, 1
    )


def wrapped(text: str, width: int) -> str:
    """The text in at most four lines of `width` characters."""
    return "\n".join(wrap(text, width, max_lines=4, placeholder="...", break_on_hyphens=False))
