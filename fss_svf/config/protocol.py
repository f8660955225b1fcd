"""How a number is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fss_svf import conf_files
from fss_svf.config.checks import check_seed, check_size, require
from fss_svf.config.mapping import from_mapping, to_mapping


@dataclass(frozen=True)
class Protocol:
    """How a number is measured. Two results compare only where the hash of their protocols is the same.

    conf/protocol/svf.yaml says what each choice means, docs/protocols.md what moves numbers.

    episodes   of each run; None where every listed image is a query
    size       of the input, in pixels, where the protocol fixes it; null: the recipe's
    half_width half the width that is asked of mIoU's 95% interval, a fraction; a wider one is told
    """

    name: str
    episodes: int | None
    runs: int
    seed: int
    queries: Literal["in_order", "pairs", "random", "by_class", "in_turn", "balanced", "every"]
    resize: Literal["pad", "squash"]
    label: Literal["original", "exact", "resized"]
    never_drawn: Literal["error", "leave_out", "zero"]
    # Fields with a default came later; a result from before them keeps its hash.
    pad: Literal["before_normalisation", "after_normalisation"] = "before_normalisation"
    novel_threshold: float | None = None
    size: int | None = None
    shots: Literal["train_k", "vote", "mean"] = "train_k"
    half_width: float | None = None
    selection: Literal["any", "not_novel"] = "any"
    supports: Literal["distinct", "with_replacement"] = "distinct"
    seen_classes: Literal["refuse", "count"] = "refuse"
    classes: Literal["novel", "all"] = "novel"

    def __post_init__(self) -> None:
        self._check_whole_labels()
        pads = self.resize == "pad" or self.pad == "before_normalisation"
        require(pads, "pad", f"before_normalisation, as resize={self.resize} pads nothing", self.pad)
        threshold = self.novel_threshold
        require(threshold is None or 0 <= threshold < 1, "novel_threshold", "null or in [0, 1)", threshold)
        # A vote is of masks, not of the probabilities that a threshold is held against.
        require(threshold is None or self.shots != "vote", "novel_threshold", "null with shots=vote", threshold)
        half = self.half_width
        require(half is None or 0 < half < 1, "half_width", "null or a fraction in (0, 1)", half)
        if self.size is not None:
            check_size(self.size)
        require(self.runs >= 1, "runs", "a whole number >= 1", self.runs)
        check_seed(self.seed)

    @property
    def order(self) -> Literal["in_order", "pairs", "random", "by_class", "in_turn", "balanced"]:
        """How the queries of episodes are drawn. Only where classes is novel."""
        assert self.queries != "every"
        return self.queries

    def _check_whole_labels(self) -> None:
        """Keys that go with queries=every, or without it."""
        every, episodes = self.queries == "every", self.episodes
        require(
            (self.classes == "all") == every,
            "classes",
            f"{'all' if every else 'novel'}, as queries={self.queries}",
            self.classes,
        )
        if every:
            require(episodes is None, "episodes", "null, as queries=every takes each listed image once", episodes)
            require(self.supports == "distinct", "supports", "distinct, as queries=every", self.supports)
            # A vote gives masks, and one of several classes is the likeliest.
            require(self.shots != "vote", "shots", "train_k or mean, as classes=all", self.shots)
        else:
            require(episodes is not None and episodes >= 1, "episodes", "a whole number >= 1", episodes)

    @classmethod
    def load(cls, name: str, **changes: Any) -> Protocol:
        """The protocol of conf/protocol/NAME.yaml, with `changes` of its fields. Raises ConfigError.

        >>> protocol = fss_svf.Protocol.load("svf", episodes=200, runs=5)
        >>> protocol.episodes, protocol.seed
        (200, 321)
        """
        return from_mapping(cls, conf_files.values(f"protocol/{name}", changes), "protocol")

    def hash(self, **also: object) -> str:
        """Eight hex digits over every field and what else is part of the measurement (input size, data choices).

        But for two fields: `size`, since the size really used is to be given in `also`, and `half_width`, which asks
        for no other number.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        measured = {key: value for key, value in to_mapping(self).items() if key not in ("size", "half_width")}
        values = {key: value for key, value in measured.items() if value != defaults[key]}
        text = json.dumps([values, to_mapping(also)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class EpisodeFiles:
    """A table of episodes to write, and one to evaluate instead of drawing them."""

    save: Path | None
    load: Path | None
