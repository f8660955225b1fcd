"""IoU of each class with its interval, a plot for each shot and fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fss_svf.evaluation.intervals import interval
from fss_svf.page.content import Content, folded, folds_of, name_of, note, shots_of_table, title_of
from fss_svf.page.drawings.classes import Values, class_plot
from fss_svf.page.episodes import Measured, of_row, over_trainings
from fss_svf.page.plots import Plot
from fss_svf.reporting.rows import Result, estimate
from fss_svf.reporting.table import Table

_SAYS = "IoU of each class, the mean over training seeds. Lines: 95 % intervals over episodes, of results with episodes.csv."


def classes(content: Content) -> str:
    parts = []
    for table in content.tables:
        for shot in shots_of_table(table):
            plots = [_plot(content, table, shot, fold) for fold in folds_of(table, shot)]
            if shown := content.show(*plots):
                parts.append((f"{shot}-shot: {title_of(table)}", shown))
    return note(_SAYS) + folded(parts) if parts else "<p>No result has numbers by class.</p>"


def _plot(content: Content, table: Table, shot: int, fold: int) -> Plot | None:
    rows = [row for row in table.rows if any(r.get("per_class") for r in row.of(shot, fold))]
    if not rows:
        return None
    every = list(dict.fromkeys(name for row in rows for r in row.of(shot, fold) for name in r["per_class"]))
    drawn = [
        (content.look(row), _values(row.of(shot, fold), of_row(content.episodes, row, shot, fold))) for row in rows
    ]
    names = [name for name in every if any(name in values and values[name][0] is not None for _, values in drawn)]
    without = ", ".join(name for name in every if name not in names)
    caption = f"Classes of fold {fold}, {shot}-shot" + (f"; without episodes: {without}" if without else "")
    return class_plot(name_of("classes", table, f"{shot}shot", f"fold{fold}"), caption, names, drawn) if names else None


def _values(results: Sequence[Result], episodes: Mapping[Any, Measured]) -> Values:
    intervals: dict[str, tuple[float, float] | None] = {}
    if len(episodes) == len(results):
        resamples = over_trainings(episodes).per_class
        measured = next(iter(episodes.values())).tables[0].classes
        # A class in few episodes is missing in some resamples.
        intervals = {
            name: interval(resamples[:, c]) for c, name in enumerate(measured) if not np.isnan(resamples[:, c]).all()
        }
    names = dict.fromkeys(name for r in results for name in r["per_class"])
    return {name: (_mean(results, name), intervals.get(name)) for name in names}


def _mean(results: Sequence[Result], name: str) -> float | None:
    mean = estimate([value for r in results if (value := r["per_class"].get(name)) is not None])
    return None if mean is None else mean.value
