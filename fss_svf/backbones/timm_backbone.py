"""backbone=timm backbone.model=NAME: any network of timm, and the names under which some of them are at hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.timm_files import normalisation, refuse_other_shapes, resized_positions
from fss_svf.backbones.timm_import import import_timm
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.backbones.weights import LoadReport, load_weights, loaded_digest
from fss_svf.errors import ConfigError, WeightsError, did_you_mean
from fss_svf.registry import BACKBONES

PRETRAINED = "pretrained"
# The offset of official DINOv2 when it resizes position embeddings.
_OFFSET = 0.1


@dataclass(frozen=True)
class Roles:
    """Taps by role; null: the backbone's own choice."""

    low: str | None = None
    mid: str | None = None
    deep: str | None = None


@dataclass(frozen=True)
class TimmOptions:
    """model: a name of timm's, with or without the tag of its weights.

    weights        null (random), "pretrained" (timm's own, downloaded), or a file: of timm's names or an official
                   repository's, which timm converts
    roles          the taps that methods read as low, mid and deep
    pos_embed      how position embeddings are resized: timm (antialiased, to the size) or official (as the official DINOv2
                   does)
    output_stride  null, or 8, 16, 32 of networks that timm can dilate
    """

    model: str
    weights: str | None = None
    roles: Roles = Roles()
    pos_embed: Literal["timm", "official"] = "timm"
    output_stride: Literal[8, 16, 32] | None = None


def timm_backbone(options: TimmOptions) -> tuple[TimmBackbone, LoadReport]:
    """The network as a TimmBackbone, with its weights. Raises ConfigError, WeightsError."""
    network = _create(options)
    backbone = TimmBackbone(network, asdict(options.roles))
    report = _load(network, options)
    if options.weights is not None:
        report = replace(report, notes=(*report.notes, normalisation(backbone.mean, backbone.std)))
    if options.pos_embed == "official":
        _use_official_positions(network, options.model)
    if torch.empty(0).is_meta:
        _forget_weights(network)
    return backbone, report


# conf/backbone/NAME.yaml says which network each is.
NAMES = ("timm", "dinov2_s", "dinov2_b", "dinov2_l", "dinov3_s", "dinov3_l", "vit_b_clip", "convnext_t", "swin_b")
for _name in NAMES:
    BACKBONES.register(_name, TimmOptions)(timm_backbone)


def _create(options: TimmOptions) -> nn.Module:
    timm = import_timm("timm")
    further: dict[str, Any] = {"dynamic_img_size": True}
    if options.output_stride is not None:
        further["output_stride"] = options.output_stride
    while True:
        try:
            # Not on the meta device: some buffers are in no state dict, so that nothing would ever fill them.
            with torch.device("cpu"):
                network: nn.Module = timm.create_model(
                    options.model, pretrained=options.weights == PRETRAINED, num_classes=0, **further
                )
            return network
        except TypeError as error:
            if "dynamic_img_size" in str(error) and further.pop("dynamic_img_size", None):
                continue  # of a network of any size, or of a single one
            if "output_stride" in str(error):
                raise ConfigError(
                    f"backbone.output_stride={options.output_stride}: {options.model} of timm has no such option; leave it "
                    "out"
                ) from None
            raise
        except Exception as error:  # a download raises anything, and so does an unknown name
            raise _not_created(timm, options, error) from None


