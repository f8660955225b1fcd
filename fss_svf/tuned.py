"""A layer that a tuning changes, and what can be done to every such layer of a model: one interface for all tunings.

Singular values (svf/layers.py), LoRA and adapters (tuning/) are TunedLayers, and so is the layer of a tuning that is added
in a file or package of its own. Nothing else in the project knows them by name: it merges, disables and copies by this file.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class TunedLayer(nn.Module):
    """A layer with something that trains beside the pretrained network. While disabled it does as the pretrained one.

    foldable  whether the tuned layer equals a layer of the pretrained network with another weight. One that is not stays
              a layer of its own when the model is merged or exported
    """

    foldable: ClassVar[bool] = False
    _disabled: bool = False

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the parameters, buffers and attributes that the tuning has added to the pretrained layer."""
        return tuple(self.state_dict())

    @property
    def computed(self) -> tuple[str, ...]:
        """Those of `own` that can be computed again from the pretrained weight, so that a checkpoint leaves them out. Their
        values must not depend on the machine: singular vectors of equal singular values do, and are not named here.
        """
        return ()

    def probe(self) -> float:
        """A number of the values of `computed`. It is another one where they differ by more than rounding."""
        return 0.0

    @property
    def merged(self) -> bool:
        """Whether a forward uses a stored weight."""
        return False

    def merge(self) -> None:
        """Store what a forward would compute from the tuned values; nothing to do where the layer is not foldable."""

    def unmerge(self) -> None:
        """Undo merge, bit for bit."""

    def become_pretrained(self) -> None:
        """Turn this object into the layer that it was before the tuning (nn.Identity where there was none)."""
        raise NotImplementedError


class TunedWeight(TunedLayer):
    """A layer whose weight a tuning changes. Its first base class beside this one is the plain layer's, such as nn.Conv2d.

    Layers are converted by changing the class of an object (become), so that references, hooks, ties and mode stay.
    Subclasses say `effective_weight`, and `own`: what the tuning has added, by name.
    """

    foldable: ClassVar[bool] = True
    weight: Tensor  # the pretrained weight, frozen (but TunedQKV)
    _merged: Tensor | None  # the effective weight while merged

    @property
    def pretrained(self) -> Tensor:
        """The pretrained weight, a frozen parameter."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def effective_weight(self) -> Tensor:
        """The weight that the layer applies when it is neither merged nor disabled; differentiable in what trains."""
        raise NotImplementedError

    @property
    def own(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def tie(self) -> int:
        """Layers of the same tie share what trains, and with it their effective weight."""
        return id(self)

    @property
    def merged(self) -> bool:
        return self._merged is not None

    def merge(self) -> None:
        with torch.no_grad():
            self._merged = self.effective_weight().clone()

    def unmerge(self) -> None:
        self._merged = None

    def current_weight(self) -> Tensor:
        """The weight of the next forward: pretrained while disabled, stored while merged, else the effective weight."""
        if self._disabled:
            return self.pretrained
        if self._merged is None:
            return self.effective_weight()
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            warnings.warn("the model is merged, so its tuned values do not train; call svf.unmerge first", stacklevel=3)
        return self._merged

    def become_pretrained(self) -> None:
        self.become_plain()

    def become_plain(self, weight: nn.Parameter | None = None) -> None:
        """Turn this object into the plain layer, with the pretrained weight, or with this one of its shape."""
        for name in (*self.own, "_merged", "_disabled"):
            delattr(self, name)
        self.__class__ = _plain_class(type(self))
        if weight is not None:
            self.weight = weight


class TunedConv2d(TunedWeight, nn.Conv2d):
    """A Conv2d that convolves with `current_weight`, and so can be joined with what follows it (svf/units.py)."""

    def joined(
        self,
        input: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        top: float = math.inf,
    ) -> Tensor | None:
        """relu?(scale * conv(input) + shift + residual) by a way that needs no effective weight; None: there is none here.

        The layer's own bias is in `shift`. scale, shift (Cout,); residual of the output's shape. top: where the ReLU ends.
        """
        return None

    def forward(self, input: Tensor) -> Tensor:
        y = self.joined(input, shift=self.bias)
        return self._conv_forward(input, self.current_weight(), self.bias) if y is None else y


class TunedLinear(TunedWeight, nn.Linear):
    """A Linear that multiplies by `current_weight`."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.current_weight(), self.bias)


