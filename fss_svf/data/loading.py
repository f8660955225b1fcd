"""Makes tensors from episode numbers, item by item; data/loader.py makes batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fss_svf.config import Augment
from fss_svf.data.annotation import SupportAnnotation, annotate
from fss_svf.data.augment import EvalTransform, binary_mask, query_mask, support_mask, training_transform
from fss_svf.data.dataset import Split
from fss_svf.data.episodes import AUGMENTATION, EpisodeSampler, EpisodeSpec
from fss_svf.data.index import Index
from fss_svf.data.label_values import require_8_bits
from fss_svf.episode import IGNORE, Batch, Episode


@dataclass(frozen=True)
class EvalImage:
    """An image of an evaluation, as a query and as a support of M classes.

    image    (3, H, W) uint8, or normalised float32
    masks    (M, H, W) uint8 in {0, 1, 255}, its masks as a support
    label    (h, w) uint8, as Split.label
    resized  (H, W) uint8, the label resized and padded like the image
    """

    image: Tensor
    masks: Tensor
    label: Tensor
    resized: Tensor


@dataclass(frozen=True)
class EvalImageBatch(Batch):
    """B images of an evaluation in few tensors, since each tensor from a loader process needs a file descriptor.

    images (B, 3, H, W), masks (M, H, W) image by image, resized (B, H, W), labels at their original sizes in `flat`
    """

    images: Tensor
    masks: Tensor
    resized: Tensor
    flat: Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def collate(cls, items: list[EvalImage]) -> EvalImageBatch:
        return cls(
            images=torch.stack([item.image for item in items]),
            masks=torch.cat([item.masks for item in items]),
            resized=torch.stack([item.resized for item in items]),
            flat=torch.cat([item.label.flatten() for item in items]),
            shapes=tuple((item.label.shape[0], item.label.shape[1]) for item in items),
        )

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> EvalImageBatch:
        """Called by DataLoader(pin_memory=True)."""
        tensors = ("images", "masks", "resized", "flat")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in tensors})

    def labels(self) -> list[Tensor]:
        """The (h, w) label of each image."""
        parts = self.flat.split([height * width for height, width in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes)]


@dataclass(frozen=True)
class LabelBatch(Batch):
    """Images (B, 3, H, W) uint8 and labels (B, H, W) uint8, base classes renumbered 1..n, 255 ignored."""

    images: Tensor
    labels: Tensor


class Repeated:
    """Repeats the first `count` items."""

    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self.make, self.count = make, count

    def __call__(self, number: int) -> Any:
        return self.make(number % self.count)


class Episodes:
    """Reads the images and masks of an episode."""

    def __init__(self, split: Split, annotation: SupportAnnotation) -> None:
        self.split, self.annotation = split, annotation

    def query(self, spec: EpisodeSpec) -> tuple[np.ndarray, np.ndarray]:
        """The query (H, W, 3) uint8 and its mask (H, W) uint8 in {0..N, 255}, at the original size."""
        image, label = self.split.pair(spec.query)
        return image, query_mask(label, self._values(spec.query, spec.class_ids))

    def support(self, spec: EpisodeSpec, k: int, way: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Support `k` (from 0) of `way` (from 1), and its mask in {0, 1, 255} in the kind of annotation."""
        class_id, number = spec.class_ids[way - 1], spec.supports[(way - 1) * spec.shot + k]
        image, label = self.split.pair(number)
        boxes = self.split.index.boxes_of(number, class_id)
        (value,) = self._values(number, [class_id])
        mask = support_mask(label, value, self._values(number, spec.masked_classes))
        return image, annotate(mask, self.annotation, boxes)

    def _values(self, number: int, class_ids: Sequence[int]) -> list[int]:
        return [self.split.index.value(number, class_id) for class_id in class_ids]

    def supports(self, spec: EpisodeSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All supports, way by way."""
        return (self.support(spec, k, way) for way in range(1, spec.way + 1) for k in range(spec.shot))


class TrainEpisodes(Episodes):
    """Makes training episodes by number.

    augment: None for no augmentation. base: these base classes in base_mask and base_class, for BAM.
    """

    def __init__(
        self,
        split: Split,
        sampler: EpisodeSampler,
        size: int,
        augment: Augment | None,
        annotation: SupportAnnotation = "mask",
        base: Sequence[int] | None = None,
    ) -> None:
        super().__init__(split, annotation)
        self.sampler = sampler
        self.transform = training_transform(size, augment)
        self.lookup = None if base is None else base_label_lookup(split.index, base)

    def __call__(self, number: int) -> Episode:
        spec = self.sampler[number]
        random = np.random.default_rng([self.sampler.seed, number, AUGMENTATION])
        if self.lookup is None:
            query, base = self.transform(*self.query(spec), random), {}
        else:
            # The class of a training episode is a base class, so the transformed base label contains its mask too.
            image, label = self.split.pair(spec.query)
            base_class = int(self.lookup[spec.class_id])
            image, base_mask = self.transform(image, self.lookup[label], random, foreground=base_class)
            query = image, binary_mask(base_mask, base_class)
            base = {"base_mask": torch.from_numpy(base_mask)[None], "base_class": torch.tensor([base_class])}
        supports = [self.transform(*pair, random) for pair in self.supports(spec)]
        return replace(episode_of([query, *supports], spec, number), **base)


class EvalImages:
    """Makes the images of an evaluation by their position in `wanted`.

    wanted: (image number, supports); a support is (its class, the classes that are ignored in its mask)
    """

    def __init__(
        self,
        split: Split,
        wanted: Sequence[tuple[int, Sequence[tuple[int, Sequence[int]]]]],
        transform: EvalTransform,
        annotation: SupportAnnotation = "mask",
    ) -> None:
        self.split, self.wanted, self.transform, self.annotation = split, wanted, transform, annotation

    def __call__(self, position: int) -> EvalImage:
        number, supports = self.wanted[position]
        image, label = self.split.pair(number)
        masks = [np.zeros((0, self.transform.size, self.transform.size), np.uint8)]
        for class_id, class_ids in supports:
            boxes = self.split.index.boxes_of(number, class_id)
            value, *values = (self.split.index.value(number, c) for c in (class_id, *class_ids))
            mask = annotate(support_mask(label, value, values), self.annotation, boxes)
            masks.append(self.transform.label(mask)[None])
        return EvalImage(
            image=_image_tensor(self.transform.image(image)),
            masks=torch.from_numpy(np.concatenate(masks)),
            label=torch.tensor(label),
            resized=torch.from_numpy(self.transform.label(label)),
        )


class BaseLabels:
    """Makes augmented images with base labels by number, every image once in each epoch (BAM's stage 1)."""

    def __init__(self, split: Split, sampler: EpisodeSampler, size: int, augment: Augment | None) -> None:
        self.split, self.sampler = split, sampler
        self.transform = training_transform(size, augment)
        self.lookup = base_label_lookup(split.index, sampler.classes)

    def __call__(self, number: int) -> LabelBatch:
        random = np.random.default_rng([self.sampler.seed, number, AUGMENTATION])
        image, label = self.split.pair(self.sampler[number].query)
        image, label = self.transform(image, self.lookup[label], random)
        return LabelBatch(_image_tensor(image)[None], torch.from_numpy(label)[None])


class LabelledImages:
    """Makes the images of `numbers` with base labels by position, resized for evaluation."""

    def __init__(self, split: Split, numbers: np.ndarray, base: Sequence[int], transform: EvalTransform) -> None:
        self.split, self.numbers, self.transform = split, numbers, transform
        self.lookup = base_label_lookup(split.index, base)

    def __call__(self, position: int) -> LabelBatch:
        image, label = self.split.pair(int(self.numbers[position]))
        image, label = self.transform(image, self.lookup[label])
        return LabelBatch(_image_tensor(image)[None], torch.from_numpy(label)[None])


def base_label_lookup(index: Index, base: Sequence[int]) -> np.ndarray:
    """(256,) uint8 that maps base classes to 1..n in ascending order, 255 to itself, all others to background.

    Raises DataError for an index of more than 254 classes.
    """
    require_8_bits(index.class_names, "base labels (method=bam, pretrain)")
    lookup = np.zeros(256, np.uint8)
    lookup[sorted(base)] = np.arange(1, len(base) + 1)
    lookup[IGNORE] = IGNORE
    return lookup


def collate_episodes(items: list[Episode]) -> Episode:
    """Join episodes along the batch dimension."""
    present = [f.name for f in fields(Episode) if getattr(items[0], f.name) is not None]
    return Episode(**{name: torch.cat([getattr(item, name) for item in items]) for name in present})


def collate_labels(items: list[LabelBatch]) -> LabelBatch:
    """Join labelled images along the batch dimension."""
    return LabelBatch(torch.cat([item.images for item in items]), torch.cat([item.labels for item in items]))


def _image_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def episode_of(pairs: list[tuple[np.ndarray, np.ndarray]], spec: EpisodeSpec, number: int) -> Episode:
    """One episode (B = 1). pairs: the query, then the supports way by way. One way has no dimension of ways."""
    images = torch.stack([_image_tensor(image) for image, _ in pairs])
    masks = torch.stack([torch.from_numpy(mask) for _, mask in pairs])
    rows = (1, spec.shot) if spec.way == 1 else (1, spec.way, spec.shot)
    return Episode(
        query_image=images[:1],
        support_images=images[1:].reshape(*rows, *images.shape[1:]),
        support_masks=masks[1:].reshape(*rows, *masks.shape[1:]),
        query_mask=masks[:1],
        class_id=torch.tensor(spec.class_ids if spec.way == 1 else [spec.class_ids]),
        number=torch.tensor([number]),
    )
