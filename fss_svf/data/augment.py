"""Turns an image and its label into network input: the augmentation of training, the resizing of evaluation.

Inputs and outputs are uint8. Normalisation happens on the device, unless an evaluation pads after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch

from fss_svf.config import Augment
from fss_svf.episode import IGNORE, IMAGENET_MEAN, normalize

_PAD = tuple(round(255 * m) for m in IMAGENET_MEAN)
_CROP_TRIES = 31


def tame_threads() -> None:
    """Switch off OpenCV's threads in a loader worker: several processes with threads would compete for the cores."""
    cv2.setNumThreads(0)


def binary_mask(label: np.ndarray, class_id: int) -> np.ndarray:
    """(H, W) uint8: 1 where the label is `class_id`, 255 where it is ignored, else 0."""
    mask: np.ndarray = (label == class_id).view(np.uint8)
    mask |= -(label == IGNORE).view(np.uint8)  # 1 becomes 255
    return mask


def query_mask(label: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """(H, W) uint8: n where the label is the n-th of `class_ids`, from 1 on, 255 where it is ignored, else 0."""
    mask = binary_mask(label, class_ids[0])
    for way, class_id in enumerate(class_ids[1:], 2):
        mask[label == class_id] = way
    return mask


def support_mask(label: np.ndarray, class_id: int, class_ids: Sequence[int]) -> np.ndarray:
    """(H, W) uint8: 1 where the label is `class_id`, 255 where it is ignored or another of `class_ids`, else 0."""
    mask = binary_mask(label, class_id)
    for other in set(class_ids) - {class_id}:
        mask[label == other] = IGNORE
    return mask


@dataclass(frozen=True)
class TrainTransform:
    """semseg's augmentation, as in PFENet: scale, rotate about the centre, blur, flip and crop with padding.

    semseg makes an image at each step. Here a rotated image is warped once by all steps together, and only inside the
    crop. The result has the same geometry: outside of the scaled image is ImageNet's mean (label 255), and the crop is
    drawn again, up to 31 times, until it keeps enough of the foreground of the rotated label.

    With fit=squash (PANet) the complete image becomes size x size, whatever its proportions, and is not cropped.
    """

    size: int
    augment: Augment

    def __call__(
        self, image: np.ndarray, label: np.ndarray, random: np.random.Generator, foreground: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W) uint8 to (size, size, 3) and (size, size) uint8; the inputs may be read-only.

        foreground: the class number that the crop must keep; None: all classes together.

        The new image is a view of (3, size, size) memory, so that the transposition in the loader costs nothing.
        """
        height, width = label.shape
        scale = random.uniform(*self.augment.scale)
        frame = max(1, round(width * scale)), max(1, round(height * scale))
        if self.augment.fit == "squash":
            frame = self.size, self.size
        angle = 0.0
        if random.random() < self.augment.rotate_probability:
            angle = random.uniform(-self.augment.rotate, self.augment.rotate)
        flip = random.random() < self.augment.flip

        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # interpolation of four channels is faster than of three
        if angle:
            warp = _warp((width, height), frame, angle, flip)
            label = cv2.warpAffine(label, warp, frame, flags=cv2.INTER_NEAREST, borderValue=IGNORE)
        else:
            # Faster than a warp. EXACT: plain INTER_NEAREST shifts the label by up to half a pixel.
            image = cv2.resize(image, frame, interpolation=cv2.INTER_LINEAR)
            label = cv2.resize(label, frame, interpolation=cv2.INTER_NEAREST_EXACT)
            if flip:
                image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        low, high = (1, IGNORE - 1) if foreground is None else (foreground, foreground)
        left, top = self._corner(cv2.inRange(label, low, high), random)
        columns, into_columns = _window(left, self.size, frame[0])
        rows, into_rows = _window(top, self.size, frame[1])
        if angle:
            warp[:, 2] -= columns.start, rows.start
            window = (columns.stop - columns.start, rows.stop - rows.start)
            part = cv2.warpAffine(image, warp, window, flags=cv2.INTER_LINEAR, borderValue=_PAD)
        else:
            part = image[rows, columns]
        part = cv2.cvtColor(part, cv2.COLOR_RGBA2RGB)
        if random.random() < self.augment.blur:
            part = cv2.GaussianBlur(part, (5, 5), 0)
        new_image = np.empty((3, self.size, self.size), np.uint8)
        new_label = np.full((self.size, self.size), IGNORE, np.uint8)
        if part.shape[:2] != new_label.shape:
            for plane, pad in zip(new_image, _PAD):
                plane[:] = pad
        cv2.split(part, [plane[into_rows, into_columns] for plane in new_image])
        new_label[into_rows, into_columns] = label[rows, columns]
        return new_image.transpose(1, 2, 0), new_label

    def _corner(self, foreground: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
        """(left, top) of the crop in the warped label, negative where it is padded. foreground: (h, w), 0 elsewhere."""
        rooms = [length - self.size for length in foreground.shape[::-1]]
        wanted = self.augment.keep_foreground * cv2.countNonZero(foreground)
        for _ in range(_CROP_TRIES):
            # A side shorter than the crop is padded evenly, a longer one is cut at random.
            left, top = (int(random.integers(room + 1)) if room > 0 else -(-room // 2) for room in rooms)
            kept = foreground[max(0, top) : top + self.size, max(0, left) : left + self.size]
            if cv2.countNonZero(kept) >= wanted:
                break
        return left, top


@dataclass(frozen=True)
class Unaugmented:
    """TrainTransform without augmentation, to overfit a few items: the input of an evaluation that pads."""

    size: int

    def __call__(
        self, image: np.ndarray, label: np.ndarray, random: np.random.Generator, foreground: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As TrainTransform, but nothing is random."""
        return EvalTransform(self.size, "pad")(image, label)


def training_transform(size: int, augment: Augment | None) -> TrainTransform | Unaugmented:
    """The transform of training images. augment=None: no augmentation."""
    return Unaugmented(size) if augment is None else TrainTransform(size, augment)


def _warp(source: tuple[int, int], frame: tuple[int, int], angle: float, flip: bool) -> np.ndarray:
    """(2, 3) matrix from the source to the scaled, rotated and flipped image; sizes are (width, height)."""
    warp: np.ndarray = cv2.getRotationMatrix2D((frame[0] / 2, frame[1] / 2), angle, 1)
    # Resizing maps corners to corners, which includes a shift in coordinates of pixel centres.
    scale = np.divide(frame, source)
    warp[:, 2] += warp[:, :2] @ (scale - 1) / 2
    warp[:, :2] = warp[:, :2] * scale
    if flip:
        warp[0] *= -1
        warp[0, 2] += frame[0] - 1
    return warp


def _window(start: int, size: int, length: int) -> tuple[slice, slice]:
    """The part of 0..length inside a crop of `size` from `start`, and its position in the crop."""
    low, high = max(0, start), min(length, start + size)
    return slice(low, high), slice(low - start, high - start)


@dataclass(frozen=True)
class EvalTransform:
    """The input of an evaluation: `pad` (PFENet, BAM, SVF) or `squash` (HSNet, PANet) to size x size.

    pad: the longer side becomes `size`, then each side is floored to a multiple of 8. The square is filled with zeros
    below and to the right: in the uint8 image or, with pad=after_normalisation, in the normalised one. Labels are
    resized by nearest neighbour and filled with 255.
    """

    size: int
    resize: str
    pad: Literal["before_normalisation", "after_normalisation"] = "before_normalisation"

    def __call__(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`image` and `label` of a pair."""
        return self.image(image), self.label(label)

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to (size, size, 3), uint8 or, with after_normalisation, float32."""
        height, width = self.inner(*image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.pad == "after_normalisation":
            # No uint8 value is 0 after normalisation, hence float here. Float images are not normalised again later.
            image = normalize(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return self._filled(image, (0, 0, 0))

    def label(self, label: np.ndarray) -> np.ndarray:
        """(H, W) uint8 to (size, size) uint8."""
        height, width = self.inner(*label.shape)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        return self._filled(label, IGNORE)

    def _filled(self, part: np.ndarray, value: tuple[int, int, int] | int) -> np.ndarray:
        """The square with `part` in its upper left corner."""
        border = (0, self.size - part.shape[0], 0, self.size - part.shape[1])
        filled: np.ndarray = cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=value)
        return filled

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the resized image inside the square."""
        if self.resize == "squash":
            return self.size, self.size
        longer = max(height, width)
        return max(8, height * self.size // longer // 8 * 8), max(8, width * self.size // longer // 8 * 8)
