"""fss-svf report: writes results as tables and a page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from fss_svf.config import ReportConfig, ReportFormat
from fss_svf.files import atomic_write
from fss_svf.page.page import page
from fss_svf.reporting.latex import document, latex
from fss_svf.reporting.markdown import markdown
from fss_svf.reporting.results import find_results, newest, read_result
from fss_svf.reporting.spreadsheet import spreadsheet
from fss_svf.reporting.table import make_tables

log = logging.getLogger(__name__)


def report(config: ReportConfig, out: Path) -> str:
    """Print the tables of every result.json under config.runs and write one file for each format: report.md and so on in
    config.out or else `out`. A config.out with a format's suffix is a file: each format takes its name with its own suffix.
    Beside report.tex, report_document.tex shows its tables; beside report.html, report_figures/ has the plots as SVG.
    Returns the tables as Markdown.
    """
    runs = (config.runs,) if isinstance(config.runs, Path) else config.runs
    results = newest([read_result(path) for run in runs for path in find_results(run)])
    tables = make_tables(results)
    text = markdown(tables)
    written = []
    for suffix in config.formats:
        path = _path(config.out or out, suffix)
        files = {path: text}
        if suffix == "tex":
            files = {path: latex(tables), path.with_name(f"{path.stem}_document.tex"): document(path.name)}
        elif suffix == "csv":
            files = {path: spreadsheet(results)}
        elif suffix == "html":
            made = page(tables, results)
            figures = path.with_name(f"{path.stem}_figures")
            files = {path: made.html, **{figures / f"{name}.svg": svg for name, svg in made.figures.items()}}
        _write(files)
        written.append(path)
    print(text)
    log.info("%d results in %s: %s", len(results), written[0].parent, ", ".join(path.name for path in written))
    return text


def _write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _path(path: Path, suffix: str) -> Path:
    """The file of a format: in the folder `path`, or beside the file `path`, which has the suffix of a format."""
    is_file = path.suffix[1:] in get_args(ReportFormat) and not path.is_dir()
    return path.with_suffix(f".{suffix}") if is_file else path / f"report.{suffix}"
