"""What a protocol asks beside its episodes: of the checkpoint before they run, and of the number afterwards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fss_svf.config import Protocol
from fss_svf.errors import ConfigError
from fss_svf.evaluation.at_label import label_off
from fss_svf.methods.method import FewShotMethod

log = logging.getLogger(__name__)

_OFF = 10  # pixels by which label=original may move a mask without a word

# What result.json says of a checkpoint that was chosen on the classes it is tested on.
SELECTED_ON_NOVEL = "best mIoU on the novel classes"


def require_shots(protocol: Protocol, shots: Sequence[int], model: FewShotMethod, way: int | None) -> None:
    """Raise ConfigError where the model cannot do so many supports as the protocol puts them together."""
    if protocol.shots == "vote" and way != 1:
        raise ConfigError(
            f"protocol={protocol.name}: protocol.shots=vote is of one class, got way={way}; say protocol.shots=mean"
        )
    # A vote asks one support at a time; a mean needs no weights for the number of them.
    for shot in {"vote": (1,), "mean": ()}.get(protocol.shots, shots):
        model.check_shot(shot)


def require_conditions(protocol: Protocol, shots: Sequence[int], checkpoint: Mapping[str, Any] | None) -> None:
    """Hold `checkpoint`, as result.json describes it, against the protocol's `selection` and `shots`.

    Raises ConfigError where it was selected as the protocol forbids; warns where it was trained at another K than the
    numbers it would stand beside.
    """
    if checkpoint is None:
        return
    if protocol.selection == "not_novel" and checkpoint["selection"] == SELECTED_ON_NOVEL:
        raise ConfigError(
            f"protocol={protocol.name}: checkpoint={checkpoint['path']} was selected by its {SELECTED_ON_NOVEL}, which "
            "protocol.selection=not_novel refuses; take its last.pt, or train with validate.selection=base_heldout"
        )
    if protocol.shots == "train_k" and (others := [shot for shot in shots if shot != checkpoint["shot"]]):
        log.warning(
            "trained at %d-shot, evaluated at %s: published numbers of protocol=%s may be of a model trained at each K",
            checkpoint["shot"],
            ", ".join(f"{shot}-shot" for shot in others),
            protocol.name,
        )


def warn_of_drawings(what: str, trained_on: str, dataset: str | None = None) -> None:
    """Warn where a model of dataset=toy meets photographs, those of another dataset or a person's own (None)."""
    if trained_on == "toy" != dataset:
        log.warning("%s: trained on the drawings of dataset=toy, not on photographs", what)


def warn_of_stretch(protocol: Protocol, sizes: np.ndarray, side: int) -> None:
    """Warn where label=original moves masks by more than the papers' images see; sizes: (N, 2) heights and widths.

    Images of VOC and COCO have at most 640 pixels a side, where a mask is off by less than 10.
    """
    off, size = max(
        (label_off((height, width), side, protocol), (width, height))
        for height, width in np.unique(sizes, axis=0).tolist()
    )
    if off > _OFF:
        log.warning(
            "protocol.label=original moves masks, as the official code does, by up to %d pixels in images of %d x %d: "
            "protocol.label=exact does not",
            round(off),
            *size,
        )


def warn_of_width(result: Mapping[str, Any], half_width: float | None) -> None:
    """Warn where the 95% interval of the result's mIoU is wider on a side than `half_width`, a fraction."""
    if half_width is None:
        return
    low, high = result["interval"]["miou"]
    half = (high - low) / 2
    if half > half_width:
        # An interval shrinks with the root of the number of episodes; two digits of that are honest.
        more = (half / half_width) ** 2
        if result["protocol"]["classes"] == "all":  # a list of fixed length: further runs take it with other supports
            needed = f"{math.ceil(len(result['seeds']) * more)} runs are needed (seeds)"
        else:
            episodes = float(f"{result['num_episodes'] * more:.2g}")
            needed = f"{episodes:,.0f} episodes are needed (protocol.episodes, seeds)"
        log.warning(
            "%d-shot: the 95%% interval is mIoU +- %.2f, and the protocol asks for %.2f: about %s",
            result["shot"],
            100 * half,
            100 * half_width,
            needed,
        )
