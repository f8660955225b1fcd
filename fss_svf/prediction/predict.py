"""fss-svf predict: a class shown in a few annotated photographs, segmented in others."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from PIL import Image

from fss_svf.config import PredictConfig
from fss_svf.console import progress
from fss_svf.data.images import image_size
from fss_svf.errors import ConfigError, DataError
from fss_svf.files import appearing_whole
from fss_svf.prediction.examples import Example, read_examples
from fss_svf.prediction.photos import find_photos, read_photo
from fss_svf.prediction.segmenter import Segmenter, SupportCode
from fss_svf.provenance import write_run_folder

log = logging.getLogger(__name__)

_COLOUR = (234, 67, 53)
_LONGEST = 16_384  # pixels of an overlay's longer side
_SHOWN = "support"  # the folder in `out` that shows the examples
_NEEDED = {
    "checkpoint": "a run folder of train, or a checkpoint file",
    "support": "a folder of annotated examples, or the support.pt of an earlier predict",
    "query": "an image, or a folder of them",
    "out": "the folder to write masks into",
}


def predict(config: PredictConfig, _: Path) -> None:
    """Segment every photograph of config.query into config.out: NAME.png, NAME.overlay.jpg, predictions.csv.

    An image that cannot be read does not keep the others from being written; at the end it is a DataError.
    """
    for key, what in _NEEDED.items():
        if getattr(config, key) is None:
            raise ConfigError(f"{key}: nothing given; say {key}=PATH of {what} (docs/predict.md)")
    assert config.checkpoint is not None
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
    examples = [] if saved is None else read_examples(config.support)
    segmenter = Segmenter.load(config.checkpoint, config.device, config.precision, config.shots)
    code = _learn(segmenter, config.support, examples)
    try:
        write_run_folder(config.out, config)
    except OSError as error:
        raise DataError(f"out={config.out}: cannot be written ({error.strerror}); choose another folder") from None
    if saved is not None:
        code.save(saved)
        for example in examples:
            _save_overlay(config.out / _SHOWN / f"{example.path.stem}.overlay.jpg", example.image, example.mask)
        log.info("%d examples encoded into %s; support=%s the next time", len(examples), saved, saved)
    found, failed = _segment_all(segmenter, code, photos, config.out, config.batch_size)
    log.info("%d images segmented, the class found in %d of them: %s", len(photos) - len(failed), found, config.out)
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
        # a.png of the masks would take the place of the photograph a.png, or of its mask
        if given.suffix != ".pt" and {out, out / _SHOWN} & {theirs, theirs / "masks"}:
            raise DataError(f"out={config.out}: would write among the files of {key}={given}; give a folder of its own")
    there = config.out if out.is_dir() and any(out.iterdir()) else saved if saved and saved.exists() else None
    if there is not None and not config.overwrite:
        raise DataError(
            f"{there}: exists already; choose another, or say overwrite=true to replace files of the same name"
        )


def _learn(segmenter: Segmenter, support: Path, examples: list[Example]) -> SupportCode:
    """The code of the examples; or, without any, that of the file `support`."""
    try:
        if examples:
            images, masks = [e.image for e in examples], [e.mask for e in examples]
            return segmenter.learn(images, masks, [str(e.path) for e in examples])
        code = SupportCode.load(support)
        segmenter.check_code(code, f"support={support}")
        segmenter.check_shot(len(code.rows))
    except ConfigError as error:
        raise ConfigError(f"support={support}: {error}") from None
    return code


def _segment_all(
    segmenter: Segmenter, code: SupportCode, photos: list[Path], out: Path, batch_size: int
) -> tuple[int, list[DataError]]:
    """In how many images the class is found, and what could not be read. Rows are written as they come."""
    found, failed = 0, []
    with (
        (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file,
        progress(len(photos), "predict", "image") as bar,
    ):
        rows = csv.writer(file)
        rows.writerow(["file", "share", "seconds"])
        for start in range(0, len(photos), batch_size):
            began = perf_counter()
            images = {}
            for photo in photos[start : start + batch_size]:
                try:
                    images[photo] = read_photo(photo)
                except DataError as error:
                    failed.append(error)
            masks = segmenter.segment(list(images.values()), code)
            for (photo, image), mask in zip(images.items(), masks):
                _save(out / f"{photo.stem}.png", mask * 255)
                _save_overlay(out / f"{photo.stem}.overlay.jpg", image, mask)
                found += bool(mask.any())
            seconds = (perf_counter() - began) / max(1, len(images))
            for photo, mask in zip(images, masks):
                rows.writerow([photo.name, f"{mask.mean():.6f}", f"{seconds:.4f}"])
            file.flush()
            bar.update(min(batch_size, len(photos) - start))
    return found, failed


def _save_overlay(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, overlay(image, mask), quality=90)


def _save(path: Path, picture: np.ndarray, **options: int) -> None:
    with appearing_whole(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="PNG" if path.suffix == ".png" else "JPEG", **options)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB and (H, W) uint8: tinted and outlined where the mask is 1, and grey and dim elsewhere.

    The outline is as wide as a viewer that shows the whole photograph needs it. Of an image with a longer side above
    16,384 the overlay is that long: a JPEG ends at 65,535.
    """
    inside = (mask == 1).astype(np.uint8)
    if max(mask.shape) > _LONGEST:
        size = [max(1, length * _LONGEST // max(mask.shape)) for length in mask.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST_EXACT)
    dim = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=0.5, beta=45)
    shown = cv2.cvtColor(dim, cv2.COLOR_GRAY2RGB)
    tinted = cv2.addWeighted(image, 0.65, np.full_like(image, _COLOUR), 0.35, 0)
    cv2.copyTo(tinted, inside, shown)
    outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, outlines, -1, _COLOUR, max(2, round(max(inside.shape) / 200)))
    return shown
