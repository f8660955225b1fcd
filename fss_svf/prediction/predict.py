"""fss-svf predict: classes shown in a few annotated photographs, segmented in others."""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter

from fss_svf.config import PredictConfig
from fss_svf.console import progress
from fss_svf.data.images import image_size
from fss_svf.errors import ConfigError, DataError, listing
from fss_svf.prediction.examples import Example, class_folders, read_classes
from fss_svf.prediction.loading import check_model, load_segmenter
from fss_svf.prediction.output import SHOWN, Output, draw_examples
from fss_svf.prediction.photos import find_photos, read_photo
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.prediction.support import UNNAMED, SupportFeatures, load_classes, save_classes
from fss_svf.provenance import write_run_folder

log = logging.getLogger(__name__)

_NEEDED = {
    "support": "a folder of annotated examples, or of one for each class, or the support.pt of an earlier predict",
    "query": "an image, or a folder of them",
    "out": "the folder to write masks into",
}


def predict(config: PredictConfig, _: Path) -> None:
    """Segment every photograph of config.query into config.out: NAME.png, NAME.overlay.jpg, predictions.csv.

    An image that cannot be read does not keep the others from being written; at the end it is a DataError.
    """
    check_model(config)
    for key, what in _NEEDED.items():
        if getattr(config, key) is None:
            raise ConfigError(f"{key}: nothing given; say {key}=PATH of {what} (docs/predict.md)")
    assert config.support is not None
    assert config.query is not None
    assert config.out is not None
    photos = find_photos(config.query, "query")
    _require_an_image(photos)
    saved = None if config.support.is_file() else config.save_support or config.out / "support.pt"
    if saved is None and config.save_support is not None:
        raise ConfigError(
            f"save_support: support={config.support} holds examples encoded already; leave save_support out"
        )
    _refuse_existing(config, saved)
    examples = {} if saved is None else read_classes(config.support)
    segmenter = load_segmenter(config)
    classes = _learn(segmenter, config.support, examples)
    try:
        write_run_folder(config.out, config)
    except OSError as error:
        raise DataError(f"out={config.out}: cannot be written ({error.strerror}); choose another folder") from None
    if saved is not None:
        save_classes(saved, classes)
        draw_examples(config.out / SHOWN, examples)
        count = sum(map(len, examples.values()))
        of_classes = f" of {len(classes)} classes" if UNNAMED not in classes else ""
        log.info("%d examples%s encoded into %s; support=%s the next time", count, of_classes, saved, saved)
    found, failed = _segment_all(segmenter, classes, photos, config.out, config.batch_size)
    told = listing([f"{name or 'the class'} found in {count} of them" for name, count in found.items()], 10)
    log.info("%d images segmented, %s: %s", len(photos) - len(failed), told, config.out)
    if marked := sum(example.marked for given in examples.values() for example in given):
        shown = config.out / SHOWN
        log.info("masks made of boxes or points: %d; look at them in %s (docs/predict.md)", marked, shown)
    if failed:
        raise DataError(f"{len(failed)} of {len(photos)} images were left out; the first: {failed[0]}")


def _require_an_image(photos: list[Path]) -> None:
    """Raise DataError of the first photograph where none can be opened, before anything is computed."""
    failed = []
    for photo in photos:
        try:
            image_size(photo)
            return
        except DataError as error:
            failed.append(error)
    raise failed[0]


def _refuse_existing(config: PredictConfig, saved: Path | None) -> None:
    """Raise DataError where files would be written over, or among the photographs. saved: for the encoded examples."""
    assert config.out is not None
    out = config.out.resolve()
    if out.exists() and not out.is_dir():
        raise DataError(f"out={config.out}: a file; give a folder")
    for key, given in (("query", config.query), ("support", config.support)):
        assert given is not None
        theirs = given.resolve() if given.is_dir() else given.resolve().parent
        of_classes = [one.resolve() for one in class_folders(given)] if key == "support" else []
        folders = {one / below for one in (theirs, *of_classes) for below in ("", "masks")}
        # a.png of the masks would take the place of the photograph a.png, or of its mask; a new folder among those of
        # classes would be a class the next time
        if given.suffix != ".pt" and ({out, out / SHOWN} & folders or (of_classes and out.parent == theirs)):
            raise DataError(f"out={config.out}: would write among the files of {key}={given}; give a folder of its own")
    there = config.out if out.is_dir() and any(out.iterdir()) else saved if saved and saved.exists() else None
    if there is not None and not config.overwrite:
        raise DataError(
            f"{there}: exists already; choose another, or say overwrite=true to replace files of the same name"
        )


def _learn(segmenter: Segmenter, support: Path, examples: dict[str, list[Example]]) -> dict[str, SupportFeatures]:
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


def _learn_class(segmenter: Segmenter, folder: Path, examples: list[Example]) -> SupportFeatures:
    images, masks = [example.image for example in examples], [example.mask for example in examples]
    try:
        return segmenter.learn(images, masks, [str(example.path) for example in examples])
    except ConfigError as error:
        raise ConfigError(f"support={folder}: {error}") from None


def _segment_all(
    segmenter: Segmenter, classes: dict[str, SupportFeatures], photos: list[Path], out: Path, batch_size: int
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
