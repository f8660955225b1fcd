"""How a row looks in every plot and table of the page: one colour for a method and a tuning, and a short name.

A row of a part of a result (base or novel classes alone, a further prediction) has the colour of the result.
"""

from __future__ import annotations

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
    found = {}
    for row in rows:
        alike = [other for other in rows if other.words[:2] == row.words[:2]]
        parts = [_parts(other) for other in alike]
        common = set(parts[0]).intersection(*parts[1:])
        mine = [part for part in _parts(row) if part not in common] if len(alike) > 1 else []
        method, tuning = row.words[:2]
        found[id(row)] = ", ".join([method, *([] if tuning == "none" else [tuning]), *mine])
    return found


def _parts(row: Row) -> list[str]:
    """The weights, and the training in parts: "1-shot", "svf", "seed 321", "tuning.rank=4"."""
    return [row.words[2], *row.words[3].split(", ")]
