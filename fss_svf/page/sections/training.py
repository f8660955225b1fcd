"""Curves of every training behind a result: rows side by side, then each run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import count, takewhile
from pathlib import Path
from statistics import fmean

from fss_svf.page.content import Content, folded, name_of, note, own_rows
from fss_svf.page.curves import Curve, read_curves, read_log, run_folder
from fss_svf.page.drawings.drift import drift_plot
from fss_svf.page.drawings.lines import Lines, line_plot
from fss_svf.page.drawings.spectrum import spectrum_plot
from fss_svf.page.looks import COLOURS, Look, told_apart
from fss_svf.page.plots import Plot
from fss_svf.reporting.rows import Result, Row
from fss_svf.reporting.table import Table

Curves = Mapping[str, Curve]

_SPECTRUM = "Change S / S0 - 1 of large and small singular values at the end: mean, and standard deviation as a band"
_LOG_ONLY = "From log.csv, without TensorBoard files: the drift of singular values is not in it."


def training(content: Content) -> str:
    """Plots of the rows side by side, then of each run folder; the first part is open. Last, trainings without curves."""
    runs = {str(run_folder(c["path"])): r for r in content.results if (c := r["checkpoint"]) and c.get("path")}
    titles = dict(zip(runs, _titles(content, runs)))
    drawn = {run: read_curves(Path(run)) for run in runs}
    # With another logger, or none, log.csv has losses and scores.
    read = {run: curves or read_log(Path(run)) for run, curves in drawn.items()}
    parts = [(title, content.show(*plots)) for title, plots in _side_by_side(content, read)]
    missing: list[str] = []
    for number, run in enumerate(runs):
        if read[run]:
            words = note(run) if drawn[run] else note(run) + note(_LOG_ONLY)
            parts.append((titles[run], words + content.show(*_of_run(f"run-{number}", read[run]))))
        else:
            why = "neither TensorBoard files nor log.csv in it" if Path(run).is_dir() else "no such folder"
            missing.append(f"<li>{escape(titles[run])}: {escape(run)}: {why}</li>")
    lines = [folded(parts)] if parts else []
    if missing:
        lines.append(f'<p>Trainings without curves:</p><ul class="notes">{"".join(missing)}</ul>')
    return "\n".join(lines) or "<p>No result comes from a training.</p>"


def _side_by_side(content: Content, read: Mapping[str, Curves]) -> Iterator[tuple[str, Sequence[Plot | None]]]:
    """Title and plots of each fold where several rows have curves; once for tables of the same trainings."""
    seen: set[frozenset[str]] = set()
    for table in content.tables:
        for fold in sorted({fold for row in table.rows for _, fold in row.cells}):
            runs = [(row, of) for row in own_rows(table) if (of := _with_curves(row, fold, read))]
            every = frozenset(run for _, of in runs for run in of)
            if len(runs) < 2 or every in seen:
                continue
            seen.add(every)
            first = table.rows[0].first
            of_rows = [(content.look(row), [read[run] for run in of]) for row, of in runs]
            yield f"Side by side: {first['dataset']}, {first['backbone']}, fold {fold}", _compared(table, fold, of_rows)


def _compared(table: Table, fold: int, rows: Sequence[tuple[Look, Sequence[Curves]]]) -> list[Plot | None]:
    """Plots with a look for each row and a line for each seed."""
    losses = [Lines(look, [c["loss/main"] for c in of if "loss/main" in c]) for look, of in rows]
    scores = [Lines(look, [_percent(c["miou"]) for c in of if "miou" in c]) for look, of in rows]
    drifts = [(look, mean) for look, of in rows if (mean := _mean_drift(of))]
    spectra = [(look, *of_tenths) for look, of in rows if (of_tenths := _spectrum(of))]
    caption = "Drift of singular values at the end, mean of a layer's |S - S0| / S0"
    return [
        line_plot(name_of("loss", table, f"fold{fold}"), "Main loss", losses),
        line_plot(name_of("validation", table, f"fold{fold}"), "mIoU on the validation episodes", scores, "mIoU (%)"),
        drift_plot(name_of("drift", table, f"fold{fold}"), caption, drifts) if drifts else None,
        spectrum_plot(name_of("spectrum", table, f"fold{fold}"), _SPECTRUM, spectra) if spectra else None,
    ]


def _with_curves(row: Row, fold: int, read: Mapping[str, Curves]) -> list[str]:
    """The run folders that have curves, of the row's results of this fold, at any test shot."""
    trained = [r["checkpoint"] for (_, f), seeds in row.cells.items() if f == fold for r in seeds.values()]
    folders = dict.fromkeys(str(run_folder(c["path"])) for c in trained if c and c.get("path"))
    return [run for run in folders if read.get(run)]


