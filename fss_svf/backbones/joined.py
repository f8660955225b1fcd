"""torchvision's blocks with each convolution, its frozen BatchNorm and its ReLU as one step (svf/units.py).

A network is converted by changing the classes of its blocks. Names, parameters and state dicts do not change.

A block gives what it has before its last ReLU too, its sum, which HSNet and DCAMA read: block(x, False) is the sum alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from fss_svf.svf.units import conv_unit, hooked


def join_units(module: nn.Module) -> None:
    """Convert the ResNet blocks in `module`, and every Sequential with a convolution before a BatchNorm or a ReLU."""
    for part in module.modules():
        if type(part) in _JOINED and (type(part) is not nn.Sequential or _holds_unit(part)):
            part.__class__ = _JOINED[type(part)]


def recompute(module: nn.Module) -> None:
    """Recompute the joined blocks in `module` in the backward. Only their inputs are kept: less memory, more time."""
    for part in module.children():
        if isinstance(part, Recomputable):
            part.recompute = True
        else:
            recompute(part)


class Recomputable:
    """Mixin of a block: its activations are kept for the backward, or recomputed there."""

    recompute = False

    def run(self, x: Tensor, *how: Any) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor, *how: Any) -> Any:
        block = cast(nn.Module, self)
        trains = x.requires_grad or any(p.requires_grad for p in block.parameters())
        if self.recompute and torch.is_grad_enabled() and trains:
            # A backbone draws no random numbers.
            keep = partial(checkpoint, self.run, x, *how, use_reentrant=False, preserve_rng_state=False)
            # A compiled graph does not repeat changes of buffers, and accepts no contexts.
            return keep() if torch.compiler.is_compiling() else keep(context_fn=partial(_contexts, block))
        return self.run(x, *how)


class JoinedBottleneck(Recomputable, Bottleneck):
    """Bottleneck as three or four steps."""

    def run(self, x: Tensor, relu: bool = True) -> Tensor:
        plain = _is_plain_relu(self.relu)
        if relu and not plain:
            return Bottleneck.forward(self, x)
        y = conv_unit(self.conv1, self.bn1, x, plain)
        y = conv_unit(self.conv2, self.bn2, y if plain else self.relu(y), plain)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_unit(self.conv3, self.bn3, y if plain else self.relu(y), relu, shortcut)


class JoinedBasicBlock(Recomputable, BasicBlock):
    """BasicBlock as two or three steps."""

    def run(self, x: Tensor, relu: bool = True) -> Tensor:
        plain = _is_plain_relu(self.relu)
        if relu and not plain:
            return BasicBlock.forward(self, x)
        y = conv_unit(self.conv1, self.bn1, x, plain)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_unit(self.conv2, self.bn2, y if plain else self.relu(y), relu, shortcut)


class JoinedSequential(Recomputable, nn.Sequential):
    """Sequential where each Conv2d is one step with the BatchNorm2d and ReLU that follow it, if any.

    run(x, sums, rest) also gives what the convolutions named in `sums` have before their ReLU, by name: as JoinedStage.
    """

    def run(self, x: Tensor, sums: tuple[str, ...] = (), rest: bool = True) -> Any:
        # By index: the torch.compile of PyTorch 2.6 breaks its graph at `bool(layers)` and at `del layers[:1]`.
        layers, names, at = list(self), list(self._modules), 0
        found: dict[str, Tensor] = {}
        while at < len(layers):
            first, name = layers[at], names[at]
            at += 1
            if not isinstance(first, nn.Conv2d):
                x = first(x)
                continue
            bn = layers[at] if at < len(layers) and isinstance(layers[at], nn.BatchNorm2d) else None
            at += bn is not None
            if name in sums:
                found[name] = conv_unit(first, bn, x, False)
                if not rest and len(found) == len(sums):
                    break
                # A ReLU of torchvision's VGG works in place. The sum is kept.
                x = F.relu(found[name]) if _is_plain_relu(layers[at]) else layers[at](found[name].clone())
                at += 1
                continue
            relu = at < len(layers) and _is_plain_relu(layers[at])
            x = conv_unit(first, bn, x, relu)
            at += relu
        return (x, found) if sums else x


class JoinedStage(nn.Sequential):
    """A stage of joined blocks."""

    def forward(self, x: Tensor, sums: tuple[str, ...] = (), rest: bool = True) -> Any:
        """The stage's output; with `sums` also what the blocks of these names have before their last ReLU, by name.

        rest: whether the blocks behind the last of `sums` are run; if not, the output means nothing.
        """
        if not sums:
            return super().forward(x)
        found: dict[str, Tensor] = {}
        for name, layer in self._modules.items():
            assert layer is not None
            if name in sums:
                found[name] = layer(x, False)
                if not rest and len(found) == len(sums):
                    break
                # Not in place: the sum is kept.
                relu = layer.get_submodule("relu")
                x = F.relu(found[name]) if _is_plain_relu(relu) else relu(found[name].clone())
            else:
                x = layer(x)
        return x, found


_JOINED: dict[type[nn.Module], type[nn.Module]] = {
    Bottleneck: JoinedBottleneck,
    BasicBlock: JoinedBasicBlock,
    nn.Sequential: JoinedSequential,
}


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a block's first run and of its run in the backward."""
    return nullcontext(), _statistics_stay(block)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: a BatchNorm that trains (in pretrain) has already counted this batch."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, tracked) in zip(norms, before):
        norm.momentum, norm.num_batches_tracked = 0.0, None if tracked is None else torch.zeros_like(tracked)
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _is_plain_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and not hooked(module)


def _holds_unit(sequence: nn.Module) -> bool:
    children = list(sequence.children())
    return any(isinstance(a, nn.Conv2d) and isinstance(b, (nn.BatchNorm2d, nn.ReLU)) for a, b in pairwise(children))
