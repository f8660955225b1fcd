"""Reads the result.json files that a report or a comparison is made of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fss_svf.errors import DataError
from fss_svf.relocation import relocated_path
from fss_svf.reporting.rows import method_of

log = logging.getLogger(__name__)
_KEYS = {"miou", "fb_iou", "fold", "shot", "method", "tuning", "backbone", "dataset", "protocol", "protocol_hash"}
_KEYS |= {"backbone_weights", "trainable_backbone_values", "checkpoint", "size", "seeds"}


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
    return {**result, "path": str(path), "checkpoint": _as_it_lies(result["checkpoint"], path)}


def _as_it_lies(checkpoint: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """The checkpoint with the path that it has now, if it was copied along with the evaluation: its curves are shown."""
    if not checkpoint or not checkpoint.get("path"):
        return checkpoint
    runs = (path.parent, path.parent.parent)  # of one number of shots, or of several
    run = next((run for run in runs if (run / ".hydra").is_dir()), path.parent)
    return {**checkpoint, "path": relocated_path(checkpoint["path"], run)}


def newest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each table cell: of two that measured the same thing the newer one, with a warning."""
    kept: dict[str, dict[str, Any]] = {}
    for r in results:
        trained = {k: v for k, v in (r.get("checkpoint") or {}).items() if k not in ("path", "step")}
        names = ("dataset", "backbone", "backbone_weights", "tuning", "fold", "shot", "protocol_hash")
        measured = [method_of(r), *(r[name] for name in names), r.get("backbone_weights_hash"), r.get("options")]
        key = json.dumps([measured, trained], sort_keys=True)
        if key in kept:
            log.warning("two results for one cell, the newer is used: %s instead of %s", r["path"], kept[key]["path"])
        kept.pop(key, None)
        kept[key] = r
    return list(kept.values())
