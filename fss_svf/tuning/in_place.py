"""tuning=layers, conv3x3, batchnorm, layernorm, bias: some of the backbone's own parameters train in place, by stages.

Source: what Singular Value Fine-tuning (arXiv 2206.06122) compares itself with; layernorm is batchnorm's likeness for
transformers, as in Zhao et al., Tuning LayerNorm in Attention (arXiv 2312.11420).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, chosen, require_found

# EVA's and BEiT's are parameters of the attention itself; keys have none.
_BIASES = ("bias", "q_bias", "v_bias")
_NORMS = {"batchnorm": nn.BatchNorm2d, "layernorm": nn.LayerNorm}


@TUNINGS.register("layers", StageOptions)
def layers(backbone: Backbone, options: StageOptions) -> None:
    """Train every parameter of whole stages: convolutions, linear layers, and the weights and biases of norms."""
    _train(backbone, options, "parameter", lambda module, name: True)


@TUNINGS.register("conv3x3", StageOptions)
def conv3x3(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights of 3x3 convolutions. Raises ConfigError where there is none."""
    _train(backbone, options, "3x3 convolution", lambda module, name: _is_3x3(module) and name == "weight")


@TUNINGS.register("batchnorm", StageOptions)
def batchnorm(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights and biases of BatchNorm; its statistics stay, as everywhere here. Raises ConfigError."""
    _train_norms(backbone, options, "batchnorm", other="layernorm")


@TUNINGS.register("layernorm", StageOptions)
def layernorm(backbone: Backbone, options: StageOptions) -> None:
    """Train the weights and biases of LayerNorm. Raises ConfigError where there is none."""
    _train_norms(backbone, options, "layernorm", other="batchnorm")


@TUNINGS.register("bias", StageOptions)
def bias(backbone: Backbone, options: StageOptions) -> None:
    """Train the biases of norms, and of convolutions and linear layers that have one. Raises ConfigError."""
    _train(backbone, options, "bias", lambda module, name: name in _BIASES)


def _train_norms(backbone: Backbone, options: StageOptions, tuning: str, other: str) -> None:
    modules = [module for stage in chosen(backbone, options).values() for module in stage.modules()]
    has_other = any(isinstance(module, _NORMS[other]) for module in modules)
    kind = _NORMS[tuning]
    what = "BatchNorm" if kind is nn.BatchNorm2d else "LayerNorm"
    instead = f"its norms train with tuning={other}" if has_other else ""
    _train(backbone, options, what, lambda module, name: isinstance(module, kind), instead)


def _train(
    backbone: Backbone,
    options: StageOptions,
    what: str,
    trains: Callable[[nn.Module, str], bool],
    instead: str = "",
) -> None:
    """Freeze the backbone but for those parameters of the chosen stages that `trains` finds, by module and own name."""
    stages = chosen(backbone, options)
    modules = [module for stage in stages.values() for module in stage.modules()]
    found = [p for module in modules for name, p in module.named_parameters(recurse=False) if trains(module, name)]
    require_found(found, what, stages, instead)
    for parameter in found:
        parameter.requires_grad_(True)


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
