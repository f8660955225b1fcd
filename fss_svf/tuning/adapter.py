"""tuning=adapter: a small residual bottleneck behind every block trains, the pretrained network is frozen.

Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP (arXiv 1902.00751), section 2.1, whose linear layers
are 1x1 convolutions here; one of the tunings that Singular Value Fine-tuning (arXiv 2206.06122) is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, apart, chosen


@dataclass(frozen=True)
class AdapterOptions(StageOptions):
    """width: channels of the bottleneck."""

    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "width", "a whole number >= 1", self.width)


class Adapter(nn.Module):
    """x + up(relu(down(x))), (B, C, h, w) to the same; `up` starts at zero, so that x passes unchanged."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))


@TUNINGS.register("adapter", AdapterOptions)
def adapter(backbone: Backbone, options: AdapterOptions) -> None:
    """Put an Adapter behind every residual block of the chosen stages, or at the end of a stage without blocks (VGG)."""
    for stage, its_name in zip(chosen(backbone, options), options.stages):
        channels = backbone.channels[its_name]
        like = next(stage.parameters())
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
                    new = Adapter(convolutions[-1].out_channels if convolutions else channels, options.width)
                stage.add_module(f"adapter{name}", new.to(like.device, like.dtype))
