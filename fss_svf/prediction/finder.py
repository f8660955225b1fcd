"""What the page of demo asks: painted examples become features of classes, and those find the classes in photographs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from PIL import Image

from fss_svf.data.images import write_label
from fss_svf.errors import ConfigError, DataError
from fss_svf.prediction.examples import UNNAMED
from fss_svf.prediction.overlays import overlay, overlay_classes
from fss_svf.prediction.photos import read_photo
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.prediction.support import SupportFeatures

MOST = 5  # examples of a class
# Pixels of the longer side of what is painted on: a hand is no more exact, and the browser stays quick. Small photographs
# are enlarged, on which the brush would be too wide.
_LONGER = 1024
_KEPT = 16  # classes whose encoded examples are kept
STRENGTH = 0.6  # of the brush

# A photograph, and where it is painted: (h, w) bool on its copy, or None.
Painted = tuple[Path, "np.ndarray | None"]


def strokes_of(layers: Sequence[np.ndarray]) -> np.ndarray | None:
    """(h, w) bool: where any of the (h, w, 4) uint8 RGBA layers is painted; None where nothing is."""
    # A stroke's soft edge belongs to it from half its strength on.
    painted = [layer[..., 3] > 255 * STRENGTH / 2 for layer in layers if layer[..., 3].any()]
    return np.logical_or.reduce(painted) if painted else None


def painted_mask(strokes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8 in {0, 1} of `size`: (h, w) bool strokes on a copy, brought to the photograph's size."""
    height, width = size
    # Bilinear and cut at one half, so that the outline has no steps.
    resized = cv2.resize(strokes.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return (resized >= 0.5).astype(np.uint8)


def paintable(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to a copy with a longer side of 1024: what is painted on."""
    height, width = image.shape[:2]
    scale = _LONGER / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class Finder:
    """The model behind the page. Examples are encoded once, for as many photographs as follow.

    takes   the numbers of examples that the model can segment by, of 1 to 5
    """

    def __init__(self, segmenter: Segmenter, folder: Path) -> None:
        """Masks and overlays are written into `folder`. Raises ConfigError for a model that takes more than 5 examples."""
        self.segmenter, self.folder = segmenter, folder
        self._learnt: dict[str, SupportFeatures] = {}
        self.takes = [shot for shot in range(1, MOST + 1) if self._can(shot)]
        if not self.takes:
            segmenter.check_shot(MOST)

    def _can(self, shot: int) -> bool:
        try:
            self.segmenter.check_shot(shot)
        except ConfigError:
            return False
        return True

    def find(self, photo: Path, classes: Mapping[str, Sequence[Painted]]) -> tuple[Path, Path, str]:
        """An overlay (JPEG) and a mask (PNG) of the photograph's size, and what is to be said of them.

        classes: the examples by class; those without a stroke are left out. As in predict, the one class UNNAMED gives 0
        and 255, and named ones give 1, 2, ... in their order, in a palette, and a legend. Raises DataError where a class has
        nothing painted or a file is no image, ConfigError for a number of examples that the model cannot do.
        """
        painted = {name: _painted(name, examples) for name, examples in classes.items()}
        image = read_photo(photo)
        began = perf_counter()
        learnt = [self._learn(name, examples) for name, examples in painted.items()]
        encoded = perf_counter()
        (mask,) = self.segmenter.segment([image], [features for features, _ in learnt])
        seconds = perf_counter() - encoded
        # A folder of its own, so that the mask is saved under the photograph's name.
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = folder / f"{photo.stem}.overlay.jpg", folder / f"{photo.stem}.mask.png"
        named = UNNAMED not in classes
        shown = overlay_classes(image, mask, list(classes)) if named else overlay(image, mask)
        Image.fromarray(shown).save(files[0], quality=90)
        if named:
            write_label(files[1], mask)
        else:
            Image.fromarray(mask * 255).save(files[1])
        after = f", and {encoded - began:.1f} s to encode the examples" if any(anew for _, anew in learnt) else ""
        total = sum(map(len, painted.values()))
        by = f"{total} example{'s' * (total > 1)}"
        return *files, f"{photo.name}: {_shares(mask, list(classes))}, by {by}. {seconds:.2f} s{after}."

    def _learn(self, name: str, examples: Sequence[tuple[Path, np.ndarray]]) -> tuple[SupportFeatures, bool]:
        """The features of a class, and whether they were encoded just now."""
        told = hashlib.sha256()
        for path, strokes in examples:
            # Gradio keeps an upload in a folder named after its content.
            told.update(b"".join([str(path).encode(), str(strokes.shape).encode(), strokes.tobytes()]))
        key = told.hexdigest()
        anew = key not in self._learnt
        if anew:
            images = [read_photo(path) for path, _ in examples]
            masks = [painted_mask(strokes, image.shape[:2]) for image, (_, strokes) in zip(images, examples)]
            try:
                features = self.segmenter.learn(images, masks, [path.name for path, _ in examples])
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}" if name else str(error)) from None
            self._learnt = dict([*self._learnt.items(), (key, features)][-_KEPT:])
        return self._learnt[key], anew


def _painted(name: str, examples: Sequence[Painted]) -> list[tuple[Path, np.ndarray]]:
    """The examples with a stroke, of which there must be one."""
    painted = [(path, strokes) for path, strokes in examples if strokes is not None]
    if painted:
        return painted
    if name == UNNAMED:
        raise DataError("Nothing is painted yet: drop an example photograph, and paint over the whole object in it.")
    if examples:
        raise DataError(f"{name}: nothing is painted in its tab yet; paint over the whole object, or remove the class.")
    raise DataError(f"{name}: no example in its tab yet; drop a photograph there and paint, or remove the class.")


def _shares(mask: np.ndarray, names: Sequence[str]) -> str:
    """How much of the photograph each class covers."""
    height, width = mask.shape
    pixels = np.bincount(mask.ravel(), minlength=len(names) + 1)[1:]
    if not pixels.any():
        return f"nothing found in {width} x {height} pixels"
    shares = [f"{name} {100 * count / mask.size:.1f}%".strip() for name, count in zip(names, pixels) if count]
    return f"{', '.join(shares)} of {width} x {height} pixels"
