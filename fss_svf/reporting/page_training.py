"""The page's curves: loss, scores and the drift of singular values of every training behind a result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from fss_svf.reporting.charts import Lines, line_chart
from fss_svf.reporting.curves import Curve, read_curves, run_folder
from fss_svf.reporting.rows import Result, Row
from fss_svf.reporting.table import Table

Curves = Mapping[str, Curve]


def training(tables: Sequence[Table], results: Sequence[Result]) -> str:
    """Charts of the rows side by side, then of each run folder; the first part is open. Last, trainings without curves."""
    runs = {str(run_folder(c["path"])): r for r in results if (c := r["checkpoint"]) and c.get("path")}
    read = {run: read_curves(Path(run)) for run in runs}
    parts = [(title, f'<div class="charts">{charts}</div>') for title, charts in _side_by_side(tables, read)]
    missing: list[str] = []
    for run, result in runs.items():
        if read[run]:
            charts = "".join(_charts(read[run]))
            parts.append((_title(result), f'<p class="soft">{escape(run)}</p><div class="charts">{charts}</div>'))
        else:
            why = "no TensorBoard file in it" if Path(run).is_dir() else "no such folder"
            missing.append(f"<li>{escape(_title(result))}: {escape(run)}: {why}</li>")
    lines = [
        f"<details{'' if i else ' open'}><summary>{escape(title)}</summary><div>{inside}</div></details>"
        for i, (title, inside) in enumerate(parts)
    ]
    if missing:
        lines.append(f'<p>Trainings without curves:</p><ul class="notes">{"".join(missing)}</ul>')
    return "\n".join(lines) or "<p>No result comes from a training.</p>"


def _side_by_side(tables: Sequence[Table], read: Mapping[str, Curves]) -> Iterator[tuple[str, str]]:
    """Title and charts of each fold where several rows have curves; once for tables of the same trainings."""
    seen: set[frozenset[str]] = set()
    for table in tables:
        for fold in sorted({fold for row in table.rows for _, fold in row.cells}):
            runs = {", ".join(row.words): of for row in table.rows if (of := _with_curves(row, fold, read))}
            every = frozenset(run for of in runs.values() for run in of)
            if len(runs) < 2 or every in seen:
                continue
            seen.add(every)
            first = table.rows[0].first
            of_rows = {name: [read[run] for run in of] for name, of in runs.items()}
            yield f"Side by side: {first['dataset']}, {first['backbone']}, fold {fold}", _compared(of_rows)


def _compared(of_rows: Mapping[str, Sequence[Curves]]) -> str:
    """Charts with a colour for each row and a line for each seed."""
    losses = [Lines(row, [c["loss/main"] for c in of if "loss/main" in c], "seeds") for row, of in of_rows.items()]
    scores = [Lines(row, [_percent(c["miou"]) for c in of if "miou" in c], "seeds") for row, of in of_rows.items()]
    return line_chart("Main loss", losses) + line_chart("mIoU in training, on the validation episodes (%)", scores)


def _with_curves(row: Row, fold: int, read: Mapping[str, Curves]) -> list[str]:
    """The run folders of the row's results of this fold, at any test shot."""
    trained = [r["checkpoint"] for (_, f), seeds in row.cells.items() if f == fold for r in seeds.values()]
    folders = dict.fromkeys(str(run_folder(c["path"])) for c in trained if c and c.get("path"))
    return [run for run in folders if read.get(run)]


def _title(result: Result) -> str:
    trained = result["checkpoint"]
    names = [result[key] for key in ("method", "tuning", "dataset", "backbone")]
    return f"{', '.join(names)}, fold {result['fold']}, {trained['shot']}-shot, seed {trained['seed']}"


def _charts(curves: Curves) -> list[str]:
    losses = [Lines(name.removeprefix("loss/"), [curve]) for name, curve in _under("loss/", curves).items()]
    names = (("miou", "mIoU"), ("fb_iou", "FB-IoU"))
    scores = [Lines(title, [_percent(curves[name])]) for name, title in names if name in curves]
    stages: dict[str, list[Curve]] = defaultdict(list)
    drifts = _under("drift/", curves)
    for name, curve in drifts.items():
        stages[name.removeprefix("drift/").split(".")[0]].append(_percent(curve))
    drift = [Lines(stage, each) for stage, each in stages.items()]
    charts = [
        line_chart("Loss", losses),
        line_chart("In training, on the validation episodes (%)", scores),
        line_chart("Drift of the singular values, mean of a layer's |S - S0| / S0 (%)", drift),
    ]
    return [*filter(None, charts), _by_layer({name.removeprefix("drift/"): c for name, c in drifts.items() if c})]


def _by_layer(drifts: Curves) -> str:
    """The last drift of each layer as bars. The longest bar is the largest drift."""
    if not drifts:
        return ""
    largest = max(curve[-1][1] for curve in drifts.values()) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><div class="bar"><span class="b0" '
        f'style="width:{100 * curve[-1][1] / largest:.1f}%"></span><b>{100 * curve[-1][1]:.2g}</b></div></td></tr>'
        for name, curve in drifts.items()
    )
    caption = "<caption>Drift at the end, by layer (%)</caption>"
    return f'<div class="chart"><table class="bars">{caption}<tbody>{rows}</tbody></table></div>'


def _under(prefix: str, curves: Curves) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name.startswith(prefix)}


def _percent(curve: Curve) -> Curve:
    return [(step, 100 * value) for step, value in curve]
