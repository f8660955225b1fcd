"""Images per second of one core: our training loader against a plain chain of the official augmentation steps.

Both sides get the same files, crop size and probabilities. Ours stays uint8, since normalisation happens on the
device; what it would cost here is printed too. The plain chain is written from the published description. Its larger
images cost more page faults: MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000 shows it without.

    python scripts/bench_loader.py                          # made-up photographs of VOC's size
    python scripts/bench_loader.py --images JPEGImages --labels SegmentationClassAug
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fss_svf.config import Augment
from fss_svf.data.augment import TrainTransform, binary_mask, tame_threads
from fss_svf.data.cache import CachedSplit
from fss_svf.data.dataset import Split
from fss_svf.data.images import image_size, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.episode import IGNORE, IMAGENET_MEAN, IMAGENET_STD, normalize

AUGMENT = Augment(scale=(0.9, 1.1), rotate=10, rotate_probability=0.5, blur=0.5, flip=0.5, keep_foreground=0.85)
TARGETS = {"transform only": 3.0, "with decoding": 1.6, "cache warm": 4.0}


# ---------------------------------------------------------------------------------------------------------------------
# The plain chain


def plain_read(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) float32 RGB and (H, W) uint8."""
    colours = cv2.cvtColor(cv2.imread(str(image), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.float32(colours), np.array(Image.open(label))


@dataclass(frozen=True)
class PlainTransform:
    """Each step makes an image: resize, turn, blur, flip, pad, cut, tensor, normalise."""

    size: int
    augment: Augment

    def __call__(self, image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(H, W, 3) float32 and (H, W) uint8 to (3, size, size) float32, normalised, and (size, size) int64."""
        image, label = self.warped(image, label, random)
        pixels = torch.from_numpy(image.transpose(2, 0, 1)).float()
        for plane, mean, deviation in zip(pixels, IMAGENET_MEAN, IMAGENET_STD):
            plane.sub_(255 * mean).div_(255 * deviation)
        return pixels, torch.from_numpy(label).long()

    def warped(
        self, image: np.ndarray, label: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same up to the cut: (size, size, 3) float32 and (size, size) uint8."""
        augment, mean = self.augment, [255 * m for m in IMAGENET_MEAN]
        scale = random.uniform(*augment.scale)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        if random.random() < augment.rotate_probability:
            height, width = label.shape
            angle = random.uniform(-augment.rotate, augment.rotate)
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
            image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=mean)
            label = cv2.warpAffine(label, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE)
        if random.random() < augment.blur:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        if random.random() < augment.flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        down, across = (max(0, self.size - side) for side in label.shape)
        if down or across:
            border = (down // 2, down - down // 2, across // 2, across - across // 2)
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=mean)
            label = cv2.copyMakeBorder(label, *border, cv2.BORDER_CONSTANT, value=IGNORE)
        wanted = augment.keep_foreground * np.sum((label > 0) & (label < IGNORE))
        for _ in range(31):
            top, left = (random.integers(side - self.size + 1) for side in label.shape)
            cut = label[top : top + self.size, left : left + self.size]
            if np.sum((cut > 0) & (cut < IGNORE)) >= wanted:
                break
        return image[top : top + self.size, left : left + self.size], cut


# ---------------------------------------------------------------------------------------------------------------------
# Data


def photographs(folder: Path, count: int) -> tuple[Path, Path]:
    """Write `count` JPEGs of 500 x 375, about 100 kB each, and palette labels of some ellipses with ignored outlines."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    for number in range(count):
        random = np.random.default_rng(number)
        image = np.zeros((375, 500, 3), np.float32)
        for coarse, strength in ((60, 60), (12, 25), (3, 24), (1, 10)):
            small = random.standard_normal((375 // coarse + 2, 500 // coarse + 2, 3)).astype(np.float32)
            image += strength * cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + 120, 0, 255).astype(np.uint8)
        label = np.zeros((375, 500), np.uint8)
        for class_id in random.integers(1, 21, random.integers(1, 4)).tolist():
            centre = random.integers(60, 440), random.integers(60, 315)
            axes = random.integers(25, 130), random.integers(25, 110)
            for colour, thickness in ((class_id, -1), (IGNORE, 4)):
                cv2.ellipse(label, centre, axes, random.integers(180), 0, 360, colour, thickness)
        Image.fromarray(image).save(images / f"{number:04d}.jpg", quality=90)
        write_label(labels / f"{number:04d}.png", label)
    return images, labels


def open_split(images: Path, labels: Path, count: int) -> Split:
    """A split of the first `count` images that have a label with an object."""
    rows = []
    for path in sorted(images.glob("*.jpg")):
        label = labels / f"{path.stem}.png"
        if len(rows) < count and label.exists() and _classes(np.array(Image.open(label))):
            rows.append(ImageRow(path.stem, *image_size(path), {}))
    if not rows:
        sys.exit(f"bench_loader: no image of {images} (*.jpg) has a label in {labels} (*.png)")
    return Split(Index.from_rows(rows, ["object"], "benchmark"), images, ".jpg", labels)


def _classes(label: np.ndarray) -> list[int]:
    return [c for c in np.unique(label).tolist() if 0 < c < IGNORE]


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def compare(
    plain: Callable[[int, np.random.Generator], object],
    ours: Callable[[int, np.random.Generator], object],
    count: int,
    repetitions: int,
) -> tuple[float, float, float]:
    """Milliseconds of processor time an image: plain, ours, and their ratio; medians of interleaved repetitions."""
    taken: list[tuple[float, float]] = []
    for repetition in range(repetitions + 1):
        sides = []
        for make in (plain, ours):
            began = time.process_time()
            for number in range(count):
                make(number, np.random.default_rng([repetition, number]))
            sides.append((time.process_time() - began) * 1000 / count)
        if repetition:  # the first one warms up
            taken.append((sides[0], sides[1]))
    return median(p for p, _ in taken), median(o for _, o in taken), median(p / o for p, o in taken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our loader against a plain chain, one core.")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; without it photographs are made up")
    parser.add_argument("--labels", type=Path, help="folder of palette PNGs of the same names")
    parser.add_argument("--count", type=int, default=150, help="how many images; 2.5 MB of memory each")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--size", type=int, default=473, help="of the crop")
    options = parser.parse_args()
    if (options.images is None) != (options.labels is None):
        parser.error("--images and --labels belong together")
    torch.set_num_threads(1)
    tame_threads()
    with tempfile.TemporaryDirectory() as folder:
        images, labels = options.images, options.labels
        if images is None:
            images, labels = photographs(Path(folder), options.count)
        measure(open_split(images, labels, options.count), options.size, options.repetitions)


def measure(split: Split, size: int, repetitions: int) -> None:
    """Print the three comparisons, and what normalising would add to ours."""
    count = len(split.index)
    cached = CachedSplit(split, cache_gb=4e-9 * float(split.index.sizes.prod(axis=1).sum()) + 0.001)
    decoded = [cached.pair(number) for number in range(count)]
    floats = [np.float32(image) for image, _ in decoded]
    # One class an image, as an episode has it; drawn once, so that both sides show the same object.
    classes = [np.random.default_rng(n).choice(_classes(label)) for n, (_, label) in enumerate(decoded)]
    files = [(split.images / f"{name}.jpg", split.labels / f"{name}.png") for name in split.index.names]
    plain_transform, transform = PlainTransform(size, AUGMENT), TrainTransform(size, AUGMENT)

    def plain(image: np.ndarray, label: np.ndarray, n: int, random: np.random.Generator) -> object:
        mask = np.zeros_like(label)
        mask[label == classes[n]] = 1
        mask[label == IGNORE] = IGNORE
        return plain_transform(image, mask, random)

    def ours(image: np.ndarray, label: np.ndarray, n: int, random: np.random.Generator) -> object:
        image, mask = transform(image, binary_mask(label, classes[n]), random)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask)

    rows = {
        "transform only": (
            lambda n, random: plain(floats[n], decoded[n][1], n, random),
            lambda n, random: ours(*decoded[n], n, random),
        ),
        "with decoding": (
            lambda n, random: plain(*plain_read(*files[n]), n, random),
            lambda n, random: ours(*split.pair(n), n, random),
        ),
        "cache warm": (
            lambda n, random: plain(*plain_read(*files[n]), n, random),
            lambda n, random: ours(*cached.pair(n), n, random),
        ),
    }
    kilobytes = sum(path.stat().st_size for path, _ in files) / count / 1000
    print(
        f"{count} images of {kilobytes:.0f} kB, crop {size}, one core, {repetitions} times, OpenCV {cv2.__version__}, "
        f"MALLOC_TRIM_THRESHOLD_={os.environ.get('MALLOC_TRIM_THRESHOLD_', 'unset')}"
    )
    print(f"{'':16}{'plain':>12}{'ours':>12}{'plain':>14}{'ours':>14}{'ratio':>8}{'aim':>6}")
    for title, (one, other) in rows.items():
        slow, fast, ratio = compare(one, other, count, repetitions)
        print(
            f"{title:16}{slow:9.2f} ms{fast:9.2f} ms{1000 / slow:8.0f} img/s{1000 / fast:8.0f} img/s"
            f"{ratio:8.2f}{TARGETS[title]:6.1f}"
        )
    batch = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
    began = time.process_time()
    for _ in range(20):
        normalize(batch)
    print(
        f"normalising on the processor, in batches of 8, would add {(time.process_time() - began) / 160 * 1000:.2f} ms"
    )


if __name__ == "__main__":
    main()
