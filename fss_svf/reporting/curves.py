"""The curves of a training, read from the TensorBoard files of its run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from fss_svf.console import is_text

# (step, value), steps ascending
Curve = list[tuple[int, float]]
# More points than a chart has pixels show nothing more.
_MOST_POINTS = 400


def run_folder(checkpoint: str) -> Path:
    """The run folder of what was evaluated: the folder itself, or that of a file in its checkpoints/."""
    path = Path(checkpoint)
    return path.parent.parent if path.suffix == ".pt" else path


def read_curves(run: Path) -> Mapping[str, Curve]:
    """Curves by name ("loss/main", "miou", "drift/layer2.0.conv1", ...), thinned; none without a file of them."""
    folder = run / "tensorboard"
    # TensorBoard writes and reads no folder whose name is not UTF-8.
    if not is_text(str(folder)) or not any(folder.glob("events.out.tfevents.*")):
        return {}
    # Takes most of a second, which a report without curves need not spend.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells the end of each file
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    return {name: thinned([(e.step, e.value) for e in events.Scalars(name)]) for name in events.Tags()["scalars"]}


def thinned(points: Curve, most: int = _MOST_POINTS) -> Curve:
    """At most `most` points and the last, each the mean of its neighbours, without those that are not finite."""
    finite = [(step, value) for step, value in points if isfinite(value)]
    width = -(-len(finite) // most)
    if width <= 1:
        return finite
    parts = [finite[i : i + width] for i in range(0, len(finite), width)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