def _not_created(timm: Any, options: TimmOptions, error: Exception) -> ConfigError | WeightsError:
    name, _, tag = options.model.partition(".")
    if name == "???":  # of conf/backbone/timm.yaml
        return ConfigError("backbone.model: none is chosen; say backbone.model=NAME, one of timm.list_models()")
    if not timm.is_model(name):
        close = did_you_mean(name, timm.list_models())
        return ConfigError(f"backbone.model={name}: unknown to timm {timm.__version__}{close}; see timm.list_models()")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if tag and tag not in tags:
        return ConfigError(
            f"backbone.model={options.model}: timm {timm.__version__} knows no {tag}, but {tags or 'none'}"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if options.weights != PRETRAINED:
        return ConfigError(f"backbone.model={options.model}: timm cannot build it ({reason})")
    return WeightsError(
        f"backbone.weights=pretrained: timm has no weights of {options.model} here ({reason}); download them by other means "
        "and set backbone.weights to the file"
    )


def _load(network: Any, options: TimmOptions) -> LoadReport:
    name, given = f"timm backbone.model={options.model}", options.weights
    if given == PRETRAINED:
        state = network.state_dict()
        config = network.pretrained_cfg
        source = f"timm's {config['architecture']}.{config.get('tag') or 'default'}"
        return LoadReport(source, len(state), digest=loaded_digest(network, state))
    if isinstance(given, str) and not Path(given).expanduser().is_file():
        raise WeightsError(
            f"backbone.weights={given}: no such file ({Path(given).expanduser().absolute()}); give a file, pretrained "
            "(timm's, downloaded) or null (random)"
        )
    convert = getattr(inspect.getmodule(type(network)), "checkpoint_filter_fn", None)

    notes: tuple[str, ...] = ()

    def converted(state: dict[str, Tensor]) -> Mapping[str, Tensor]:
        nonlocal notes
        refuse_other_shapes(state, network, given if isinstance(given, str) else "a state dict")
        notes = resized_positions(state, network)
        found: Mapping[str, Tensor] = convert(state, network)  # type: ignore[misc]
        return found

    report = load_weights(network, given, name, rename=str, convert=converted if convert else None)
    return replace(report, notes=notes)


def _use_official_positions(network: Any, model: str) -> None:
    """Resize position embeddings as official DINOv2 does. Raises ConfigError where there is nothing to resize."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, VisionTransformer) or network.pos_embed is None or not network.dynamic_img_size:
        raise ConfigError(
            f"backbone.pos_embed=official: {model} has no absolute position embedding to resize; leave it at timm"
        )
    # The official models with registers resize as timm does: antialiased, to the size, without offset.
    if network.reg_token is None:
        vars(network)["_pos_embed"] = MethodType(_with_official_positions, network)


def _with_official_positions(network: Any, x: Tensor) -> Tensor:
    """Patches (B, h, w, C) to tokens (B, prefix + h * w, C) with their position embeddings: timm's _pos_embed."""
    batch, height, width = x.shape[:3]
    prefix = [] if network.cls_token is None else [network.cls_token.expand(batch, -1, -1)]
    tokens, positions = x.flatten(1, 2), network.pos_embed
    first = positions.shape[1] - math.prod(network.patch_embed.grid_size)
    positions = torch.cat([positions[:, :first], _resized(positions[:, first:], network, height, width)], dim=1)
    if first:
        return network.pos_drop(torch.cat([*prefix, tokens], dim=1) + positions)
    return network.pos_drop(torch.cat([*prefix, tokens + positions], dim=1))


def _resized(positions: Tensor, network: Any, height: int, width: int) -> Tensor:
    """(1, n, C) of the network's own grid to (1, height * width, C).

    Source: official DINOv2's behaviour: bicubic without antialiasing, by the scale factor (side + 0.1) / own side, which
    moves every sample a little; at the own size nothing is done.
    """
    own = network.patch_embed.grid_size
    if (height, width) == tuple(own):
        return positions
    grid = positions.float().unflatten(1, tuple(own)).permute(0, 3, 1, 2)
    scales = tuple((side + _OFFSET) / n for side, n in zip((height, width), own))
    grid = F.interpolate(grid, scale_factor=scales, mode="bicubic", antialias=False)
    assert grid.shape[-2:] == (height, width)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def _forget_weights(network: nn.Module) -> None:
    """Parameters onto the meta device, where a checkpoint's model is built; buffers keep their values."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.to("meta"), parameter.requires_grad))
