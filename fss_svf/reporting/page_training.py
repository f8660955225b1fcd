"""The page's curves: loss, scores and the drift of singular values, of every training that a result comes from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from fss_svf.reporting.charts import Lines, line_chart
from fss_svf.reporting.curves import Curve, read_curves, run_folder
from fss_svf.reporting.rows import Result


def training(results: Sequence[Result]) -> str:
    """A part a run folder, the first of them open, and a list of those without curves."""
    runs = {str(run_folder(c["path"])): r for r in results if (c := r["checkpoint"]) and c.get("path")}
    parts: list[str] = []
    missing: list[str] = []
    for run, result in runs.items():
        curves = read_curves(Path(run))
        if curves:
            opened = "" if parts else " open"
            parts.append(
                f"<details{opened}><summary>{escape(_title(result))}</summary><div>"
                f'<p class="soft">{escape(run)}</p><div class="charts">{"".join(_charts(curves))}</div></div></details>'
            )
        else:
            why = "it holds no TensorBoard file" if Path(run).is_dir() else "there is no such folder here"
            missing.append(f"<li>{escape(_title(result))}: {escape(run)}: {why}</li>")
    if missing:
        parts.append(f'<p>Trainings without curves:</p><ul class="notes">{"".join(missing)}</ul>')
    return "\n".join(parts) or "<p>No result comes from a training.</p>"


def _title(result: Result) -> str:
    trained = result["checkpoint"]
    names = [result[key] for key in ("method", "tuning", "dataset", "backbone")]
    return f"{', '.join(names)}, fold {result['fold']}, {trained['shot']}-shot, seed {trained['seed']}"


def _charts(curves: Mapping[str, Curve]) -> list[str]:
    losses = [Lines(name.removeprefix("loss/"), [curve]) for name, curve in _under("loss/", curves).items()]
    shown = (("miou", "mIoU"), ("fb_iou", "FB-IoU"))
    scores = [Lines(said, [_percent(curves[name])]) for name, said in shown if name in curves]
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


def _by_layer(drifts: Mapping[str, Curve]) -> str:
    """The last drift of each layer as bars, the longest of which is the largest."""
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


def _under(prefix: str, curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name.startswith(prefix)}


def _percent(curve: Curve) -> Curve:
    return [(step, 100 * value) for step, value in curve]
