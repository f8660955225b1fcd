"""Numeric precision on a GPU or CPU: autocast, TF32, and where neither is allowed.

float32  float32, on a GPU too, where PyTorch's default rounds convolutions to TF32
tf32     float32 with products rounded to TF32 on a GPU (10 bits of mantissa instead of 23); float32 on a CPU
bf16     autocast: convolutions and products in bfloat16 (7 bits), with float32's range
fp16     autocast in float16 (10 bits); gradients may leave its small range, so gradient_scaler is needed
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler

if TYPE_CHECKING:  # the SVF library uses this module without configs
    from fss_svf.config import Precision

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Whether products and convolutions may use TF32.
_Allowed = tuple[bool, bool]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context for a forward and its losses; it does nothing for float32 and tf32. Keep the backward outside."""
    dtype = _HALF.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def set_tf32(precision: Precision) -> None:
    """Allow TF32 in this process if `precision` is tf32, and forbid it otherwise."""
    allowed = precision == "tf32"
    _allow_tf32((allowed, allowed))


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """A context with autocast, and TF32 as set_tf32 sets it. The former setting is restored at its end."""
    allowed = precision == "tf32"
    with _tf32((allowed, allowed)), autocast(device, precision):
        yield


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast and TF32, for computations that would lose digits. The caller converts its inputs.

    The backward of what ran here computes in the inputs' dtype too, but with TF32 if that is allowed at that time. In a
    compiled graph the TF32 setting is not changed: PyTorch's switch is not part of graphs.
    """
    # The meta device has no autocast.
    without = torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
    if device.type != "cuda" or torch.compiler.is_compiling() or not any(_tf32_allowed()):
        return without
    return _both(_tf32((False, False)), without)


def gradient_scaler(device: torch.device, precision: Precision) -> GradScaler:
    """A gradient scaler for fp16, whose gradients vanish below 6e-8; it does nothing in any other precision.

    scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update(). A step with gradients that are not finite is
    skipped and the scale is halved. Its state_dict belongs in a checkpoint.
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
    # Setting the older names sets the newer ones too, in every version. Setting the newer ones leaves the older ones as
    # they are, and PyTorch raises if the two differ: torch.compile in 2.9 and 2.10, get_float32_matmul_precision in 2.15.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
