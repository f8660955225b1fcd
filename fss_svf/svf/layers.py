"""Conv2d and Linear whose weight is U diag(S) Vh, with S trainable, and U and Vh where that is asked for.

The weight (Cout, Cin / groups, kh, kw) is read as `groups` matrices of Cout / groups rows; a Linear has one.
At full rank with U and Vh frozen the effective weight is written as W + U diag(S - S0) Vh: equal to U diag(S) Vh, and at
S = S0 it is the pretrained W bit for bit, whatever the precision of the factors. Everywhere else it is U diag(S) Vh.

The factors of a weight in half precision are float32, and so is what is computed of them; the effective weight is rounded
to the weight's dtype. Most steps of training are less than half a unit in the last place of bfloat16, and would be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf.precision import in_float32
from fss_svf.svf.execution import After, Geometry, factored_conv, factored_is_cheaper
from fss_svf.svf.factors import Factors, widened
from fss_svf.svf.linear_execution import factored_linear
from fss_svf.svf.loading import load_layer, start_anew
from fss_svf.tuned import TunedConv2d, TunedLinear, TunedWeight, become

FACTORS = ("S", "U", "V")
EXECUTIONS = ("auto", "factored", "rebuilt")
# The parameter that holds S in each parametrisation, and its value at the start.
PARAMETER = {"direct": "S", "scale": "S_scale", "log": "S_log_scale"}


@dataclass(frozen=True)
class Form:
    """What trains of a layer, in the order of FACTORS, and how S is written as a parameter (a key of PARAMETER)."""

    train: tuple[str, ...] = ("S",)
    parametrisation: str = "direct"

    def __post_init__(self) -> None:
        if not self.train or len(set(self.train)) < len(self.train) or not set(self.train) <= set(FACTORS):
            raise ValueError(
                f"svf.decompose: train {list(self.train)} is not one or more of {', '.join(FACTORS)}, each once"
            )
        if self.parametrisation not in PARAMETER:
            raise ValueError(
                f"svf.decompose: parametrisation {self.parametrisation!r} is not one of {', '.join(PARAMETER)}"
            )
        object.__setattr__(self, "train", tuple(factor for factor in FACTORS if factor in self.train))

    @property
    def parameters(self) -> dict[str, bool]:
        """Names of a layer's factor parameters, and whether each trains."""
        return {
            PARAMETER[self.parametrisation]: "S" in self.train,
            "U": "U" in self.train,
            "Vh": "V" in self.train,
        }

    def start(self, s: Tensor) -> Tensor:
        """The value at which the parameter that holds S stands for the singular values s."""
        return {"direct": s, "scale": torch.ones_like(s), "log": torch.zeros_like(s)}[self.parametrisation]


