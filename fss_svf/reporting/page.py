"""One HTML file with tables, classes, curves and episodes. It loads nothing and can be read without its script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fss_svf.reporting.charts import bars, legend
from fss_svf.reporting.page_gallery import gallery
from fss_svf.reporting.page_training import training
from fss_svf.reporting.rows import Result, Row, estimate
from fss_svf.reporting.table import Line, Table


def page(tables: Sequence[Table], results: Sequence[Result]) -> str:
    """The page. Pictures are read from each result's folder, curves from the run folder of its checkpoint."""
    datasets = sorted({f"{r['dataset']} ({r['backbone']})" for r in results})
    count = "1 result" if len(results) == 1 else f"{len(results)} results"
    return Template(_file("page.html")).substitute(
        title="Few-shot segmentation results",
        summary=escape(f"{count} on {', '.join(datasets)}. IoU in %."),
        style=_file("style.css").rstrip(),
        script=_file("script.js").rstrip(),
        tables="\n".join(map(_table, tables)),
        classes="\n".join(filter(None, map(_classes, tables))) or "<p>No result has numbers by class.</p>",
        training=training(tables, results),
        gallery=gallery([(r, Path(r["path"]).parent / "gallery") for r in results if "path" in r]),
    )


def _file(name: str) -> str:
    return files("fss_svf.reporting").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"{_kind(table, i)}>{escape(text)}</th>' for i, text in enumerate(table.header))
    lines = "\n".join(_line(table, line) for line in table.lines)
    notes = "".join(f"<li><sup>{letter}</sup> {escape(text)}</li>" for letter, text in table.notes.items())
    intervals = any(cell.interval for line in table.lines for cell in line.cells)
    more = " In small print: the interval over episodes of one training." if intervals else ""
    return (
        f'<p class="caption">{escape(table.caption)}{more}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption, quote=True)}">'
        f'<table class="numbers"><thead><tr>{heads}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _line(table: Table, line: Line) -> str:
    marks = f"<sup>{','.join(line.marks)}</sup>" if line.marks else ""
    first, *rest = line.cells
    cells = [f'<th scope="row">{escape(first.text)}{marks}</th>']
    for i, cell in enumerate(rest, 1):
        small = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
        cells.append(f"<td{_kind(table, i)}>{escape(cell.text)}{small}</td>")
    return f'<tr class="{line.kind}">{"".join(cells)}</tr>'


def _kind(table: Table, column: int) -> str:
    if column >= table.words:
        return ' class="number"'
    return ' class="training"' if column == table.words - 1 else ""


def _classes(table: Table) -> str:
    """Bars for each class, one chart for every shot and fold."""
    rows = [row for row in table.rows if row.first.get("per_class")]
    cells = sorted({cell for row in rows for cell in row.cells})
    return "\n".join(_bars(table, rows, shot, fold, first=i == 0) for i, (shot, fold) in enumerate(cells))


def _bars(table: Table, rows: Sequence[Row], shot: int, fold: int, first: bool) -> str:
    rows = [row for row in rows if row.of(shot, fold)]
    names = [", ".join(row.words) for row in rows]
    result = rows[0].of(shot, fold)[0]
    title = f"{result['dataset']}, {result['backbone']}, {shot}-shot, fold {fold} ({result['protocol_hash']})"
    lines = [(name, [_of_class(row.of(shot, fold), name) for row in rows]) for name in result["per_class"]]
    drawn = bars("IoU in %, the mean over training seeds", names, lines)
    opened = " open" if first else ""
    return f"<details{opened}><summary>{escape(title)}</summary><div>{legend(names)}{drawn}</div></details>"


def _of_class(results: Sequence[Result], name: str) -> float | None:
    values: list[Any] = [r["per_class"].get(name) for r in results]
    mean = estimate([value for value in values if value is not None])
    return None if mean is None else mean.value
