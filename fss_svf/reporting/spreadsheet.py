"""Results as CSV for other programs: a line for each result, a column for each key. Numbers are fractions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fss_svf.reporting.published import differences, published
from fss_svf.reporting.rows import Result

_INTERVALS = ("interval.miou", "interval.fb_iou", "reliance.in_query.interval", "reliance.random.interval")
# These are tables, which are in result.json.
_LEFT_OUT = ("per_class_counts", "runs")
_FIRST = (
    "dataset", "backbone", "method", "tuning", "fold", "way", "shot", "miou", "interval.miou.low", "interval.miou.high",
    "fb_iou", "interval.fb_iou.low", "interval.fb_iou.high", "std.miou", "std.fb_iou", "published.miou",
    "published.difference", "published.source", "published.not_comparable", "checkpoint.seed", "checkpoint.recipe",
    "checkpoint.shot", "backbone_weights", "backbone_weights_hash", "trainable_backbone_values", "protocol.name",
    "protocol_hash", "size", "num_episodes", "images_listed", "path",
)  # fmt: skip


def spreadsheet(results: Sequence[Result]) -> str:
    """Every key of every result in a column named by its path, such as per_class.cat; missing values are empty."""
    lines = [{**dict(_flat(result)), **_published(result)} for result in results]
    columns = dict.fromkeys([*_FIRST, *(key for line in lines for key in line)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _published(result: Result) -> dict[str, Any]:
    row = published(result)
    if row is None:
        return {}
    printed = row.miou[result["fold"]]
    return {
        "published.miou": printed,
        "published.difference": None if printed is None else result["miou"] - printed,
        "published.source": row.source,
        "published.dagger": row.dagger,
        "published.not_comparable": "; ".join(differences(result, row)),
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in _LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif path in _INTERVALS and value:
            yield from zip((f"{path}.low", f"{path}.high"), value)
        elif isinstance(value, list):
            yield path, ";".join(map(str, value))
        else:
            yield path, value
