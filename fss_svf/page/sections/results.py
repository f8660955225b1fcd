"""The tables. The numbers follow the first column, so that a narrow screen shows them; what describes a row is last.

The plots of a table are below it.
"""

from __future__ import annotations

from html import escape
from itertools import groupby

from fss_svf.page.content import Content, swatch
from fss_svf.page.sections.overview import overview
from fss_svf.reporting.table import Line, Table, shots_of

# Method and tuning are one column.
_FIRST = 2


def results(content: Content) -> str:
    return "\n".join(_table(content, table) + overview(content, table) for table in content.tables)


def _table(content: Content, table: Table) -> str:
    columns = [*range(table.words, len(table.header)), *range(_FIRST, table.words)]
    # The number of trainable values describes a row too.
    columns.sort(key=lambda column: not shots_of(table.header[column]) and column >= _FIRST)
    notes = "".join(f"<li><sup>{letter}</sup> {escape(text)}</li>" for letter, text in table.notes.items())
    intervals = any(cell.interval for line in table.lines for cell in line.cells)
    more = " In small print: the 95 % interval over episodes of one training." if intervals else ""
    more += " Bold: the best of a column." if table.best else ""
    rows = iter(table.rows)
    bodies = []
    # What is published, and the difference, moves with the measured line above it.
    for number, line in enumerate(table.lines):
        if line.kind == "measured":
            bodies.append("")
            key = swatch(content.look(next(rows)))
        bodies[-1] += _line(table, number, line, columns, key if line.kind == "measured" else "")
    return (
        f'<p class="caption">{escape(table.caption)}{more}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption, quote=True)}">'
        f'<table class="numbers sortable"><thead>{_head(table, columns)}</thead>\n'
        + "\n".join(f"<tbody>{body}</tbody>" for body in bodies)
        + "</table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _head(table: Table, columns: list[int]) -> str:
    """The shots above their columns, then a name for each column."""
    groups = [(shots, len(list(of))) for shots, of in groupby(shots_of(table.header[c]) for c in columns)]
    above = "".join(
        f'<th scope="colgroup" colspan="{n}" class="group">{escape(shots)}</th>'
        if shots
        else f'<td colspan="{n}"></td>'
        for shots, n in groups
    )
    names = [("method, tuning", "")]
    names += [(table.header[c].removeprefix(shots_of(table.header[c])).strip(), _kind(table, c)) for c in columns]
    cells = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in names)
    return f"<tr><td></td>{above}</tr><tr>{cells}</tr>"


def _line(table: Table, number: int, line: Line, columns: list[int], key: str) -> str:
    marks = f"<sup>{','.join(line.marks)}</sup>" if line.marks else ""
    name = ", ".join(cell.text for cell in line.cells[:_FIRST] if cell.text not in ("", "none"))
    cells = [f'<th scope="row">{key}{escape(name)}{marks}</th>']
    for column in columns:
        cell = line.cells[column]
        small = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
        text = f"<b>{escape(cell.text)}</b>" if (number, column) in table.best else escape(cell.text)
        value = "" if cell.number is None or column < table.words else f' data-value="{cell.number}"'
        cells.append(f"<td{_kind(table, column)}{value}>{text}{small}</td>")
    return f'<tr class="{line.kind}">{"".join(cells)}</tr>'


def _kind(table: Table, column: int) -> str:
    if column >= table.words:
        return ' class="number"'
    return ' class="training"' if column == table.words - 1 else ' class="words"'
