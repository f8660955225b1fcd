"""torchvision's blocks with each convolution, its frozen BatchNorm and its ReLU as one step (svf/units.py).

A network is converted by changing the classes of its blocks: names, parameters and state dicts stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from fss_svf.svf.units import conv_unit, hooked


def join_units(module: nn.Module) -> None:
    """Convert the ResNet blocks in `module`, and every Sequential that has a convolution before a BatchNorm or a ReLU."""
    for part in module.modules():
        if type(part) in _JOINED and (type(part) is not nn.Sequential or _holds_unit(part)):
            part.__class__ = _JOINED[type(part)]


def recompute(module: nn.Module) -> None:
    """Let the backward run the joined blocks in `module` again, for only their inputs to be kept: less memory, more time."""
    for part in module.children():
        if isinstance(part, _Recomputable):
            part.recompute = True
        else:
            recompute(part)


class _Recomputable:
    """Before a block's class: its forward, kept for the backward or run again there."""

    recompute = False

    def run(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        block = cast(nn.Module, self)
        trains = x.requires_grad or any(p.requires_grad for p in block.parameters())
        if self.recompute and torch.is_grad_enabled() and trains:
            # No random number is drawn in a backbone.
            keep = partial(checkpoint, self.run, x, use_reentrant=False, preserve_rng_state=False)
            # A compiled graph repeats no change of a buffer, and takes no contexts.
            return keep() if torch.compiler.is_compiling() else keep(context_fn=partial(_contexts, block))
        return self.run(x)


class JoinedBottleneck(_Recomputable, Bottleneck):
    """Bottleneck in three or four steps."""

    def run(self, x: Tensor) -> Tensor:
        if not _is_plain_relu(self.relu):
            return Bottleneck.forward(self, x)
        y = conv_unit(self.conv1, self.bn1, x)
        y = conv_unit(self.conv2, self.bn2, y)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_unit(self.conv3, self.bn3, y, residual=shortcut)


class JoinedBasicBlock(_Recomputable, BasicBlock):
    """BasicBlock in two or three steps."""

    def run(self, x: Tensor) -> Tensor:
        if not _is_plain_relu(self.relu):
            return BasicBlock.forward(self, x)
        y = conv_unit(self.conv1, self.bn1, x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_unit(self.conv2, self.bn2, y, residual=shortcut)


class JoinedSequential(_Recomputable, nn.Sequential):
    """Sequential with every run of Conv2d, BatchNorm2d and ReLU, the latter two where they are there, as one step."""

    def run(self, x: Tensor) -> Tensor:
        # By index: the torch.compile of PyTorch 2.6 breaks its graph at `bool(layers)` and at `del layers[:1]`.
        layers, at = list(self), 0
        while at < len(layers):
            first = layers[at]
            at += 1
            if not isinstance(first, nn.Conv2d):
                x = first(x)
                continue
            bn = layers[at] if at < len(layers) and isinstance(layers[at], nn.BatchNorm2d) else None
            at += bn is not None
            relu = at < len(layers) and _is_plain_relu(layers[at])
            x = conv_unit(first, bn, x, relu)
            at += relu
        return x


_JOINED: dict[type[nn.Module], type[nn.Module]] = {
    Bottleneck: JoinedBottleneck,
    BasicBlock: JoinedBasicBlock,
    nn.Sequential: JoinedSequential,
}


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first run of a block, and for the one in the backward."""
    return nullcontext(), _statistics_stay(block)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """A BatchNorm that trains (in pretrain) has counted the batch in its running statistics already."""
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
