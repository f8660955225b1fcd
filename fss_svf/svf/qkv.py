"""The Linear `qkv` of an attention as three matrices, each with singular values of its own.

Its queries, keys and values are projected by three matrices that happen to lie in one layer: the singular values of the
whole mix them. `blocks.3.attn.qkv` therefore has the parts `blocks.3.attn.qkv.q`, `.k` and `.v`; those that are chosen
are submodules of these names, the rows of the others stay as they are, frozen. The weight and bias keep their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf.attention import PARTS, rows_of
from fss_svf.svf.factors import Factors
from fss_svf.svf.layers import Form, SVFLayer, give_factors
from fss_svf.svf.linear_execution import factored_linear, linear_of_parts
from fss_svf.svf.loading import Plan, load_as_planned, plan_load, start_anew
from fss_svf.tuned import TunedQKV, become


class SVFRows(SVFLayer):
    """The matrix of a part: C rows of the weight (3 C, in) of its SVFQKV, which runs and merges it.

    Has what an SVF layer has, but no weight of its own: `weight` and `pretrained` are a view of the layer's rows.
    """

    part: str  # of PARTS
    _layer: tuple[SVFQKV]  # in a tuple, so that PyTorch does not take it for a submodule

    @property
    def qkv(self) -> SVFQKV:
        return self._layer[0]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return rows_of(self.qkv.pretrained, self.part)

    @property
    def pretrained(self) -> Tensor:
        return self.weight

    @property
    def merged(self) -> bool:
        return self.qkv.merged

    def merge(self) -> None:
        self.qkv.merge()

    def unmerge(self) -> None:
        self.qkv.unmerge()

    def become_plain(self, weight: nn.Parameter | None = None) -> None:
        """Turn the whole layer into a plain one, unless it is one already."""
        if isinstance(self.qkv, SVFQKV):
            self.qkv.become_plain()

    def reset_parameters(self) -> None:
        raise NotImplementedError("a part has no weight of its own; call reset_parameters of its qkv layer")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The layer, which loads before its parts, has seen the weight.
        plan: Plan | None = self.__dict__.pop("_plan", Plan(False, True, False, True))
        if plan is not None:
            load_as_planned(self, plan, nn.Module._load_from_state_dict.__get__(self), state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"{self.part}{self._svf_repr()}"


class SVFQKV(TunedQKV):
    """A Linear (in, 3 C) of which some of q, k and v have singular values that train."""

    @property
    def parts(self) -> list[SVFRows]:
        modules = [self._modules.get(name) for name in PARTS]
        return [part for part in modules if isinstance(part, SVFRows)]

    @property
    def own(self) -> tuple[str, ...]:
        return ()  # what is added is the parts'

    @property
    def tie(self) -> int:
        return hash((id(self.pretrained), *(part.tie for part in self.parts)))

    def effective_weight(self) -> Tensor:
        return torch.cat(self._weights(PARTS))

    def _weights(self, names: Sequence[str]) -> list[Tensor]:
        """The effective weights of these parts, (C, in) each."""
        parts = {part.part: part for part in self.parts}
        return [parts[name].effective_weight() if name in parts else rows_of(self.pretrained, name) for name in names]

    def forward(self, input: Tensor) -> Tensor:
        if self._disabled or self.merged or not torch.is_grad_enabled() or not self._trains_fast():
            return super().forward(input)
        positions = input.shape[:-1].numel()
        factored = {part.part: part for part in self.parts if part.factored_at(positions)}
        if not factored:
            return linear_of_parts(input, self._weights(PARTS), self.bias)
        # A product for each factored part, and one for what lies between them.
        outputs: list[Tensor] = []
        together: list[str] = []
        for name in PARTS:
            if name in factored:
                outputs += [self._rebuilt(input, together)] if together else []
                outputs.append(self._factored(input, factored[name]))
                together = []
            else:
                together.append(name)
        outputs += [self._rebuilt(input, together)] if together else []
        return torch.cat(outputs, dim=-1)

    def _trains_fast(self) -> bool:
        """Whether something trains in another execution than `rebuilt`, which is one product with the whole weight."""
        return any(
            part.execution != "rebuilt" for part in self.parts if any(p.requires_grad for p in part.parameters())
        )

    def _factored(self, input: Tensor, part: SVFRows) -> Tensor:
        bias = None if self.bias is None else rows_of(self.bias, part.part)
        return factored_linear(input, part.singular_values()[0], part.U[0], part.Vh[0], bias)

    def _rebuilt(self, input: Tensor, names: list[str]) -> Tensor:
        bias = None if self.bias is None else torch.cat([rows_of(self.bias, name) for name in names])
        return linear_of_parts(input, self._weights(names), bias)

    def become_plain(self, weight: nn.Parameter | None = None) -> None:
        for part in self.parts:
            delattr(self, part.part)
        super().become_plain(weight)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for part in self.parts:
            start_anew(part)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """The weight and bias; before that it is decided for each part what the new weight means for it (loading.py)."""
        whole, plans = state_dict.get(f"{prefix}weight"), []
        for part in self.parts:
            given = whole
            if isinstance(whole, Tensor) and whole.shape == self.pretrained.shape:
                given = rows_of(whole, part.part)
            plan = plan_load(part, given, state_dict, f"{prefix}{part.part}.", local_metadata, error_msgs)
            part.__dict__["_plan"] = plan
            plans.append(plan)
        if None not in plans:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {' '.join(part.part for part in self.parts)}" + (
            ", merged" if self.merged else ""
        )


def become_rows(
    layer: nn.Linear,
    part: str,
    factors: Factors,
    determined: bool,
    form: Form,
    execution: str,
    tied_to: SVFLayer | None = None,
) -> SVFRows:
    """Give a part of a qkv layer, which becomes an SVFQKV where it is plain, its factors; else as become_svf."""
    qkv: SVFQKV = layer if isinstance(layer, SVFQKV) else become(layer, SVFQKV)
    rows = SVFRows()
    rows.part, rows._layer = part, (qkv,)
    rows.train(qkv.training)
    give_factors(rows, factors, determined, form, execution, tied_to)
    qkv.add_module(part, rows)
    return rows
