"""Which classes a run trains on and which choose its best.pt: the novel ones, all base classes, or some held out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fss_svf.config import TrainConfig
from fss_svf.data.episodes import EpisodeSampler
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.partition import held_out_classes
from fss_svf.data.synonyms import Synonyms, same_things
from fss_svf.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The fold of a run, its held-out classes and the episodes of both splits.

    held_out    numbers of the base classes that are not trained on, ascending; none where other classes choose
    training    the episodes of training
    validating  the episodes that choose
    curves      further episodes to be looked at, by "base" and "novel": they choose nothing
    """

    fold: Fold
    held_out: tuple[int, ...]
    training: EpisodeSampler
    validating: EpisodeSampler
    curves: Mapping[str, EpisodeSampler]

    @property
    def novel_choose(self) -> bool:
        """Whether best.pt is chosen by the novel classes."""
        return not set(self.validating.classes).isdisjoint(self.fold.novel)

    @property
    def shown(self) -> str:
        """What validation is on, for logs, TensorBoard, checkpoints and results."""
        if not self.held_out:
            return "the novel classes" if self.novel_choose else "base classes of val images"
        return f"held-out base classes: {self._names(self.validating.classes)}"

    def announce(self) -> None:
        """Log the classes, the numbers of images, and what is left out."""
        log.info("fold %s: novel classes %s", self.fold.number, self._names(self.fold.novel) or "none")
        if self.held_out:
            novel = "measured in val/novel_miou, and choose nothing" if "novel" in self.curves else "not evaluated"
            log.info(
                "held out of training to choose best.pt: %s; the novel classes are %s during training",
                self._names(self.held_out),
                novel,
            )
        log.info("%s training queries, %s validation queries", f"{len(self.training):,}", f"{len(self.validating):,}")
        curves = ((f"val/{name}_miou", sampler) for name, sampler in self.curves.items())
        for what, sampler in (("training", self.training), ("validation", self.validating), *curves):
            if sampler.skipped:
                count, names = len(sampler.skipped), self._names(sampler.skipped)
                log.warning("%s leaves out %d classes with too few images: %s", what, count, names)

    def warn_of_known(self, seen: Iterable[str], synonyms: Synonyms = ()) -> None:
        """Warn where held-out classes are among those that the starting weights or the method had seen, by any name."""
        name = self.training.index.class_name
        same = {ours for _, ours in same_things(seen, map(name, self.held_out), synonyms)}
        known = [c for c in self.held_out if name(c) in same]
        if known:
            log.warning(
                "the weights that this run starts from were trained on held-out classes (%s): these are new to the "
                "meta-training alone, an easier test than novel classes",
                self._names(known),
            )

    def _names(self, classes: Iterable[int]) -> str:
        return ", ".join(map(self.training.index.class_name, classes))


def make_selection(config: TrainConfig, fold: Fold, train: Index, val: Index) -> Selection:
    """The samplers of a run, from the indexes of its splits.

    Held-out classes are left out of training as novel ones are: with filter_novel every image of them, otherwise they
    are background. Base classes are validated on val images without a novel class: all others are the test fold's own, and
    may not choose. Raises ConfigError and DataError.
    """
    shot, way = config.shot, config.way
    held_out: tuple[int, ...] = ()
    choosing = fold.novel if config.validate.selection == "novel" else fold.base
    if config.validate.selection == "base_heldout":
        assert config.validate.held_out is not None
        held_out = held_out_classes(train.class_names, fold.base, config.validate.held_out)
        choosing = held_out
    training = fold.sampler(
        train,
        "train",
        shot,
        config.seed,
        "shuffled_epochs",
        classes=[c for c in fold.base if c not in held_out],
        way=way,
        without=held_out if fold.options.filter_novel else (),
    )
    try:
        validating = _of_val(config, fold, val, choosing)
    except DataError as error:
        raise DataError(f"{error}; or hold out others by validate.held_out" if held_out else str(error)) from None
    trained = tuple(c for c in fold.base if c not in held_out)
    of_curves = {"base": trained, "novel": fold.novel}
    curves: dict[str, EpisodeSampler] = {}
    for name in dict.fromkeys(config.validate.curves):
        # The classes that choose are not measured twice.
        same = tuple(of_curves[name]) == tuple(choosing)
        curves[name] = validating if same else _of_val(config, fold, val, of_curves[name])
    return Selection(fold, held_out, training, validating, curves)


def _of_val(config: TrainConfig, fold: Fold, val: Index, classes: Sequence[int]) -> EpisodeSampler:
    """Episodes of these classes in val images; of base classes without a novel class in the image."""
    protocol = config.protocol
    return fold.sampler(
        val,
        "val",
        config.shot,
        protocol.seed,
        protocol.order,
        classes=classes,
        way=config.way,
        without=() if set(classes) <= set(fold.novel) else fold.novel,
        repeats=protocol.supports == "with_replacement",
    )