class TunedQKV(TunedLinear):
    """A Linear that makes the queries, keys and values of an attention (attention.py).

    `weight` is `current_weight`: timm's EVA, BEiT and Swin v2 read the weight and do not call the layer, to add a bias that
    has no entries for the keys. The pretrained weight is `pretrained`.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.current_weight()

    def reset_parameters(self) -> None:
        """Another random weight, as PyTorch's layers have it."""
        fresh = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        with torch.no_grad():
            self.pretrained.copy_(fresh.weight)
            if self.bias is not None:
                self.bias.copy_(fresh.bias)


def become(layer: nn.Module, kind: type[TunedWeight]) -> Any:
    """Give a plain layer the class `kind`, neither merged nor disabled; what `kind.own` names is the caller's to add."""
    layer.__class__ = kind
    assert isinstance(layer, TunedWeight)
    layer.pretrained.requires_grad_(False)
    layer.register_buffer("_merged", None, persistent=False)
    layer._disabled = False
    return layer


def _plain_class(kind: type) -> type:
    """The class of PyTorch that a tuned one was made of."""
    return next(base for base in kind.__mro__ if not issubclass(base, TunedLayer))


def tuned_layers(module: nn.Module) -> Iterator[tuple[str, TunedLayer]]:
    """The tuned layers of a model with their names."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, TunedLayer))


def merge(module: Model) -> Model:
    """Store every layer's effective weight, so that a forward is that of the plain layer. Returns `module`.

    Training goes on after unmerge; what is changed while merged takes effect at the next merge or unmerge.
    """
    for _, layer in tuned_layers(module):
        layer.merge()
    return module


def unmerge(module: Model) -> Model:
    """Undo merge, bit for bit: what trains was never changed by it. Returns `module`."""
    for _, layer in tuned_layers(module):
        layer.unmerge()
    return module


@contextmanager
def disabled(module: Model) -> Iterator[Model]:
    """Within the context the model is the pretrained network, bit for bit (BAM's base branch)."""
    before = [(layer, layer._disabled) for _, layer in tuned_layers(module)]
    try:
        for layer, _ in before:
            layer._disabled = True
        yield module
    finally:
        for layer, was in before:
            layer._disabled = was


def plain_copy(module: Model) -> Model:
    """A copy of `module` as it was before the tuning: plain layers with the pretrained weights. The module stays.

    Where a tuning trains the pretrained weights in place, they are as they are now.
    """
    duplicate = copy.deepcopy(module)
    for _, layer in list(tuned_layers(duplicate)):
        layer.become_pretrained()
    return duplicate


def to_plain(module: Model) -> Model:
    """A copy of `module` as it is now: plain layers with the tuned weights, for export. The module stays.

    Its state dict has the names of the untuned model's, so torchvision's model of that name loads it. The weights
    are computed anew, also where a merge is older. Ties stay. Layers that are not foldable stay tuned layers.
    """
    duplicate = copy.deepcopy(module)
    baked: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        found = [
            (layer, layer.tie, layer.effective_weight())
            for _, layer in tuned_layers(duplicate)
            if isinstance(layer, TunedWeight)
        ]
    for layer, tie, weight in found:
        layer.become_plain(baked.setdefault(tie, nn.Parameter(weight.clone(), requires_grad=False)))
    return duplicate


def tuned_parameters(module: nn.Module) -> set[int]:
    """The identities of what tuned layers train, which no forward reads while they are disabled."""
    found: set[int] = set()
    for _, layer in tuned_layers(module):
        found |= {id(p) for name, p in layer.named_parameters() if name in layer.own}
    return found
