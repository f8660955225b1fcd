"""The base learner: a PSPNet that segments the base classes of a fold (BAM's stage 1), and how BAM holds a trained one.

Source: BAM (CVPR 2022), section 4.2; layer shapes as in methods of its official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.errors import WeightsError, listing
from fss_svf.methods.blocks import logits_at, resize
from fss_svf.tuned import disabled, plain_copy, tuned_layers, tuned_parameters

BINS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """PSPNet's pyramid: (B, C, h, w) to (B, 2C, h, w), the input beside its averages over 1, 2, 3 and 6 cells a side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for _ in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = (branch(F.adaptive_avg_pool2d(x, size)) for size, branch in zip(BINS, self.branches))
        return torch.cat([x, *(resize(p, x.shape[-2:]) for p in pooled)], dim=1)


def base_classifier(channels: int, classes: int) -> nn.Sequential:
    """The pyramid's output (B, 2 * channels, h, w) to logits of background and `classes` base classes."""
    width = min(512, channels)  # 512 in BAM, for ResNet and VGG alike
    return nn.Sequential(
        nn.Conv2d(2 * channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes + 1, 1),
    )


class BaseLearner(nn.Module):
    """Backbone, pyramid pooling and a classifier over background and `classes` base classes."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        channels = backbone.tap("deep").channels
        self.backbone = backbone
        self.ppm = PyramidPooling(channels)
        self.cls = base_classifier(channels, classes)
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to logits (B, classes + 1, H, W)."""
        x = self.cls(self.ppm(self.backbone(images, ("deep",))["deep"]))
        return logits_at(x, images.shape[-2:])


class BaseBranch(nn.Module):
    """A trained base learner, frozen, on another method's backbone.

    It sees the weights the base learner was trained with: those of the backbone where they are the same, of tuned layers
    the pretrained ones; `stages` holds a copy of every part of the backbone where that is not so (other weights, or weights
    that the tuning trains in place). Dropout follows the method's mode, as in the official code.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        channels = backbone.tap("deep").channels
        self.ppm = PyramidPooling(channels)
        self.cls = base_classifier(channels, classes)
        self.stages = nn.ModuleDict()
        self.hold(backbone, [name for name in backbone.parts if _changes(getattr(backbone, name))])

    @property
    def classes(self) -> int:
        """The number of base classes."""
        return len(self.cls[4].bias) - 1  # type: ignore[arg-type]

    def hold(self, backbone: Backbone, names: list[str]) -> None:
        """Hold copies of exactly these parts, with the backbone's pretrained weights."""
        self.stages = nn.ModuleDict({name: plain_copy(getattr(backbone, name)) for name in names})
        self.requires_grad_(False)

    def load(self, state: Mapping[str, Tensor], backbone: Backbone, what: str) -> None:
        """Take the weights of a BaseLearner. Raises WeightsError naming the tensors that do not fit."""
        stages = {name: plain_copy(getattr(backbone, name)) for name in backbone.parts}
        wanted = {f"{part}.{k}": v for part in ("ppm", "cls") for k, v in getattr(self, part).state_dict().items()}
        wanted |= {f"backbone.{name}.{k}": v for name in backbone.parts for k, v in stages[name].state_dict().items()}
        problems = [
            k for k in {**wanted, **state} if k not in state or k not in wanted or wanted[k].shape != state[k].shape
        ]
        if problems:
            raise WeightsError(f"{what}: made on another backbone than this run's, see {listing(problems, 3)}")
        for part in ("ppm", "cls"):
            getattr(self, part).load_state_dict(_part(state, part))
        for name, stage in stages.items():
            theirs = _part(state, f"backbone.{name}")
            if name in self.stages or any(not torch.equal(v, theirs[k]) for k, v in stage.state_dict().items()):
                stage.load_state_dict(theirs)
                self.stages[name] = stage
        self.requires_grad_(False)

    def start(self, backbone: Backbone) -> str | None:
        """The last tap up to which the backbone gives what this branch needs: "deep" where it all does, None: nowhere."""
        same = list(takewhile(lambda name: self._is_same(backbone, name), backbone.parts))
        if len(same) == len(backbone.parts):
            return "deep"
        return same[-1] if same and backbone.continues else None

    def _is_same(self, backbone: Backbone, part: str) -> bool:
        return part not in self.stages and not any(tuned_layers(getattr(backbone, part)))

    @torch.no_grad()
    def forward(self, backbone: Backbone, images: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Base logits (B, classes + 1, h, w) of images, of which the backbone gave `maps`: the one at `start` among them.

        Only what comes behind it is run again.
        """
        start = self.start(backbone)
        if start == "deep":
            return self.cls(self.ppm(maps["deep"]))
        with disabled(backbone):
            own = backbone.with_parts(dict(self.stages.items()))
            found = own(images, ("deep",)) if start is None else own.continue_from(start, maps[start], ("deep",))
        return self.cls(self.ppm(found["deep"]))


def _changes(part: nn.Module) -> bool:
    """Whether training changes what disabled(part) computes: anything but the values of tuned layers is trainable."""
    tuned = tuned_parameters(part)
    return any(p.requires_grad and id(p) not in tuned for p in part.parameters())


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
