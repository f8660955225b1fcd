"""tuning=adapter: a small bottleneck in every block trains, the pretrained network is frozen.

In a convolutional network it stands behind the block: Houlsby et al., Parameter-Efficient Transfer Learning for NLP (arXiv
1902.00751), section 2.1, whose linear layers are 1x1 convolutions here. Beside an MLP, in a transformer, it is AdaptFormer's
(arXiv 2205.13535), section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS
from fss_svf.tuned import TunedLayer
from fss_svf.tuning.stages import StageOptions, apart, chosen

SCALE = 0.1  # of what stands beside an MLP: AdaptFormer's s


@dataclass(frozen=True)
class AdapterOptions(StageOptions):
    """width: channels of the bottleneck."""

    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "width", "a whole number >= 1", self.width)


class Adapter(TunedLayer):
    """x + up(relu(down(x))), (B, C, h, w) to the same; `up` starts at zero, so that x passes unchanged.

    Its ReLU keeps it from being folded into a convolution: it stays a layer of its own in a merged model.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x if self._disabled else x + self.up(F.relu(self.down(x)))

    def become_pretrained(self) -> None:
        del self.down, self.up
        self.__class__ = nn.Identity  # type: ignore[assignment]


class Bottleneck(nn.Module):
    """up(relu(down(x))), of the last dimension C of x, or of the channels of (B, C, h, w) where `like` is a convolution.

    `up` starts at zero.
    """

    def __init__(self, like: nn.Linear | nn.Conv2d, width: int) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(like, nn.Linear):
            self.down, self.up = nn.Linear(like.in_features, width), nn.Linear(width, like.in_features)
        else:
            self.down, self.up = nn.Conv2d(like.in_channels, width, 1), nn.Conv2d(width, like.in_channels, 1)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for value in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(value)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(F.relu(self.down(x)))
        return out


class AdaptedMLP(TunedLayer):
    """mlp(x) + 0.1 adapter(x): an MLP of any kind, converted in place by become_adapted, with a Bottleneck `adapter`.

    Its parameters keep their names. Where the block scales what the MLP gives (LayerScale), it scales both.
    """

    adapter: Bottleneck
    _plain: type[nn.Module]  # the MLP's own class

    @property
    def own(self) -> tuple[str, ...]:
        return tuple(f"adapter.{name}" for name in self.adapter.state_dict())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self._plain.forward(self, x, *args, **kwargs)
        return y if self._disabled else y + SCALE * self.adapter(x)

    def become_pretrained(self) -> None:
        plain = self._plain
        del self.adapter, self._plain
        self.__class__ = plain  # type: ignore[assignment]


def become_adapted(mlp: nn.Module, width: int) -> None:
    """Give an MLP an adapter beside it."""
    first = next(m for m in mlp.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    with apart():
        new = Bottleneck(first, width).to(first.weight.device, first.weight.dtype)
    plain = type(mlp)
    mlp.__class__ = AdaptedMLP
    assert isinstance(mlp, AdaptedMLP)
    mlp._plain, mlp.adapter = plain, new


@TUNINGS.register("adapter", AdapterOptions)
def adapter(backbone: Backbone, options: AdapterOptions) -> None:
    """Put an adapter beside every MLP of the chosen stages; in a stage without, behind every block, or at its end (VGG).

    An MLP is a submodule `mlp` with a linear layer or a convolution, as timm's networks have. Raises ConfigError for a stage
    that has none and is no nn.Sequential.
    """
    for name, stage in chosen(backbone, options).items():
        mlps = [child for module in stage.modules() for own, child in module.named_children() if own == "mlp"]
        mlps = [mlp for mlp in mlps if any(isinstance(m, nn.Linear | nn.Conv2d) for m in mlp.modules())]
        if mlps:
            for mlp in mlps:
                become_adapted(mlp, options.width)
        elif isinstance(stage, nn.Sequential):
            _behind_blocks(stage, options.width)
        else:
            raise ConfigError(
                f"tuning=adapter: {name} of this backbone, a {type(stage).__name__}, has no MLP and is no sequence of "
                "layers, so there is no place for an adapter; choose other stages or another tuning"
            )


def _behind_blocks(stage: nn.Sequential, width: int) -> None:
    like = next(stage.parameters())
    channels = [m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)][-1]
    layers = list(stage.named_children())
    # A block is a layer with layers of its own.
    blocks = [name for name, layer in layers if any(layer.children())] or [layers[-1][0]]
    for name, _ in layers:
        delattr(stage, name)
    for name, layer in layers:
        stage.add_module(name, layer)
        if name in blocks:
            convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
            with apart():
                new = Adapter(convolutions[-1].out_channels if convolutions else channels, width)
            stage.add_module(f"adapter{name}", new.to(like.device, like.dtype))
