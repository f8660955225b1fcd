"""tuning=layers, conv3x3, batchnorm, bias: some of the backbone's own parameters train in place, stage by stage.

Source: what Singular Value Fine-tuning (arXiv 2206.06122) compares itself with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, chosen, require_found


@TUNINGS.register("layers", StageOptions)
def layers(backbone: Backbone, options: StageOptions) -> None:
    """Train every parameter of whole stages: convolutions, and the weights and biases of BatchNorm."""
    _train(backbone, options, "parameter", lambda module: module.parameters(recurse=False))


@TUNINGS.register("conv3x3", StageOptions)
def conv3x3(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights of 3x3 convolutions. Raises ConfigError where there is none."""
    _train(backbone, options, "3x3 convolution", _weight_of_3x3)


@TUNINGS.register("batchnorm", StageOptions)
def batchnorm(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights and biases of BatchNorm; its statistics stay, as everywhere here. Raises ConfigError."""
    _train(backbone, options, "BatchNorm", lambda m: m.parameters() if isinstance(m, nn.BatchNorm2d) else [])


@TUNINGS.register("bias", StageOptions)
def bias(backbone: Backbone, options: StageOptions) -> None:
    """Train the biases of BatchNorm and of convolutions that have one (VGG's). Raises ConfigError."""
    _train(backbone, options, "bias", lambda m: (p for name, p in m.named_parameters(recurse=False) if name == "bias"))


def _train(
    backbone: Backbone, options: StageOptions, what: str, own: Callable[[nn.Module], Iterable[nn.Parameter]]
) -> None:
    """Freeze the backbone but for what `own` says of each module in the chosen stages."""
    found = [p for stage in chosen(backbone, options) for module in stage.modules() for p in own(module)]
    require_found(found, what, options)
    for parameter in found:
        parameter.requires_grad_(True)


def _weight_of_3x3(module: nn.Module) -> list[nn.Parameter]:
    return [module.weight] if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) else []
