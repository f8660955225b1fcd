"""tuning=layers, conv3x3, batchnorm, bias: some of the backbone's own parameters train in place, stage by stage.

Source: what Singular Value Fine-tuning (arXiv 2206.06122) compares itself with.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, chosen, require_found


@TUNINGS.register("layers", StageOptions)
def layers(backbone: Backbone, options: StageOptions) -> None:
    """Train every parameter of whole stages: convolutions, and the weights and biases of BatchNorm."""
    _train(backbone, options, "parameter", lambda module, name: True)


@TUNINGS.register("conv3x3", StageOptions)
def conv3x3(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights of 3x3 convolutions. Raises ConfigError where there is none."""
    _train(backbone, options, "3x3 convolution", lambda module, name: _is_3x3(module) and name == "weight")


@TUNINGS.register("batchnorm", StageOptions)
def batchnorm(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights and biases of BatchNorm; its statistics stay, as everywhere here. Raises ConfigError."""
    _train(backbone, options, "BatchNorm", lambda module, name: isinstance(module, nn.BatchNorm2d))


@TUNINGS.register("bias", StageOptions)
def bias(backbone: Backbone, options: StageOptions) -> None:
    """Train the biases of BatchNorm, and of convolutions that have one (VGG's). Raises ConfigError."""
    _train(backbone, options, "bias", lambda module, name: name == "bias")


def _train(backbone: Backbone, options: StageOptions, what: str, trains: Callable[[nn.Module, str], bool]) -> None:
    """Freeze the backbone but for those parameters of the chosen stages that `trains` finds, by module and own name."""
    modules = [module for stage in chosen(backbone, options) for module in stage.modules()]
    found = [p for module in modules for name, p in module.named_parameters(recurse=False) if trains(module, name)]
    require_found(found, what, options)
    for parameter in found:
        parameter.requires_grad_(True)


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
