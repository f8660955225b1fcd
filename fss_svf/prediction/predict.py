"""fss-svf predict: classes shown in a few annotated photographs, segmented in others."""

from __future__ import annotations

from pathlib import Path

from fss_svf.config import PredictConfig
from fss_svf.data.images import image_size
from fss_svf.errors import ConfigError, DataError
from fss_svf.prediction.examples import class_folders, read_classes
from fss_svf.prediction.loading import check_model
from fss_svf.prediction.output import SHOWN
from fss_svf.prediction.photos import find_photos, read_photo

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
    # The modules of a model, which take seconds to import: what is wrong with the files is said before.
    from fss_svf.prediction.segment_files import segment_files

    segment_files(config, config.support, examples, saved, photos, config.out)


def _require_an_image(photos: list[Path]) -> None:
    """Raise DataError of the first photograph where none can be opened (one alone: read), before anything is computed."""
    check = read_photo if len(photos) == 1 else image_size
    failed = []
    for photo in photos:
        try:
            check(photo)
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
