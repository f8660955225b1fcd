"""The comparison of two results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fss_svf.reporting.markdown import markdown_lines
from fss_svf.reporting.rows import method_of


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """The content of compare.json in percent: a description of a and b, a row for each number, and the verdict."""
    c = comparison
    seeds, trainings = len(c["seeds"]), max(len(c["a"]), len(c["b"]))
    ways = f"{c['way']}-way " if c["way"] > 1 else ""
    head = (
        f"{c['dataset']} fold {c['fold']}, {ways}{c['shot']}-shot, in %. Protocol {c['protocol']} ({c['protocol_hash']}): "
        f"{seeds} x {c['num_episodes'] // seeds} episodes at {c['size']} px, the same for all."
    )
    sides = [f"- {side}: {_what(c[side])}" for side in ("a", "b")]
    titles = ["", "episodes", "a", "b", "b - a", f"{c['level']:.0%} interval", "b better in"]
    several = [f"of {trainings} trainings", f"{c['level']:.0%} over trainings"] if trainings > 1 else []
    numbers = [("mIoU", c["num_episodes"], c["miou"])]
    if "miou_of_classes" in c:
        of = c["miou_of_classes"]
        numbers.append((f"mIoU of {', '.join(of['classes'])}", of["episodes"], of))
    numbers.append(("FB-IoU", c["num_episodes"], c["fb_iou"]))
    numbers += [(name, of["episodes"], of) for name, of in c["per_class"].items()]
    rows = [[*titles, *several], *(_row(*number, trainings > 1) for number in numbers)]
    foot = f'Intervals over {c["resamples"]:,} resamples of the episodes; "b better in": in % of them.'
    if trainings > 1:
        foot += " a and b are means over trainings. The last columns: b - a of each training, and Student's interval."
    return "\n\n".join([head, "\n".join(sides), markdown_lines(rows, words=1), foot, c["verdict"]])


def _what(side: Sequence[Mapping[str, Any]]) -> str:
    first = side[0]
    weights = ", ".join(dict.fromkeys(map(_weights, side)))
    what = f"{method_of(first)}, {first['tuning']}, {first['backbone']} ({weights})"
    if len(side) == 1:
        return f"{what}, {first['path']}"
    return "\n".join([what, *(f"  - seed {t['checkpoint']['seed']}: {t['path']}" for t in side)])


def _weights(training: Mapping[str, Any]) -> str:
    digest = training.get("backbone_weights_hash")
    return training["backbone_weights"] + (f" {digest[:8]}" if digest else "")


def _row(name: str, episodes: int, of: Mapping[str, Any], several: bool) -> list[str]:
    values = [_percent(of["a"]), _percent(of["b"]), _percent(of["difference"], "+.2f")]
    cells = [name, f"{episodes:,}", *values, _ends(of["interval"]), _percent(of["b_better"], ".1f")]
    if several:
        cells += [
            ", ".join(_percent(value, "+.2f") for value in of["trainings"]) or "-",
            _ends(of["trainings_interval"]),
        ]
    return cells


def _ends(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{_percent(interval[0], '+.2f')} to {_percent(interval[1], '+.2f')}"


def _percent(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(100 * value, form)
