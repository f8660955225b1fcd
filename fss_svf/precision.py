"""Numbers of how many digits a GPU or CPU computes with: autocast, TF32, and where neither may be.

float32  true float32, on a GPU too, where PyTorch's own default lets convolutions round to TF32
tf32     float32, whose products a GPU rounds to TF32 (10 bits of mantissa instead of 23); on a CPU float32
bf16     autocast: convolutions and products in bfloat16 (7 bits), with float32's range
fp16     autocast in float16 (10 bits), whose small range gradients leave: gradient_scaler
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler

if TYPE_CHECKING:  # for the SVF library, which knows nothing of configs
    from fss_svf.config import Precision

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Whether products, and convolutions, may use TF32.
_Allowed = tuple[bool, bool]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context for a forward and its losses, nothing for float32 and tf32. The backward and the optimizer stay outside."""
    dtype = _HALF.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def set_tf32(precision: Precision) -> None:
    """From now on this process uses TF32 on a GPU where `precision` is tf32, and nowhere otherwise."""
    allowed = precision == "tf32"
    _allow_tf32((allowed, allowed))


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Within the context: autocast, and TF32 as set_tf32 sets it. Before and after it, as it was."""
    allowed = precision == "tf32"
    with _tf32((allowed, allowed)), autocast(device, precision):
        yield


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Within the context no autocast and no TF32, for what loses its digits otherwise. The caller widens its inputs.

    The backward of what ran here computes in the inputs' dtype too, but with TF32 where that is allowed by then. In a
    compiled graph TF32 is not touched: PyTorch's switch is no part of graphs.
    """
    # There is no autocast on the meta device, so nothing to leave there.
    without = torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
    if device.type != "cuda" or torch.compiler.is_compiling() or not any(_tf32_allowed()):
        return without
    return _both(_tf32((False, False)), without)


def gradient_scaler(device: torch.device, precision: Precision) -> GradScaler:
    """For fp16, whose gradients would vanish below 6e-8, on a GPU or a CPU; with any other precision it does nothing.

    scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update(). A step whose gradients are not finite is left
    out, and the scale halved. Its state_dict belongs in a checkpoint.
    """
    return GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def _both(one: AbstractContextManager[object], other: AbstractContextManager[object]) -> Iterator[None]:
    with one, other:
        yield


@contextmanager
def _tf32(allowed: _Allowed) -> Iterator[None]:
    before = _tf32_allowed()
    _allow_tf32(allowed)
    try:
        yield
    finally:
        _allow_tf32(before)


def _tf32_allowed() -> _Allowed:
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # PyTorch 2.9: the older names raise where a caller used these
        return backends.cuda.matmul.fp32_precision == "tf32", backends.cudnn.conv.fp32_precision == "tf32"
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32


def _allow_tf32(allowed: _Allowed) -> None:
    # The older names set the newer ones with them, in every version. The newer ones leave the older behind, and PyTorch
    # itself raises where they differ: torch.compile in 2.9 and 2.10, get_float32_matmul_precision in 2.15.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
