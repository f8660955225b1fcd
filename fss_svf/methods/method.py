"""The seam between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import IGNORE, Code, Episode, MeanOver, Prediction
from fss_svf.errors import ConfigError
from fss_svf.methods.blocks import at_least_float32
from fss_svf.registry import Choice

# Which images of a batch.
Rows = Tensor | slice


class FewShotMethod(nn.Module, ABC):
    """A method encodes queries and supports apart, then segments. All images are normalised floats.

    BatchNorm stays in eval mode also while training (fix_bn of the official recipes).
    """

    # Whether the method has anything to train beside the backbone; the controls have not.
    trainable = True
    # Whether it segments several classes at once.
    many_ways = False
    # Whether it segments base classes too: its training reads Episode.base_mask and base_class, and segment_base says the
    # logits of background and the n base classes.
    segments_base = False
    # Names of Prediction.aux whose (B, 2, H, W) logits are predictions too, measured beside the method's own.
    also_evaluated: tuple[str, ...] = ()
    # What the terms of its losses are means over, by name, where it is not the query mask's pixels: a batch that processes
    # share, or that is done in parts, gives the loss of the whole.
    means_over: Mapping[str, MeanOver] = MappingProxyType({})
    # The options that may be other ones in an evaluation than in the training.
    evaluation_options: tuple[str, ...] = ()
    # What `compare` reads of a support's code and `segment` does not: an evaluation does not hand it on.
    compared: tuple[str, ...] = ()
    # How the supports of a class come together: as the method does it, or all as one mean (protocol.shots=mean).
    shots: Literal["own", "mean"] = "own"
    # What weights of its own beside the backbone's were trained on: dataset, fold, classes.
    trained_on: Mapping[str, Any] | None = None

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_forward_pre_hook(_check_ways, with_kwargs=True)

    @abstractmethod
    def encode_query(self, images: Tensor) -> Code:
        """(B, 3, H, W) to a code with B rows."""

    @abstractmethod
    def encode_support(self, images: Tensor, masks: Tensor) -> Code:
        """(M, 3, H, W) and (M, H, W) in {0, 1, 255} to a code with M rows, one a support image."""

    @abstractmethod
    def segment(self, query: Code, support: Code, size: tuple[int, int]) -> Prediction:
        """Segment B queries; support rows are regrouped to (B, K, ...), of N ways (B, N, K, ...). Logits come at `size`.

        Where `support` has what `compare` says already, that is taken.
        """

    # What follows makes an evaluation faster, which shows every image to the backbone once and every pair once. Each has a
    # default, and changes no result.

    def encode_both(self, images: Tensor, queries: Rows, owners: Rows, masks: Tensor) -> tuple[Code, Code]:
        """Codes of images[queries] as queries, and of images[owners] with `masks` (M, H, W) as supports.

        queries (Q,) and owners (M,) int64, or slices, neither empty. For a method whose two codes begin with the same
        features.
        """
        return self.encode_query(images[queries]), self.encode_support(images[owners], masks)

    def kept(self, support: Code) -> Code:
        """The code of one support, a single row, as it is to be kept: smaller, for `compare` and `segment` the same."""
        return support

    def compare(self, query: Code, support: Code) -> Code:
        """What B queries and each of their supports (B, K, ...) have to say together, (B, K, ...): no other support's."""
        return {}

    def segment_base(self, query: Code, size: tuple[int, int]) -> Tensor:
        """With segments_base: logits (B, n + 1, H, W) of the base classes at `size`, which no support changes."""
        raise NotImplementedError(f"{type(self).__name__} segments no base classes")

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Loss terms by name; their plain sum is minimised. Default: cross-entropy of the logits, 255 ignored."""
        return {"main": cross_entropy(prediction.logits, episode.query_mask)}

    def forward(self, episode: Episode) -> Prediction:
        """Encode and segment a batch of episodes. Methods override this to share one backbone pass."""
        support = self.encode_support(*flat_supports(episode))
        query = self.encode_query(episode.query_image)
        return self.segment(query, regroup(support, episode.shot, episode.way), episode.size)

    def check_run(self, dataset: str, fold: int, classes: Sequence[str], backbone: Choice) -> None:
        """Raise ConfigError or WeightsError where the method cannot train on these base classes and this backbone."""

    def check_shot(self, shot: int) -> None:
        """Raise ConfigError where the method cannot segment with so many supports."""

    def hold_out(self, base_classes: Sequence[int]) -> None:
        """From now on evaluate as if these base classes, numbered like Episode.base_mask, were unknown to the method."""

    def fit_state(self, state: Mapping[str, Any]) -> None:
        """Make the parts whose number or shape weights decide those of a state dict, before it is loaded."""

    def train(self, mode: bool = True) -> FewShotMethod:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _check_ways(method: nn.Module, args: tuple[Episode, ...], kwargs: Mapping[str, Episode]) -> None:
    """Before every forward. Raises ConfigError for an episode of several classes that the method would confuse."""
    assert isinstance(method, FewShotMethod)
    check_way(type(method), (*args, *kwargs.values())[0].way)


def check_way(method: type[FewShotMethod], way: int) -> None:
    """Raise ConfigError where the method cannot segment so many classes at once."""
    if way > 1 and not method.many_ways:
        raise ConfigError(f"way={way}: {method.__name__} segments one class an episode; use method=panet, or way=1")


def flat_supports(episode: Episode) -> tuple[Tensor, Tensor]:
    """Support images (B * K, 3, H, W) and masks (B * K, H, W), episode by episode, in each way by way."""
    return episode.support_images.flatten(0, -4), episode.support_masks.flatten(0, -3)


def regroup(code: Code, shot: int, way: int = 1) -> Code:
    """(B * K, ...) rows to (B, K, ...); of several ways (B * N * K, ...) to (B, N, K, ...)."""
    shape = (-1, shot) if way == 1 else (-1, way, shot)
    return {name: value.unflatten(0, shape) for name, value in code.items()}


def cross_entropy(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Mean cross-entropy over the pixels of (B, H, W) `mask` that are not 255, in float32; 0 where there is none."""
    assert mask is not None, "an episode without query_mask has no loss"
    logits = at_least_float32(logits)
    if not (mask != IGNORE).any():
        return logits.sum() * 0  # the mean over no pixel would be NaN
    return torch.nn.functional.cross_entropy(logits, mask.long(), ignore_index=IGNORE)
