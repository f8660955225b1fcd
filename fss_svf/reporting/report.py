"""fss-svf report: writes results as tables and a page."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from fss_svf.config import ReportConfig, ReportFormat
from fss_svf.errors import DataError
from fss_svf.files import atomic_write
from fss_svf.reporting.latex import latex
from fss_svf.reporting.markdown import markdown
from fss_svf.reporting.page import page
from fss_svf.reporting.rows import method_of
from fss_svf.reporting.spreadsheet import spreadsheet
from fss_svf.reporting.table import make_tables

log = logging.getLogger(__name__)
_KEYS = {"miou", "fb_iou", "fold", "shot", "method", "tuning", "backbone", "dataset", "protocol", "protocol_hash"}
_KEYS |= {"backbone_weights", "trainable_backbone_values", "checkpoint", "size", "seeds"}


def report(config: ReportConfig, out: Path) -> str:
    """Print the tables of every result.json under config.runs and write one file for each format: report.md and so on in
    config.out or else `out`. A config.out with a format's suffix is a file: each format takes its name with its own suffix.
    Returns the tables as Markdown.
    """
    runs = (config.runs,) if isinstance(config.runs, Path) else config.runs
    results = newest([read_result(path) for run in runs for path in find_results(run)])
    tables = make_tables(results)
    text = markdown(tables)
    write: dict[str, Callable[[], str]] = {
        "md": lambda: text,
        "tex": lambda: latex(tables),
        "csv": lambda: spreadsheet(results),
        "html": lambda: page(tables, results),
    }
    paths = [_path(config.out or out, suffix) for suffix in config.formats]
    for suffix, path in zip(config.formats, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(write[suffix]() + "\n", encoding="utf-8", errors="backslashreplace")
    print(text)
    log.info("%d results in %s: %s", len(results), paths[0].parent, ", ".join(path.name for path in paths))
    return text


def _path(path: Path, suffix: str) -> Path:
    """The file of a format: in the folder `path`, or beside the file `path`, which has the suffix of a format."""
    is_file = path.suffix[1:] in get_args(ReportFormat) and not path.is_dir()
    return path.with_suffix(f".{suffix}") if is_file else path / f"report.{suffix}"


def find_results(run: Path) -> list[Path]:
    """Every result.json at or under `run`, oldest first. Raises DataError if there is none."""
    paths = [run] if run.is_file() else sorted(run.rglob("result.json"), key=lambda p: (p.stat().st_mtime_ns, str(p)))
    if not paths:
        problem = "there is no result.json under it" if run.exists() else "there is no such folder"
        raise DataError(f"runs={run}: {problem}; run 'fss-svf evaluate' first, or give the folder of its runs")
    return paths


def read_result(path: Path) -> dict[str, Any]:
    """One result. Raises DataError naming the file."""
    try:
        result = json.loads(path.read_text())
        missing = _KEYS - set(result)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable result ({error}); delete it and evaluate again") from None
    if missing:
        raise DataError(f"{path}: not a result of 'fss-svf evaluate', it has no {', '.join(sorted(missing))}")
    return {**result, "path": str(path)}


def newest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each table cell: of two that measured the same thing the newer one, with a warning."""
    kept: dict[str, dict[str, Any]] = {}
    for r in results:
        trained = {k: v for k, v in (r.get("checkpoint") or {}).items() if k not in ("path", "step")}
        names = ("dataset", "backbone", "backbone_weights", "tuning", "fold", "shot", "protocol_hash")
        measured = [method_of(r), *(r[name] for name in names), r.get("backbone_weights_hash")]
        key = json.dumps([measured, trained], sort_keys=True)
        if key in kept:
            log.warning("two results for one cell, the newer is used: %s instead of %s", r["path"], kept[key]["path"])
        kept.pop(key, None)
        kept[key] = r
    return list(kept.values())
