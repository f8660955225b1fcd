"""The seam between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import IGNORE, Episode, Features, MeanOver, Prediction
from fss_svf.errors import ConfigError, PluginError
from fss_svf.methods.blocks import at_least_float32
from fss_svf.registry import METHODS

# Which images of a batch.
Rows = Tensor | slice


class FewShotMethod(nn.Module, ABC):
    """A method encodes queries and supports apart, then segments. All images are normalised floats.

    Its members are of three kinds, in this order: those that a method must have, those that change its behaviour, and
    those that change its speed alone.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_forward_pre_hook(_check_ways, with_kwargs=True)

    # 1. Required.

    @abstractmethod
    def encode_query(self, images: Tensor) -> Features:
        """(B, 3, H, W) to features with B rows."""

    @abstractmethod
    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        """(M, 3, H, W) and (M, H, W) in {0, 1, 255} to features with M rows, one a support image."""

    @abstractmethod
    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        """Segment B queries; support rows are regrouped to (B, K, ...), of N ways (B, N, K, ...). Logits come at `size`.

        What `compare` gives may stand in `support` already.
        """

    # 2. Behaviour: what trains, on which episodes, with which loss. Each has a default.

    # Whether the method has anything to train beside the backbone; the controls have not.
    trainable = True
    # Whether a gradient reaches the backbone through its logits. If not, no training takes it.
    differentiable = True
    # Whether it segments several classes at once. An evaluation joins the classes of one that does not (evaluation/ways.py).
    many_ways = False
    # How the supports of a class are combined: as the method does it, or as their plain mean (protocol.shots=mean).
    shots: Literal["method", "mean"] = "method"
    # What a term of the losses is a mean over, by its name, where it is not the query mask's pixels. A batch that processes
    # share, or that is done in parts, then gives the loss of the whole.
    means_over: Mapping[str, MeanOver] = MappingProxyType({})

    def check_shot(self, shot: int) -> None:
        """Raise ConfigError where the method cannot segment with so many supports."""

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        """Raise ConfigError where it cannot read images of size x size: by default those of the backbone's check_size."""
        self.backbone.check_size(size, key, squash)

    def forward(self, episode: Episode) -> Prediction:
        """Encode and segment a batch of episodes. It gives what `segment` gives of features that were encoded apart."""
        return self.segment(*self.encode(episode), episode.size)

    def encode(self, episode: Episode) -> tuple[Features, Features]:
        """Features of the queries, and of the supports regrouped to (B, K, ...), by `encode_both`."""
        images, masks = flat_supports(episode)
        queries = len(episode.query_image)
        together = torch.cat([episode.query_image, images])
        query, support = self.encode_both(together, slice(queries), slice(queries, None), masks)
        return query, regroup(support, episode.shot, episode.way)

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Loss terms by name; their plain sum is minimised. Default: cross-entropy of the logits, 255 ignored."""
        return {"main": cross_entropy(prediction.logits, episode.query_mask)}

    def train(self, mode: bool = True) -> FewShotMethod:
        """As nn.Module.train, but BatchNorm stays in eval mode (fix_bn of the official recipes)."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    # 3. Speed alone: a method gives the same predictions with the defaults. An evaluation encodes every image once and
    # compares every pair of a query and a support once.

    # Names of a support's features that `compare` reads and `segment` does not.
    compared: tuple[str, ...] = ()

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        """Features of images[query_rows] as queries, and of images[support_rows] with `masks` (M, H, W) as supports.

        query_rows (Q,) and support_rows (M,) int64, or slices, neither empty. A method overrides it whose two encodings
        begin alike, to compute that part once.
        """
        return self.encode_query(images[query_rows]), self.encode_support(images[support_rows], masks)

    def kept(self, support: Features) -> list[Features]:
        """Features of M supports as an evaluation keeps them: one row each, of any size. `compare` and `segment` must give
        the same of them. Rows that are compared together are filled up with zeros to one size.
        """
        return rows_of(support)

    def compare(self, query: Features, support: Features) -> Features:
        """Features (B, K, ...) of each pair of a query and one of its supports (B, K, ...): no other support's."""
        return {}


def _check_ways(method: nn.Module, args: tuple[Episode, ...], kwargs: Mapping[str, Episode]) -> None:
    """Before every forward. Raises ConfigError for an episode of several classes that the method would confuse."""
    assert isinstance(method, FewShotMethod)
    check_way(type(method), (*args, *kwargs.values())[0].way)


def check_way(method: type[FewShotMethod], way: int) -> None:
    """Raise ConfigError where the method cannot segment so many classes at once."""
    if way > 1 and not method.many_ways:
        raise ConfigError(
            f"way={way}: {method.__name__} segments one class an episode; use method=panet or ssp, or way=1; "
            f"`fss-svf evaluate way={way}` takes any method"
        )


def require_differentiable(name: str) -> None:
    """Raise ConfigError where no loss of method=NAME has a gradient."""
    if not method_class(name).differentiable:
        raise ConfigError(f"method={name}: nothing in it can train; measure it with fss-svf evaluate method={name}")


def method_class(name: str) -> type[FewShotMethod]:
    """The class of method=NAME. Raises ConfigError for an unknown one, PluginError for a class that is no method."""
    found = METHODS.entry(name).build
    if not (isinstance(found, type) and issubclass(found, FewShotMethod)):
        raise PluginError(f"method={name}: {found.__module__}.{found.__qualname__} is no subclass of FewShotMethod")
    return found


def rows_of(features: Features) -> list[Features]:
    """Features of B images as B of one row each."""
    count = len(next(iter(features.values())))
    return [{name: value[row : row + 1] for name, value in features.items()} for row in range(count)]


def flat_supports(episode: Episode) -> tuple[Tensor, Tensor]:
    """Support images (B * K, 3, H, W) and masks (B * K, H, W), episode by episode, in each way by way."""
    return episode.support_images.flatten(0, -4), episode.support_masks.flatten(0, -3)


def regroup(features: Features, shot: int, way: int = 1) -> Features:
    """(B * K, ...) rows to (B, K, ...); of several ways (B * N * K, ...) to (B, N, K, ...)."""
    shape = (-1, shot) if way == 1 else (-1, way, shot)
    return {name: value.unflatten(0, shape) for name, value in features.items()}


def cross_entropy(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Mean cross-entropy over the pixels of (B, H, W) `mask` that are not 255, in float32; 0 where there is none."""
    assert mask is not None, "an episode without query_mask has no loss"
    # A sum over a count, which may be 0: PyTorch's own mean over no pixel is NaN.
    total = torch.nn.functional.cross_entropy(
        at_least_float32(logits), mask.long(), ignore_index=IGNORE, reduction="sum"
    )
    return total / (mask != IGNORE).sum().clamp(min=1)


def cross_entropy_of_each(logits: Tensor, mask: Tensor) -> Tensor:
    """(B,): that of each row alone."""
    pixels = torch.nn.functional.cross_entropy(
        at_least_float32(logits), mask.long(), ignore_index=IGNORE, reduction="none"
    )
    return pixels.sum((1, 2)) / (mask != IGNORE).sum((1, 2)).clamp(min=1)
