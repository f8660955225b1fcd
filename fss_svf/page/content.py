"""What every section of the page is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

from fss_svf.page.episodes import Episodes
from fss_svf.page.looks import Look, parts_of, told_apart
from fss_svf.page.plots import Plot
from fss_svf.reporting.rows import Result, Row
from fss_svf.reporting.table import Table


@dataclass(frozen=True)
class Content:
    """Results as tables, their episodes, and the look of each row (by id). plots: those that a section has drawn."""

    results: Sequence[Result]
    tables: Sequence[Table]
    episodes: Episodes
    looks: Mapping[int, Look]
    plots: list[Plot] = field(default_factory=list)

    def look(self, row: Row) -> Look:
        return self.looks[id(row)]

    def parts_of_result(self, result: Result) -> list[str]:
        """Those of its row. Of two results of one cell a table has one; the other has no parts."""
        return self._parts.get(id(result), [])

    @cached_property
    def _parts(self) -> Mapping[int, list[str]]:
        rows = [row for table in self.tables for row in own_rows(table)]
        return {id(r): parts_of(row) for row in rows for cell in row.cells.values() for r in cell.values()}

    def show(self, *plots: Plot | None) -> str:
        """Plots side by side where there is room."""
        drawn = [plot for plot in plots if plot is not None]
        self.plots.extend(drawn)
        return f'<div class="plots">{"".join(plot.figure() for plot in drawn)}</div>' if drawn else ""


def names_of_results(content: Content, results: Sequence[Result]) -> list[str]:
    """Method and tuning of each, and in what these results differ."""
    several_seeds = len({r["checkpoint"]["seed"] for r in results if r["checkpoint"]}) > 1
    facts = [_facts(r, several_seeds) for r in results]
    common = set(facts[0]).intersection(*facts)
    names = [
        ", ".join([r["method"], r["tuning"], *(fact for fact in own if fact not in common)])
        for r, own in zip(results, facts)
    ]
    names = told_apart(names, [content.parts_of_result(r) for r in results])
    # The same measurement again, say.
    return told_apart(names, [[str(Path(r["path"]).parent)] for r in results])


def _facts(result: Result, with_seed: bool) -> list[str]:
    trained = result["checkpoint"]
    seed = [f"seed {trained['seed']}"] if trained and with_seed else []
    return [f"{result['dataset']} fold {result['fold']}", f"{result['shot']}-shot", *seed, result["protocol_hash"]]


def title_of(table: Table) -> str:
    """ "toy, resnet50, protocol svf (1a2b3c4d)"."""
    first = table.rows[0].first
    return f"{first['dataset']}, {first['backbone']}, protocol {first['protocol']['name']} ({first['protocol_hash']})"


def name_of(what: str, table: Table, *more: object) -> str:
    """The name of a plot, of which a file may be called: letters, digits and hyphens."""
    first = table.rows[0].first
    parts = (what, first["dataset"], first["backbone"], first["protocol_hash"], *more)
    return re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(map(str, parts)))


def shots_of_table(table: Table) -> list[int]:
    return sorted({shot for row in table.rows for shot, _ in row.cells})


def own_rows(table: Table) -> list[Row]:
    """The rows without those of a part of another row's result, which come from the same training."""
    return [row for row in table.rows if "prediction" not in row.first]


def folds_of(table: Table, shot: int) -> list[int]:
    return sorted({fold for row in table.rows for s, fold in row.cells if s == shot})


def folded(parts: Iterable[tuple[str, str]], group: str = "") -> str:
    """Titles with what is below each, the first one open. group: opening one closes the others of the same name."""
    name = f' name="{escape(group, quote=True)}"' if group else ""
    return "\n".join(
        f"<details{name}{'' if i else ' open'}><summary>{escape(title)}</summary><div>{inside}</div></details>"
        for i, (title, inside) in enumerate(parts)
    )


def swatch(look: Look) -> str:
    return f'<span class="key b{look.colour}"></span>'


def note(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'
