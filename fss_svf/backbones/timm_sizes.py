"""The image sizes that a network of timm takes: what timm says of them; where it says nothing, a run of an empty image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fss_svf.backbones.backbone import Sizes, Tap
from fss_svf.errors import ConfigError

if TYPE_CHECKING:
    from fss_svf.backbones.timm_network import TimmBackbone

# Classes of timm whose sizes follow from their patches, or that take any.
_KNOWN = ("VisionTransformer", "Eva", "SwinTransformer", "ConvNeXt", "ResNet", "EfficientNet")
# What networks raise for a size that they cannot take.
_FAILURES = (RuntimeError, AssertionError, ValueError)


def sizes_of(network: Any, taps: Mapping[str, Tap]) -> Sizes:
    """What timm says of its network: dynamic ones take whole patches, those of a fixed size that one, others any.

    A network of one stride behind convolutions (a hybrid) has one position for a whole stride, not for a patch.
    """
    patches: Any = getattr(network, "patch_embed", None)
    own = int(network.pretrained_cfg["input_size"][-1])
    if not hasattr(patches, "patch_size") or not hasattr(patches, "strict_img_size"):
        # Patches without a word about sizes may overlap: those of 7 x 7 in a PVT have a stride of 4.
        return Sizes(own, 0, own) if network.pretrained_cfg.get("fixed_input_size") else Sizes()
    if patches.strict_img_size:
        own = int(patches.img_size[-1])
        return Sizes(own, 0, own)
    step = int(patches.patch_size[0])
    strides = {tap.stride for tap in taps.values()}
    return Sizes(max(step, *strides) if len(strides) == 1 else step)


def check_by_a_run(backbone: TimmBackbone, size: int, key: str) -> None:
    """Raise ConfigError where a network of an unknown kind cannot read size x size, or gives other channels than it says."""
    parameter = next(backbone.parameters())
    if type(backbone.network).__name__ in _KNOWN or parameter.is_meta:
        return
    try:
        alone = _sharing(backbone)
    except Exception:  # of what a tuning or a compiler left in the modules, where no copy is possible
        return
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            maps = alone(image, list(dict.fromkeys(backbone.roles.values())))
    except _FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError):
            return
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        step = max(tap.stride for tap in backbone.taps.values())
        raise ConfigError(
            f"{key}: {type(backbone.network).__name__} of timm cannot read {size} x {size} ({reason}); try a multiple of "
            f"{step}, or the {backbone.network.pretrained_cfg['input_size'][-1]} of its weights"
        ) from None
    found = {name: value.shape[1] for name, value in maps.items()}
    wrong = [name for name, channels in found.items() if channels != backbone.taps[name].channels]
    if wrong:
        raise ConfigError(
            f"backbone.model: {type(backbone.network).__name__} of timm says {backbone.taps[wrong[0]].channels} channels of "
            f"{wrong[0]} and gives {found[wrong[0]]}; choose another"
        )


def _sharing(backbone: TimmBackbone) -> TimmBackbone:
    """A copy with the same tensors, in eval mode: what a run stores in its modules stays in the copy."""
    shared: dict[int, Any] = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
    return copy.deepcopy(backbone, shared).eval()
