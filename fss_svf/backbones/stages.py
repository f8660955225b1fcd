"""Backbones of five stages in a row, layer0 (the stem) to layer4: ResNets, VGGs, EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone, Sizes, Tap
from fss_svf.backbones.joined import recompute
from fss_svf.config.checks import LEAST_SIZE

STAGES = ("layer0", "layer1", "layer2", "layer3", "layer4")
# A network at 1/8 whose maps are resized with aligned corners: both grids share their corners.
ALIGNED = Sizes(8, 1)
# The end of the name of a tap before a layer's ReLU.
SUM = ":sum"


class StageBackbone(Backbone):
    """Stages layer0..layer4 as submodules of those names; parameters keep their network's names inside them.

    taps: "layer3", the output of a stage, and "layer3.5:sum", what layer 5 of it gives before its last ReLU.
    roles: low, mid and deep are layer2, layer3 and layer4.
    """

    layer0: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    continues = True
    roles = MappingProxyType({"low": "layer2", "mid": "layer3", "deep": "layer4"})
    tuned_stages = ("layer2", "layer3", "layer4")
    parts = STAGES

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        channels: Sequence[int],
        strides: Sequence[int],
        sums: Mapping[str, Tap] = MappingProxyType({}),
        sizes: Sizes = ALIGNED,
    ) -> None:
        """channels, strides: of each stage's output. sums: layers with a tap before their ReLU, such as "layer3.5"; their
        stages are those of joined.py. sizes: of images.
        """
        super().__init__()
        assert tuple(stages) == STAGES, f"a StageBackbone has the stages {STAGES}, got {tuple(stages)}"
        for name, stage in stages.items():
            self.add_module(name, stage)
        taps: dict[str, Tap] = {}
        for name, *tap in zip(STAGES, channels, strides):
            taps |= {f"{layer}{SUM}": value for layer, value in sums.items() if layer.startswith(f"{name}.")}
            taps[name] = Tap(*tap)
        self.taps = taps
        self.sizes = sizes

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in STAGES}

    def run(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        return self._run(images, taps, STAGES)

    def continue_from(self, tap: str, features: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        first = STAGES.index(self.tap_name(tap)) + 1
        names = {name: self.tap_name(name) for name in taps}
        found = self._run(features, list(names.values()), STAGES[first:])
        return {asked: found[name] for asked, name in names.items()}

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        # At 8n the network's n positions stand at pixels 0, 8, ..., 8n - 8, but are stretched to the corners 0 and 8n - 1:
        # the mask grows by up to 7 pixels towards the lower right, 2% at 400. No published protocol pads to such a size.
        if not (squash and self.sizes == ALIGNED and size > LEAST_SIZE and size % ALIGNED.step == 0):
            super().check_size(size, key, squash)

    def recompute(self) -> None:
        recompute(self)

    def _run(self, x: Tensor, taps: Sequence[str], stages: Sequence[str]) -> dict[str, Tensor]:
        """The maps at `taps` of a run through `stages`, whose input is x."""
        inside: dict[str, list[str]] = {}
        for tap in taps:
            stage, _, layer = tap.removesuffix(SUM).partition(".")
            inside.setdefault(stage, []).extend([layer] if layer else [])
        outputs: dict[str, Tensor] = {}
        last = max(stages.index(stage) for stage in inside)
        for number, name in enumerate(stages[: last + 1]):
            stage, layers = getattr(self, name), tuple(inside.get(name, ()))
            if layers:
                x, sums = stage(x, layers, number < last or name in taps)
                outputs |= {f"{name}.{layer}{SUM}": value for layer, value in sums.items()}
            else:
                x = stage(x)
            outputs[name] = x
        return outputs
