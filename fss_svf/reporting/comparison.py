"""The comparison of two results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fss_svf.reporting.markdown import markdown_lines


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What compare.json holds, in percent: what a and b are, a row a number, and the verdict."""
    c = comparison
    seeds = len(c["seeds"])
    ways = f"{c['way']}-way " if c["way"] > 1 else ""
    head = (
        f"{c['dataset']} fold {c['fold']}, {ways}{c['shot']}-shot, in %. Protocol {c['protocol']} ({c['protocol_hash']}): "
        f"{seeds} x {c['num_episodes'] // seeds} episodes at {c['size']} px, the same in both."
    )
    sides = [f"- {side}: {_what(c[side])}" for side in ("a", "b")]
    interval = f"{c['level']:.0%} interval"
    rows = [["", "episodes", "a", "b", "b - a", interval, "b better in"]]
    rows += [_row(name, c["num_episodes"], c[key]) for name, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou"))]
    rows += [_row(name, of_class["episodes"], of_class) for name, of_class in c["per_class"].items()]
    foot = f'Intervals over {c["resamples"]:,} resamples of the episodes; "b better in": of them.'
    return "\n\n".join([head, "\n".join(sides), markdown_lines(rows, words=1), foot, c["verdict"]])


def _what(side: Mapping[str, Any]) -> str:
    return f"{side['method']}, {side['tuning']}, {side['backbone']} ({side['backbone_weights']}), {side['path']}"


def _row(name: str, episodes: int, of: Mapping[str, Any]) -> list[str]:
    low, high = of["interval"] or (None, None)
    between = "-" if low is None else f"{_percent(low, '+.2f')} to {_percent(high, '+.2f')}"
    values = [_percent(of["a"]), _percent(of["b"]), _percent(of["difference"], "+.2f")]
    return [name, f"{episodes:,}", *values, between, _percent(of["b_better"], ".1f")]


def _percent(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(100 * value, form)