class SVFLayer(TunedWeight):
    """What SVFConv2d, SVFLinear and SVFRows (qkv.py) share. Do not instantiate; svf.decompose converts layers in place.

    weight       the pretrained weight, frozen. The factors are of its dtype, but of float32 where that is half precision
    U, Vh        (groups, Cout / groups, r) and (groups, r, Cin / groups * kh * kw)
    S0           (groups, r) singular values at the start, a buffer
    S            parametrisation direct: (groups, r) singular values
    S_scale      scale: S = S0 * S_scale, which starts at 1
    S_log_scale  log: log S = log S0 + S_log_scale, which starts at 0, so that S stays positive and starts exactly at S0
    """

    S0: Tensor
    U: nn.Parameter
    Vh: nn.Parameter
    S: nn.Parameter
    S_scale: nn.Parameter
    S_log_scale: nn.Parameter
    form: Form
    execution: str  # of EXECUTIONS: how a training step runs
    determined: bool  # factors.determined, of the singular values at full rank

    @property
    def rank(self) -> int:
        return self.S0.shape[1]

    @property
    def full_rank(self) -> bool:
        """Whether nothing was cut off."""
        return self.rank == min(self.U.shape[1], self.Vh.shape[2])

    @property
    def exact(self) -> bool:
        """Whether the effective weight is written around the pretrained one: full rank, and U and Vh frozen."""
        return self.full_rank and self.form.train == ("S",)

    @property
    def own(self) -> tuple[str, ...]:
        return (*self.form.parameters, "S0", "form", "execution", "determined")

    @property
    def computed(self) -> tuple[str, ...]:
        return ("S0", "U", "Vh") if self.determined and self.form.train == ("S",) else ()

    def probe(self) -> float:
        return self.product(self.S0 * torch.arange(self.rank, device=self.S0.device).cos()) / float(self.S0.norm())

    def product(self, s: Tensor) -> float:
        """aᵀ U diag(s) Vh b of fixed vectors a and b, in float64; s (groups, r). Signs of singular vectors do not matter."""
        groups, rows, _ = self.U.shape
        with torch.no_grad():
            a = torch.arange(1, groups * rows + 1, dtype=torch.float64).cos().reshape(groups, 1, rows)
            b = torch.arange(1, self.Vh.shape[2] + 1, dtype=torch.float64).cos().reshape(1, -1, 1)
            u, s, vh = (value.cpu().double() for value in (self.U, s, self.Vh))
            return float(((a @ u).squeeze(1) * s * (vh @ b).squeeze(2)).sum())

    @property
    def tie(self) -> int:
        return id(self.U)

    def singular_values(self) -> Tensor:
        """S as it is now, (groups, r); differentiable in the parameter that holds it."""
        if self.form.parametrisation == "scale":
            return self.S0 * self.S_scale
        if self.form.parametrisation == "log":
            return self.S0 * self.S_log_scale.exp()
        return self.S

    def effective_weight(self) -> Tensor:
        # Eight bits of mantissa would blur the small singular values away.
        with in_float32(self.S0.device):
            s = self.singular_values()
            if self.exact:
                change = (self.U * (s - self.S0).unsqueeze(1)) @ self.Vh
                weight = self.weight + change.reshape(self.weight.shape)
            else:
                weight = ((self.U * s.unsqueeze(1)) @ self.Vh).reshape(self.weight.shape)
            return weight.to(self.weight.dtype)

    def factored_at(self, positions: int) -> bool:
        """Whether a forward of so many positions runs in factored form: only where it trains S, and nothing else here."""
        trains = torch.is_grad_enabled() and self.form.train == ("S",) and not (self._disabled or self.merged)
        if self.execution == "rebuilt" or not trains or self.S0.is_meta:
            return False
        if not getattr(self, PARAMETER[self.form.parametrisation]).requires_grad:
            return False
        groups = self.S0.shape[0]
        return self.execution == "factored" or factored_is_cheaper(self.weight.shape, self.rank, groups, positions)

    def reset_parameters(self) -> None:
        """Another random weight and its factors, as PyTorch's layers have it."""
        super().reset_parameters()  # type: ignore[misc]
        start_anew(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SVFLayer:
        """What to(), half() and the like call: the factors follow to any device, and to any dtype that is not narrower."""
        own = {id(value): value for value in (self.S0, *(getattr(self, name) for name in self.form.parameters))}
        own |= {id(value.grad): value.grad for value in list(own.values()) if value.grad is not None}

        def apply(value: Tensor) -> Tensor:
            applied = fn(value)
            kept = id(value) in own and widened(applied.dtype) != applied.dtype
            return value.to(applied.device, widened(applied.dtype)) if kept else applied

        super()._apply(apply, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        load_layer(self, super()._load_from_state_dict, state_dict, prefix, *arguments)

    def _svf_repr(self) -> str:
        full = "full" if self.full_rank else "cut"
        form = "" if self.form == Form() else f", train={'+'.join(self.form.train)}, {self.form.parametrisation}"
        return f", rank={self.rank} ({full}){form}" + (", merged" if self.merged else "")


class SVFConv2d(SVFLayer, TunedConv2d):
    """A Conv2d (any kernel, stride, padding, padding_mode, dilation, groups, bias, dtype, device) with trainable S."""

    def joined(
        self,
        input: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        top: float = math.inf,
    ) -> Tensor | None:
        return self.factored(input, After(scale, shift, residual, relu, top)) if self.runs_factored(input) else None

    def runs_factored(self, input: Tensor) -> bool:
        """Whether a forward of `input` (B, C, H, W) runs in factored form."""
        plain = self.padding_mode == "zeros" and isinstance(self.padding, tuple) and input.dim() == 4
        if not plain:
            return False
        return self.factored_at(input.shape[0] * input.shape[2] * input.shape[3] // (self.stride[0] * self.stride[1]))

    def factored(self, input: Tensor, after: After) -> Tensor:
        """The convolution without its bias, and what follows it, in factored form."""
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        filters = self.Vh.reshape(-1, *self.weight.shape[1:])
        return factored_conv(input, self.singular_values(), self.U, filters, geometry, after)

    def extra_repr(self) -> str:
        return nn.Conv2d.extra_repr(self) + self._svf_repr()


class SVFLinear(SVFLayer, TunedLinear):
    """A Linear with trainable S."""

    def forward(self, input: Tensor) -> Tensor:
        if self.runs_factored(input):
            return factored_linear(input, self.singular_values()[0], self.U[0], self.Vh[0], self.bias)
        return super().forward(input)

    def runs_factored(self, input: Tensor) -> bool:
        """Whether a forward of `input` (..., in) runs in factored form."""
        return self.factored_at(input.shape[:-1].numel())

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self) + self._svf_repr()


PlainLayer = nn.Conv2d | nn.Linear
CONVERTED: dict[type[PlainLayer], type[SVFConv2d | SVFLinear]] = {nn.Conv2d: SVFConv2d, nn.Linear: SVFLinear}


def become_svf(
    layer: PlainLayer, factors: Factors, determined: bool, form: Form, execution: str, tied_to: SVFLayer | None = None
) -> SVFLayer:
    """Turn a plain layer into its SVF layer with the factors (U, S, Vh); those of `tied_to` are shared, not copied."""
    converted: SVFLayer = become(layer, CONVERTED[type(layer)])
    give_factors(converted, factors, determined, form, execution, tied_to)
    return converted


def give_factors(
    converted: SVFLayer, factors: Factors, determined: bool, form: Form, execution: str, tied_to: SVFLayer | None
) -> None:
    """Set all that an SVF layer holds beside its weight."""
    u, s, vh = factors
    converted.form, converted.execution, converted.determined = form, execution, determined
    for (name, trains), value in zip(form.parameters.items(), (form.start(s), u, vh)):
        own = nn.Parameter(value, requires_grad=trains) if tied_to is None else getattr(tied_to, name)
        converted.register_parameter(name, own)
    converted.register_buffer("S0", s.detach().clone())