def _titles(content: Content, runs: Mapping[str, Result]) -> list[str]:
    """A title for each run; equal ones are followed by what differs in their rows, or else by the name of the folder."""
    titles = told_apart(list(map(_title, runs.values())), [content.parts_of_result(r) for r in runs.values()])
    return told_apart(titles, [[Path(run).name] for run in runs])


def _title(result: Result) -> str:
    trained = result["checkpoint"]
    names = [result[key] for key in ("method", "tuning", "dataset", "backbone")]
    return f"{', '.join(names)}, fold {result['fold']}, {trained['shot']}-shot, seed {trained['seed']}"


def _of_run(name: str, curves: Curves) -> list[Plot | None]:
    losses = {key.removeprefix("loss/"): [curve] for key, curve in curves.items() if key.startswith("loss/")}
    if "val/loss" in curves:
        losses["validation"] = [curves["val/loss"]]
    scores = {
        title: [_percent(curves[key])] for key, title in (("miou", "mIoU"), ("fb_iou", "FB-IoU")) if key in curves
    }
    stages: dict[str, list[Curve]] = defaultdict(list)
    for layer, curve in _drifts(curves).items():
        stages[layer.split(".")[0]].append(_percent(curve))
    last, spectrum = _mean_drift([curves]), _spectrum([curves])
    return [
        line_plot(f"{name}-loss", "Loss", _coloured(losses)),
        line_plot(f"{name}-scores", "On the validation episodes", _coloured(scores), "%"),
        line_plot(f"{name}-drift", "Drift of singular values, mean of a layer's |S - S0| / S0", _coloured(stages), "%"),
        drift_plot(f"{name}-layers", "Drift at the end, by layer", [(Look("at the end", 0, 0), last)])
        if last
        else None,
        spectrum_plot(f"{name}-spectrum", _SPECTRUM, [(Look("at the end", 0, 0), *spectrum)]) if spectrum else None,
    ]


def _coloured(curves: Mapping[str, Sequence[Curve]]) -> list[Lines]:
    return [Lines(Look(name, number % COLOURS, 0), each) for number, (name, each) in enumerate(curves.items())]


def _mean_drift(runs: Sequence[Curves]) -> dict[str, float]:
    """The last drift of each layer, the mean over runs; empty where no run has any."""
    ends: dict[str, list[float]] = defaultdict(list)
    for curves in runs:
        for layer, curve in _drifts(curves).items():
            if curve:
                ends[layer].append(curve[-1][1])
    return {layer: fmean(values) for layer, values in ends.items()}


def _spectrum(runs: Sequence[Curves]) -> tuple[list[float], list[float]] | None:
    """The last spectrum_mean and spectrum_std of each tenth, means over runs; None where no run has any."""
    found: dict[str, list[float]] = {}
    for key in ("mean", "std"):
        tenths = (f"spectrum_{key}/{number}" for number in count(1))
        ends = takewhile(bool, ([c[tenth][-1][1] for c in runs if c.get(tenth)] for tenth in tenths))
        found[key] = [fmean(values) for values in ends]
    return (found["mean"], found["std"]) if found["mean"] else None


def _drifts(curves: Curves) -> dict[str, Curve]:
    return {key.removeprefix("drift/"): curve for key, curve in curves.items() if key.startswith("drift/")}


def _percent(curve: Curve) -> Curve:
    return [(step, 100 * value) for step, value in curve]
