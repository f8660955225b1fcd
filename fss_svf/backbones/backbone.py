"""What every backbone is: a network with named places (taps) to read features at."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from fss_svf.config.checks import LEAST_SIZE
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from fss_svf.errors import ConfigError, did_you_mean, listing

# What methods read, from early to late: each names a tap of the backbone.
ROLES = ("low", "mid", "deep")


class Tap(NamedTuple):
    """channels of the map there; stride: pixels of the image for one position of the map."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Sizes:
    """The sides n of an image that a network takes: step * k + rest, at least 33 and at most `most`."""

    step: int = 1
    rest: int = 0
    most: int | None = None

    def fits(self, n: int) -> bool:
        return self._least <= n <= (self.most or n) and n % self.step == self.rest

    def nearest(self, n: int) -> list[int]:
        """The two sizes around n; one where there is no other."""
        below = max(n - (n - self.rest) % self.step, self._least)
        near = [size for size in (below, below + self.step) if self.fits(size)]
        return near or [self.most or self._least]

    def __str__(self) -> str:
        if self.most is not None:
            return f"{self.most}, the network's own"
        if self.step == 1:
            return f"n >= {self._least}"
        return f"n with {f'(n - {self.rest})' if self.rest else 'n'} % {self.step} == 0"

    @property
    def _least(self) -> int:
        return LEAST_SIZE + (self.rest - LEAST_SIZE) % self.step


class Backbone(nn.Module, ABC):
    """A network that gives feature maps at named places.

    taps          name -> channels and stride of the map there; in the order in which they are computed
    roles         low, mid and deep -> a tap: what methods read
    tuned_stages  those of `stages` that a tuning trains where nothing else is chosen
    parts         names of the children that hold the weights, in the order in which they run
    continues     whether the network goes on from a map, such as a masked one (continue_from)
    compiled_dynamic  torch.compile's `dynamic` for its stages: None, PyTorch decides; False, a graph for each shape
    sizes         the image sizes it takes
    mean, std     the normalisation that its weights were trained with. Images are normalised by ImageNet's all the same:
                  a network with others converts them at its entrance
    """

    taps: Mapping[str, Tap]
    roles: Mapping[str, str]
    tuned_stages: tuple[str, ...]
    parts: tuple[str, ...]
    sizes: Sizes
    continues: ClassVar[bool] = False
    compiled_dynamic: ClassVar[bool | None] = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The modules that tunings choose from, by name, in the order in which they run."""

    @property
    def body(self) -> nn.Module:
        """The module in which `stages` have their names, and which patterns of layer names are about."""
        return self

    @abstractmethod
    def run(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """The maps (B, C, h, w) at these taps, by name, of (B, 3, H, W); no further than the last of them."""

    def forward(self, images: Tensor, taps: Sequence[str] = ROLES) -> dict[str, Tensor]:
        """Feature maps of normalised images.

        images   (B, 3, H, W) float, normalised by ImageNet's mean and deviation, of sizes that check_size accepts
        taps     names of taps, or roles

        Returns the maps (B, C, h, w) by the names in `taps`. Raises ConfigError for an unknown name.
        """
        names = {name: self.tap_name(name) for name in taps}
        found = self.run(images, list(dict.fromkeys(names.values())))
        return {asked: found[name] for asked, name in names.items()}

    def continue_from(self, tap: str, features: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """The maps at `taps` where the map at `tap` is `features`, such as a masked one; only where `continues`."""
        raise NotImplementedError(f"{type(self).__name__} does not go on from a map")

    def tap_name(self, name: str) -> str:
        """The tap of a role, or the name of a tap itself. Raises ConfigError for an unknown name."""
        name = self.roles.get(name, name)
        if name not in self.taps:
            known = [*ROLES, *self.taps]
            raise ConfigError(
                f"{name}: no tap of this backbone{did_you_mean(name, known)}; it has {listing(known, 30)}"
            )
        return name

    def tap(self, name: str) -> Tap:
        """Channels and stride at a role or tap. Raises ConfigError for an unknown name."""
        return self.taps[self.tap_name(name)]

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        """Raise ConfigError, with the nearest possible sizes, unless images of size x size can be read.

        key     the name of the size in the message
        squash  whether images are stretched to the size, as an evaluation with protocol.resize=squash does
        """
        if not self.sizes.fits(size):
            near = " or ".join(map(str, self.sizes.nearest(size)))
            raise ConfigError(
                f"{key}: expected {self.sizes} for this backbone, got {size}; the nearest possible: {near}"
            )

    def with_parts(self, parts: Mapping[str, nn.Module]) -> Backbone:
        """The same backbone with other modules in place of some of its `parts`; the others are shared."""
        other = copy.copy(self)
        other.__dict__["_modules"] = {**self._modules, **parts}
        return other

    @property
    def recompute_counts_twice(self) -> bool:
        """Whether a BatchNorm that trains (in pretrain) counts every batch twice where activations are recomputed."""
        return False

    def recompute(self) -> None:
        """Recompute activations in the backward from now on, where the network can: less memory, more time."""
