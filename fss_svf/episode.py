"""What passes between data, methods, training and evaluation: an episode of tensors, and a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, TypeVar

import torch
from torch import Tensor

# A method's features of images: a plain dict of tensors, first dimension = the image.
Features = dict[str, Tensor]

# What a term of a loss may be a mean over: the pixels of a mask that are not ignored, or the episodes of the batch.
MeanOver = Literal["query_mask", "support_masks", "base_mask", "episodes"]

IGNORE = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


_B = TypeVar("_B", bound="Batch")


class Batch:
    """What a loader yields: a dataclass of tensors, and how it travels to a device."""

    def to(self: _B, device: torch.device | str) -> _B:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: _B) -> _B:
        """Called by DataLoader(pin_memory=True)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self: _B, change: Callable[[Tensor], Tensor]) -> _B:
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[type-var]


@dataclass(frozen=True)
class Episode(Batch):
    """A batch of B episodes with K supports each.

    Loaders yield images as uint8 RGB, which is a quarter of the bytes on the way to the device;
    `normalized()` makes the float images that methods read.

    query_image     (B, 3, H, W)     uint8 RGB, or float normalised with ImageNet's mean and deviation
    support_images  (B, K, 3, H, W)  same
    support_masks   (B, K, H, W)     uint8 in {0, 1, 255}: background, the episode's class, ignored
    query_mask      (B, H, W)        uint8 in {0, 1, 255}; None where it is not known (prediction)
    class_id        (B,)             int64, the class of each episode, 1..C
    number          (B,)             int64, the episode's number, from which it was drawn
    base_mask       (B, H, W)        uint8 in {0..n, 255}: the query's base classes, renumbered 1..n in ascending order;
                                     only for methods that segment them (BaseClassMethod)
    base_class      (B,)             int64, the episode's class in base_mask's numbers; 0 where it is not a base class

    An episode of N classes at once (methods with many_ways) has a dimension of ways behind the batch: support_images
    (B, N, K, 3, H, W) and support_masks (B, N, K, H, W), 1 on the class of the support's own way and 255 on the classes
    of the other ways; query_mask is in {0..N, 255} and class_id (B, N).
    """

    query_image: Tensor
    support_images: Tensor
    support_masks: Tensor
    query_mask: Tensor | None = None
    class_id: Tensor | None = None
    number: Tensor | None = None
    base_mask: Tensor | None = None
    base_class: Tensor | None = None

    def __post_init__(self) -> None:
        q, s, m = self.query_image.shape, self.support_images.shape, self.support_masks.shape
        ranks = (len(q), len(s)) in ((4, 5), (4, 6))
        if not ranks or q[1] != 3 or s[-3] != 3 or q[0] != s[0] or m != (*s[:-3], *s[-2:]):
            raise ValueError(
                "Episode: expected query_image (B,3,H,W), support_images (B,K,3,H,W), support_masks (B,K,H,W), or with "
                f"N ways supports of (B,N,K,...), got {tuple(q)}, {tuple(s)}, {tuple(m)}"
            )

    @property
    def shot(self) -> int:
        """K, supports a class."""
        return self.support_images.shape[-4]

    @property
    def way(self) -> int:
        """N, classes at once."""
        return self.support_images.shape[1] if self.support_images.dim() == 6 else 1

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the query."""
        return self.query_image.shape[-2], self.query_image.shape[-1]

    def count(self, over: MeanOver) -> int:
        """How many things a mean over this batch is over: pixels of a mask that are not 255, or episodes."""
        if over == "episodes":
            return len(self.query_image)
        mask = getattr(self, over)
        return 0 if mask is None else int((mask != IGNORE).sum())

    def normalized(self) -> Episode:
        """Images as float32, (value / 255 - mean) / deviation of ImageNet. Float images are left as they are."""
        return replace(self, query_image=normalize(self.query_image), support_images=normalize(self.support_images))


def normalize(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 RGB to float32 in ImageNet's normalisation; float input is returned as it is."""
    if images.dtype != torch.uint8:
        return images
    mean, deviation = imagenet_statistics(images.device)
    return (images.float() - mean) / deviation


@cache
def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation of pixels in 0..255, (3, 1, 1) float32 each; made once a device, and nothing is sent."""
    mean, deviation = (
        torch.stack([torch.full((1, 1), value, device=device) for value in values]) * 255
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, deviation


class Outputs(Mapping[str, Tensor]):
    """Tensors by name, each made when it is first read: what an evaluation does not look at costs nothing."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch of queries.

    logits  (B, 2, H, W) float: background and foreground, at the query's size; (B, 1 + N, H, W) of N ways
    aux     further outputs by name, for losses or for looking at
    """

    logits: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)
