"""One HTML file with tables, plots and episodes. It loads nothing and can be read without its script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from fss_svf.page.content import Content
from fss_svf.page.episodes import read_episodes
from fss_svf.page.looks import looks_of
from fss_svf.page.plots import SERIES, dark_style
from fss_svf.page.sections.classes import classes
from fss_svf.page.sections.differences import differences
from fss_svf.page.sections.distribution import distribution
from fss_svf.page.sections.exchanged import exchanged
from fss_svf.page.sections.gallery import gallery
from fss_svf.page.sections.results import results as results_section
from fss_svf.page.sections.training import training
from fss_svf.reporting.rows import Result
from fss_svf.reporting.table import Table


@dataclass(frozen=True)
class Page:
    """html: the page. figures: its plots as SVG files, by name."""

    html: str
    figures: dict[str, str]


def page(tables: Sequence[Table], results: Sequence[Result]) -> Page:
    """Pictures and episodes are read from each result's folder, curves from the run folder of its checkpoint."""
    content = Content(results, tables, read_episodes(results), looks_of(tables))
    datasets = sorted({f"{r['dataset']} ({r['backbone']})" for r in results})
    count = "1 result" if len(results) == 1 else f"{len(results)} results"
    sections = {
        "Results": results_section(content),
        "Differences": differences(content),
        "Classes": classes(content),
        "Distribution": distribution(content),
        "Training": training(content),
        "Episodes": gallery(content) + exchanged(content),
    }
    html = Template(_file("page.html")).substitute(
        title="Few-shot segmentation results",
        summary=escape(f"{count} on {', '.join(datasets)}. IoU in %."),
        style=_colours() + _file("style.css").rstrip() + "\n" + dark_style(),
        script=_file("script.js").rstrip(),
        links=" ".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        sections="\n".join(_section(name, inside) for name, inside in sections.items()),
    )
    return Page(html, {plot.name: plot.file() for plot in content.plots})


def _section(name: str, inside: str) -> str:
    key = name.lower()
    return f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{name}</h2>\n{inside}\n</section>'


def _colours() -> str:
    """The colours of the plots' series as c0, c1, ..., for the keys in tables."""
    light, dark = ("".join(f"--c{i}:{pair[n]};" for i, pair in enumerate(SERIES)) for n in (0, 1))
    keys = "".join(f".b{i}{{background:var(--c{i})}}" for i in range(len(SERIES)))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{keys}\n"


def _file(name: str) -> str:
    return files("fss_svf.page").joinpath("assets").joinpath(name).read_text(encoding="utf-8")
