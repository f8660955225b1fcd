"""Reads the curves of a training from its run folder: of TensorBoard files, or of log.csv."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from fss_svf.console import is_text

# (step, value), steps ascending
Curve = list[tuple[int, float]]
# A chart has about this many pixels across.
_MAX_POINTS = 400


def run_folder(checkpoint: str) -> Path:
    """The run folder of an evaluated checkpoint: `checkpoint` itself, or the folder of a file in its checkpoints/."""
    path = Path(checkpoint)
    return path.parent.parent if path.suffix == ".pt" else path


def read_curves(run: Path) -> Mapping[str, Curve]:
    """Curves by name ("loss/main", "miou", "drift/layer2.0.conv1", ...), thinned; empty without TensorBoard files."""
    folder = run / "tensorboard"
    # TensorBoard does not support folders whose name is not UTF-8.
    if not is_text(str(folder)) or not any(folder.glob("events.out.tfevents.*")):
        return {}
    # The import takes most of a second, which a report without curves does not need.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs the end of each file
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    return {name: thinned([(e.step, e.value) for e in events.Scalars(name)]) for name in events.Tags()["scalars"]}


def thinned(points: Curve, most: int = _MAX_POINTS) -> Curve:
    """At most `most` points, each the mean of a run of points at its last step. Points that are not finite are dropped."""
    finite = [(step, value) for step, value in points if isfinite(value)]
    width = -(-len(finite) // most)
    if width <= 1:
        return finite
    parts = [finite[i : i + width] for i in range(0, len(finite), width)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def read_log(run: Path) -> Mapping[str, Curve]:
    """Curves by column of the run's log.csv; empty cells are left out. Empty without such a file."""
    path = run / "log.csv"
    if not path.is_file():
        return {}
    found: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                step = int(row.pop("step"))
                for name, text in row.items():
                    if text:
                        found.setdefault(name, []).append((step, float(text)))
            except (KeyError, TypeError, ValueError):
                continue  # a line that was being written
    return {name: thinned(curve) for name, curve in found.items()}
