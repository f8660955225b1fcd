"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from fss_svf.reporting.rows import Result
from fss_svf.reporting.table import Table, make_tables


def markdown_table(results: Sequence[Result]) -> str:
    """The tables of the results (make_tables), each with its caption above and its notes below."""
    return markdown(make_tables(results))


def markdown(tables: Sequence[Table]) -> str:
    """Every table with its caption above and its notes below."""
    return "\n\n".join(_one(table) for table in tables)


def _one(table: Table) -> str:
    lines = [list(table.header)]
    for line in table.lines:
        first, *rest = (cell.text for cell in line.cells)
        lines.append([first + (f" [{', '.join(line.marks)}]" if line.marks else ""), *rest])
    notes = [f"- [{letter}] {text}" for letter, text in table.notes.items()]
    parts = [table.caption, markdown_lines(lines, table.words), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join(parts)


def markdown_lines(lines: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table; the first line is the header. The first `words` columns are aligned left, the others right."""
    # A bar in a name would start a new column.
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < words else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
