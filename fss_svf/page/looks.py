"""How a row looks in every plot and table of the page: one colour for a method and a tuning, and a short name.

A row of a part of a result (base or novel classes alone, a further prediction) has the colour of the result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fss_svf.reporting.rows import Row
from fss_svf.reporting.table import Table

# Number of colours in the page's style (c0, c1, ...). Further methods and tunings repeat them with another style.
COLOURS = 8
STYLES = 4


@dataclass(frozen=True)
class Look:
    """colour: of the page's COLOURS. style: of the STYLES of lines and markers, for rows of a table that share a colour."""

    name: str
    colour: int
    style: int


def looks_of(tables: Sequence[Table]) -> dict[int, Look]:
    """The looks of all rows, by id(row)."""
    kinds = list(dict.fromkeys(_kind(row) for table in tables for row in table.rows))
    number = {kind: n for n, kind in enumerate(kinds)}
    found = {}
    for table in tables:
        names = _names(table.rows)
        shown = [0] * COLOURS
        for row in table.rows:
            colour = number[_kind(row)] % COLOURS
            found[id(row)] = Look(names[id(row)], colour, shown[colour] % STYLES)
            shown[colour] += "prediction" not in row.first  # parts are in no plot, and need no style
    return found


def _kind(row: Row) -> tuple[str, str]:
    """The method and tuning of the row's result."""
    method, tuning = row.words[:2]
    return row.first.get("part_of", method), tuning


def _names(rows: Sequence[Row]) -> Mapping[int, str]:
    """Method and tuning; of rows that share both, also the words in which they differ."""
    names = [row.words[0] if row.words[1] == "none" else ", ".join(row.words[:2]) for row in rows]
    return dict(zip(map(id, rows), told_apart(names, [parts_of(row) for row in rows])))


def told_apart(names: Sequence[str], parts: Sequence[Sequence[str]]) -> list[str]:
    """The names; those that several have are followed by the parts in which these differ. No parts: they are not known."""
    common: dict[str, set[str]] = {}
    for name, own in zip(names, parts):
        if own:
            common[name] = common.get(name, set(own)).intersection(own)
    return [", ".join([name, *(part for part in own if part not in common[name])]) for name, own in zip(names, parts)]


def parts_of(row: Row) -> list[str]:
    """The weights, and the training in parts: "1-shot", "svf", "2 seeds (1, 5)", "tuning.rank=4"."""
    return [row.words[2], *re.split(r", (?![^(\[]*[)\]])", row.words[3])]
