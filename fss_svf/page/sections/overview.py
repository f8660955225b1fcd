"""mIoU against what trains, and base against novel classes over the steps of a training."""

from __future__ import annotations

from pathlib import Path

from fss_svf.evaluation.intervals import interval, students_interval
from fss_svf.page.content import Content, folds_of, name_of, own_rows, shots_of_table
from fss_svf.page.curves import read_log, run_folder
from fss_svf.page.drawings.steps import Course, steps_plot
from fss_svf.page.drawings.trainable import trainable_plot
from fss_svf.page.episodes import of_row
from fss_svf.page.plots import Plot
from fss_svf.reporting.rows import Row
from fss_svf.reporting.table import Table

# Columns of log.csv that validate.curves writes.
_BASE, _NOVEL = "val/base_miou", "val/novel_miou"


def overview(content: Content, table: Table) -> str:
    """Empty where the rows train equally many values and have no such courses."""
    return content.show(*(_trainable(content, table, shot) for shot in shots_of_table(table)), _steps(content, table))


def _trainable(content: Content, table: Table, shot: int) -> Plot | None:
    # Means over other folds are no comparison.
    folds = [fold for fold in folds_of(table, shot) if all(row.of(shot, fold) for row in table.rows)]
    rows = []
    for row in own_rows(table) if folds else ():
        mean = row.mean(shot, folds)
        if mean is None:
            continue
        ends = students_interval(_of_trainings(row, shot, folds)) or _over_episodes(content, row, shot, folds)
        rows.append((content.look(row), int(row.first["trainable_backbone_values"]), mean.value, ends))
    if len({values for _, values, _, _ in rows}) < 2:
        return None
    what = f"fold {folds[0]}" if len(folds) == 1 else f"mean of folds {', '.join(map(str, folds))}"
    caption = (
        f"mIoU against trainable values, {shot}-shot, {what}; 95 % intervals over trainings, or over episodes of one"
    )
    return trainable_plot(name_of("trainable", table, f"{shot}shot"), caption, rows)


def _of_trainings(row: Row, shot: int, folds: list[int]) -> list[float]:
    """mIoU of each training seed that has all folds."""
    cells = [row.cells.get((shot, fold), {}) for fold in folds]
    seeds = [seed for seed in row.seeds if all(seed in cell for cell in cells)]
    return [sum(cell[seed]["miou"] for cell in cells) / len(folds) for seed in seeds]


def _over_episodes(content: Content, row: Row, shot: int, folds: list[int]) -> tuple[float, float] | None:
    """Of a single training of one fold; None without its episodes."""
    found = [one for fold in folds for one in of_row(content.episodes, row, shot, fold).values()]
    return interval(found[0].resamples.miou) if len(found) == len(folds) == 1 else None


def _steps(content: Content, table: Table) -> Plot | None:
    courses = []
    for row in own_rows(table):
        trained = [r["checkpoint"] for of_seed in row.cells.values() for r in of_seed.values() if r["checkpoint"]]
        runs = dict.fromkeys(str(run_folder(c["path"])) for c in trained if c.get("path"))
        logs = [read_log(Path(run)) for run in runs]
        found = [(log[_BASE], log[_NOVEL]) for log in logs if log.get(_BASE) and log.get(_NOVEL)]
        if found:
            courses.append(Course(content.look(row), [base for base, _ in found], [novel for _, novel in found]))
    return steps_plot(name_of("steps", table), "mIoU of base (dashed) and novel classes (solid) over steps", courses)
