"""What timm's converters of files do in silence: refused, or said."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from fss_svf.errors import WeightsError

# The convolution that makes patches: in timm and most repositories, and in CLIP.
_PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight")
_POSITIONS = ("pos_embed", "visual.positional_embedding")
_WINDOWS = "relative_position_bias_table"


def refuse_other_shapes(state: Mapping[str, Tensor], network: Any, source: str) -> None:
    """Raise WeightsError for patches or windows of other sizes, which timm would resample to those of the network."""
    expected = network.state_dict()
    for name, value in state.items():
        if name.endswith(_PATCHES) and _PATCHES[0] in expected:
            found, own = tuple(value.shape[2:]), tuple(expected[_PATCHES[0]].shape[2:])
            if value.ndim == 4 and found != own:
                raise _another(source, "patches", f"{found[0]} x {found[1]}", f"{own[0]} x {own[1]}")
        if name.endswith(_WINDOWS) and name in expected and value.shape[0] != expected[name].shape[0]:
            raise _another(source, "windows", _window(value), _window(expected[name]))


def resized_positions(state: Mapping[str, Tensor], network: Any) -> tuple[str, ...]:
    """A note for the report where position embeddings of the file have another grid than the network's."""
    own = getattr(network, "pos_embed", None)
    for name, value in state.items():
        # Class tokens and registers, which may have a position, do not change the root.
        if name.endswith(_POSITIONS) and isinstance(own, Tensor) and own.ndim == 3 and value.ndim in (2, 3):
            found, expected = isqrt(value.shape[-2]), isqrt(own.shape[1])
            if found != expected:
                return (f"pos_embed resized from {found} x {found} to {expected} x {expected}",)
    return ()


def normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A note for the report: the tag of the model decides it, not the file."""
    return f"images normalised by mean {_numbers(mean)}, deviation {_numbers(std)}"


def _another(source: str, what: str, found: str, own: str) -> WeightsError:
    return WeightsError(
        f"{source}: it has {what} of {found}, the network of backbone.model has {own}; choose that of the file"
    )


def _window(table: Tensor) -> str:
    side = (isqrt(table.shape[0]) + 1) // 2  # (2 side - 1) squared
    return f"{side} x {side}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
