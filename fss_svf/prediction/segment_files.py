"""The photographs of fss-svf predict, when all that was given is checked: the model, its classes, the files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from fss_svf.config import PredictConfig
from fss_svf.console import progress
from fss_svf.errors import ConfigError, DataError, listing
from fss_svf.prediction.examples import UNNAMED, Example
from fss_svf.prediction.loading import load_segmenter
from fss_svf.prediction.output import SHOWN, Output, draw_examples
from fss_svf.prediction.photos import read_photo
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.prediction.support import SupportFeatures, load_classes, save_classes
from fss_svf.provenance import write_run_folder

log = logging.getLogger(__name__)


def segment_files(
    config: PredictConfig,
    support: Path,
    examples: Mapping[str, Sequence[Example]],
    saved: Path | None,
    photos: Sequence[Path],
    out: Path,
) -> None:
    """Segment `photos` into `out` by the examples, whose features go into the file `saved`; or by those of the file
    `support`, where `saved` is None. Raises DataError as predict does.
    """
    segmenter = load_segmenter(config)
    classes = _learn(segmenter, support, examples)
    try:
        write_run_folder(out, config)
    except OSError as error:
        raise DataError(f"out={out}: cannot be written ({error.strerror}); choose another folder") from None
    if saved is not None:
        save_classes(saved, classes)
        draw_examples(out / SHOWN, examples)
        count = sum(map(len, examples.values()))
        of_classes = f" of {len(classes)} classes" if UNNAMED not in classes else ""
        log.info("examples%s encoded: %d, into %s; support=%s the next time", of_classes, count, saved, saved)
    found, failed = _segment_all(segmenter, classes, photos, out, config.batch_size)
    told = listing([f"{name or 'the class'} found in {count} of them" for name, count in found.items()], 10)
    log.info("images segmented: %d, %s: %s", len(photos) - len(failed), told, out)
    if marked := sum(example.marked for given in examples.values() for example in given):
        shown = out / SHOWN
        log.info("masks made of boxes or points: %d; look at them in %s (docs/predict.md)", marked, shown)
    if failed:
        raise DataError(f"{len(failed)} of {len(photos)} images were left out; the first: {failed[0]}")


def _learn(
    segmenter: Segmenter, support: Path, examples: Mapping[str, Sequence[Example]]
) -> dict[str, SupportFeatures]:
    """The features of the examples by class; or, without any, those of the file `support`."""
    try:
        if not examples:
            classes = load_classes(support)
            for features in classes.values():
                segmenter.check_features(features, f"support={support}")
                segmenter.check_shot(len(features.rows))
            return classes
    except ConfigError as error:
        raise ConfigError(f"support={support}: {error}") from None
    return {name: _learn_class(segmenter, support / name, given) for name, given in examples.items()}


def _learn_class(segmenter: Segmenter, folder: Path, examples: Sequence[Example]) -> SupportFeatures:
    images, masks = [example.image for example in examples], [example.mask for example in examples]
    try:
        return segmenter.learn(images, masks, [str(example.path) for example in examples])
    except ConfigError as error:
        raise ConfigError(f"support={folder}: {error}") from None


def _segment_all(
    segmenter: Segmenter, classes: dict[str, SupportFeatures], photos: Sequence[Path], out: Path, batch_size: int
) -> tuple[dict[str, int], list[DataError]]:
    """In how many images each class is found, and what could not be read. Rows are written as they come."""
    failed: list[DataError] = []
    with Output(out, list(classes)) as output, progress(len(photos), "predict", "image") as bar:
        for start in range(0, len(photos), batch_size):
            began = perf_counter()
            images = {}
            for photo in photos[start : start + batch_size]:
                try:
                    images[photo] = read_photo(photo)
                except DataError as error:
                    failed.append(error)
            masks = segmenter.segment(list(images.values()), list(classes.values()))
            for (photo, image), mask in zip(images.items(), masks):
                output.draw(photo, image, mask)
            output.tell(list(images), masks, (perf_counter() - began) / max(1, len(images)))
            bar.update(min(batch_size, len(photos) - start))
    return output.found, failed
