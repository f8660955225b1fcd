"""A GPU that is not there: parameters, inputs and results are PyTorch's fake tensors, with shapes and devices but no data.

What a forward, a loss or an optimizer step does on a CUDA device can so be proven on any machine: tensors of two devices
that meet raise PyTorch's FakeTensorDeviceMismatchError, and whatever makes the host wait for the device raises HostSync with
the file and the function that asked. Autograd's engine alone needs a real device: call backward functions directly.

    with FakeGPU() as gpu:
        method = gpu.module(method)
        prediction = method(gpu.tensors(episode))

A synchronisation that stays is named, with its reason and the number that the host is to read:

    FakeGPU({"methods/blocks.py:without_empty": Allowed("positions of an object, once a support", 5)})
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from fss_svf.episode import imagenet_statistics

# PyTorch 2.6's fake tensors do not take the place of a module's parameters.
needs_fake_tensors = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="fake CUDA tensors need PyTorch 2.7 or newer"
)

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

# Operations after which the host waits for the device: they give a number, or a shape that depends on values.
_READS = (
    "_local_scalar_dense", "equal", "allclose", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "_linalg_svd", "_linalg_eigh", "linalg_eig", "_linalg_solve_ex",
)  # fmt: skip
_INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
_IN_PLACE = ("_fused_sgd_", "_fused_adamw_", "_amp_foreach_non_finite_check_and_unscale_")
_COPIES = ("_to_copy", "copy_", "copy")


class HostSync(AssertionError):
    """The host waits for the device."""


@dataclass(frozen=True)
class Allowed:
    """A synchronisation that stays: why, and what a host that reads one number gets."""

    reason: str
    value: float = 1


class FakeGPU:
    """While entered, tensors that are made on cuda are fake, and a host synchronisation raises HostSync.

    allowed  those that do not, by "file:function" below fss_svf/: "evaluation/features.py:encode"
    met      the names of those that came
    """

    def __init__(self, allowed: Mapping[str, Allowed] | None = None) -> None:
        self.allowed, self.met = dict(allowed or {}), set()
        self._mode = FakeTensorMode(allow_non_fake_inputs=False)
        self._stack = ExitStack()

    def __enter__(self) -> FakeGPU:
        self._stack.enter_context(warnings.catch_warnings())
        # Autocast of cuda switches itself off where PyTorch sees no GPU.
        self._stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        self._stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        # What is kept of one device must be neither a real tensor here nor a fake one later.
        imagenet_statistics.cache_clear()
        self._stack.callback(imagenet_statistics.cache_clear)
        self._stack.enter_context(self._mode)
        self._stack.enter_context(_Watch(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def module(self, module: nn.Module) -> nn.Module:
        """The module, whose parameters and buffers are on the device from now on. What is tied stays tied."""
        made: dict[int, Tensor] = {}
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = made.setdefault(id(tensor), self._parameter(tensor))
        return module

    def tensors(self, value: Any, device: torch.device = CUDA) -> Any:
        """A tensor, or the tensors of a dataclass, dict, list or tuple, on the device; on the host: device=CPU."""
        if isinstance(value, Tensor):
            return self._fake(value, device).requires_grad_(value.requires_grad)
        if isinstance(value, Mapping):
            return {key: self.tensors(part, device) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.tensors(part, device) for part in value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{key: self.tensors(part, device) for key, part in vars(value).items()})
        return value

    def _parameter(self, tensor: Tensor) -> Tensor:
        fake = self._fake(tensor, CUDA)
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def _fake(self, tensor: Tensor, device: torch.device) -> Tensor:
        with _disable_current_modes():
            return FakeTensor(self._mode, tensor.detach().to("meta"), device)

    def sync(self, what: str) -> float:
        """A host synchronisation has come: what the host reads, where it is allowed. Raises HostSync."""
        where = _caller()
        if where not in self.allowed:
            raise HostSync(f"{where}: the host waits for the device ({what})")
        self.met.add(where)
        return self.allowed[where].value


class _Watch(TorchDispatchMode):
    """Sees every operation before the fake tensors do."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            # In inference mode an operation comes whole that consists of others, such as item and to.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func._schema.name.partition("::")[2]
        on_device = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and t.device.type == "cuda"]
        if name in _COPIES:
            self._copy(name, args, kwargs)
        elif not on_device:
            pass
        elif name in _IN_PLACE:  # for which PyTorch has no fake tensors
            assert {t.device for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)} == {CUDA}
            return None
        elif name in _READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            value = self.gpu.sync(name)
            if name == "_local_scalar_dense":
                number = args[0].dtype
                return value if number.is_floating_point else bool(value) if number == torch.bool else int(value)
        elif name in _INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.gpu.sync(f"{name} by a mask")
                elif index is not None and index.device.type == "cpu" and index.dim():
                    self.gpu.sync(f"{name} by indices on the host")
        return func(*args, **kwargs)

    def _copy(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name == "_to_copy":
            source, target = args[0].device, kwargs.get("device") or args[0].device
            non_blocking = kwargs.get("non_blocking", False)
        else:
            source, target = args[1].device, args[0].device
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        kinds = source.type, torch.device(target).type
        if kinds == ("cuda", "cpu"):
            # Without blocking, too: whoever reads the copy has to wait.
            self.gpu.sync("a copy to the host")
        elif kinds == ("cpu", "cuda") and not non_blocking:
            self.gpu.sync("a copy from the host that blocks")


def _caller() -> str:
    """file:function of the innermost caller in fss_svf/, or, where there is none, in tests/."""
    others = []
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "fss_svf" in path.parts:
            inside = path.parts[len(path.parts) - 1 - path.parts[::-1].index("fss_svf") + 1 :]
            return f"{'/'.join(inside)}:{frame.f_code.co_name}"
        if Path(__file__).parent in path.parents and path.name != Path(__file__).name:
            others.append(f"{path.name}:{frame.f_code.co_name}")
        frame = frame.f_back
    return others[0] if others else "?"
