"""What a checkpoint says of the data it was trained on, and that a resumed run has the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from fss_svf.backbones.weights import LoadReport
from fss_svf.config import PretrainConfig, TrainConfig
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.index import Index
from fss_svf.errors import DataError


def seen_in_training(
    config: TrainConfig | PretrainConfig,
    index: Index,
    classes: Sequence[int],
    weights: LoadReport,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint remembers of its data: its classes, then those its starting weights and `others` had seen."""
    own = [index.class_name(c) for c in classes]
    earlier = {name for seen in (weights.trained_on, others) for name in (seen or {}).get("classes", ())}
    return {
        "dataset": config.dataset.name,
        "fold": config.fold,
        "classes": own + sorted(earlier - set(own)),
        "index": data_hash(config.dataset.options, index),
        "backbone_weights": weights.label,
        "weights_hash": weights.digest,
        "weights_origin": (weights.trained_on or {}).get("origin"),
        "base_learner": (others or {}).get("origin"),
    }


def data_hash(options: DatasetOptions, index: Index) -> str:
    """16 hex digits over the training images: the index, and the part of it that trains."""
    fraction = options.train_fraction
    return index.hash if fraction == 1 else sha256(f"{index.hash} {fraction!r}".encode()).hexdigest()[:16]


def check_same_data(resumed: Mapping[str, Any], index_hash: str) -> None:
    """index_hash: of data_hash.

    Raise DataError when the training images are not those that the checkpoint's run began with."""
    began_with = resumed["trained_on"]["index"]
    if began_with != index_hash:
        raise DataError(
            f"resume: the run began on an index {began_with}, the dataset has {index_hash} now, so its episodes would be "
            "others; restore the data, or start a new run"
        )
