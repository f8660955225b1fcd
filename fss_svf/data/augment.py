"""Turning an image and its label into network input: the training augmentation and the evaluation resizing.

Everything is uint8 in and uint8 out; normalisation happens on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fss_svf.config import Augment
from fss_svf.episode import IGNORE, IMAGENET_MEAN

# Loader workers are processes of their own: OpenCV's threads inside them would only fight over the cores.
cv2.setNumThreads(0)

_PAD = tuple(round(255 * m) for m in IMAGENET_MEAN)
_CROP_TRIES = 31


def binary_mask(label: np.ndarray, class_id: int) -> np.ndarray:
    """(H, W) uint8: 1 where the label is `class_id`, 255 where it is ignored, else 0."""
    mask = (label == class_id).astype(np.uint8)
    mask[label == IGNORE] = IGNORE
    return mask


@dataclass(frozen=True)
class TrainTransform:
    """Scale, rotation about the centre, flip and crop as one affine warp, then blur: semseg's chain, as PFENet uses it.

    One warp reads every pixel once and interpolates once. Beyond the image lies ImageNet's mean (label 255).
    """

    size: int
    augment: Augment

    def __call__(
        self, image: np.ndarray, label: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W) uint8 to (size, size, 3) and (size, size) uint8.

        Several labels of one image, (H, W, n), move together; the first decides which crop will do.
        """
        warp = self._warp(label if label.ndim == 2 else label[..., 0], random)
        target = (self.size, self.size)
        image = cv2.warpAffine(image, warp, target, flags=cv2.INTER_LINEAR, borderValue=_PAD)
        # One by one: OpenCV rounds the places of several channels in another way than those of one.
        labels = [label] if label.ndim == 2 else [np.ascontiguousarray(x) for x in np.moveaxis(label, -1, 0)]
        moved = [cv2.warpAffine(x, warp, target, flags=cv2.INTER_NEAREST, borderValue=IGNORE) for x in labels]
        label = moved[0] if label.ndim == 2 else np.dstack(moved)
        if random.random() < self.augment.blur:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        return image, label

    def _warp(self, label: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The (2, 3) matrix from source to crop; the crop is drawn again until it keeps enough of the foreground."""
        height, width = label.shape
        scale = random.uniform(*self.augment.scale)
        turns = random.random() < self.augment.rotate_probability
        angle = turns * random.uniform(-self.augment.rotate, self.augment.rotate)
        scaled = np.array([width * scale, height * scale])
        # Scale first, then turn about the centre of the scaled image.
        warp = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
        warp[:, 2] += scaled / 2 - np.array([width / 2, height / 2])
        if random.random() < self.augment.flip:
            warp[0] *= -1
            warp[0, 2] += scaled[0] - 1
        foreground = np.argwhere((label != 0) & (label != IGNORE))[:, ::-1]
        foreground = foreground[:: max(1, len(foreground) // 2000)] @ warp[:, :2].T + warp[:, 2]
        room = scaled - self.size
        for _ in range(_CROP_TRIES):
            # A side shorter than the crop is padded evenly, a longer one is cut at random.
            offset = np.where(room > 0, random.uniform(0, 1, 2) * np.maximum(room, 0), room / 2)
            inside = ((foreground >= offset) & (foreground < offset + self.size)).all(axis=1)
            if not len(foreground) or inside.mean() >= self.augment.keep_foreground:
                break
        return np.column_stack([warp[:, :2], warp[:, 2] - np.round(offset)])


@dataclass(frozen=True)
class EvalTransform:
    """The input of an evaluation: `pad` (PFENet, BAM, SVF) or `squash` (HSNet, PANet) to size x size.

    pad: the longer side becomes `size`, each side is then floored to a multiple of 8, and zeros fill the square below
    and to the right, before normalisation. Labels are resized by nearest neighbour and filled with 255.
    """

    size: int
    resize: str

    def __call__(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W) uint8 to (size, size, 3) and (size, size) uint8."""
        height, width = self.inner(*label.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        border = (0, self.size - height, 0, self.size - width)
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, *border, cv2.BORDER_CONSTANT, value=IGNORE)
        return image, label

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the resized image inside the square."""
        if self.resize == "squash":
            return self.size, self.size
        longer = max(height, width)
        return max(8, height * self.size // longer // 8 * 8), max(8, width * self.size // longer // 8 * 8)
