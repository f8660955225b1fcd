"""One optimizer step of a whole batch, of which every process does a share, in `accumulate` parts.

However a batch is shared out, the step is the same: a term of the loss is a mean over something that the parts hold
different numbers of (pixels that are not ignored; episodes), so each part counts for what it holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf import distributed
from fss_svf.errors import ConfigError, TrainingError

# batch (on the CPU) to loss terms, whose sum is minimised; and what each is a mean over, "" for all that are not named.
Loss = Callable[[Any], dict[str, Tensor]]
Counts = Callable[[Any], dict[str, int]]


class LossNotFinite(TrainingError):
    """A step's loss is NaN or infinite; the step was not made."""


class Shares(Sequence[int]):
    """The items that this process loads, of batches of `batch_size` from step `first` to `last`, parts in a row.

    Part p of process r is part r * accumulate + p of its batch: two processes, and one with accumulate=2, have the same
    parts. Raises ConfigError where the batch does not divide.
    """

    def __init__(self, batch_size: int, accumulate: int, first: int, last: int) -> None:
        parts = distributed.world() * accumulate
        if batch_size % parts:
            raise ConfigError(
                f"recipe.batch_size={batch_size}: does not divide into {distributed.world()} processes x "
                f"accumulate={accumulate}; it is that of a step over all of them: say for example "
                f"recipe.batch_size={-(-batch_size // parts) * parts}"
            )
        self.batch_size, self.first, self.last = batch_size, first, last
        self.part = batch_size // parts
        self._share = batch_size // distributed.world()
        self._offset = distributed.rank() * self._share

    def __len__(self) -> int:
        return (self.last - self.first) * self._share

    def __getitem__(self, place: int) -> int:  # type: ignore[override]
        if not 0 <= place < len(self):
            raise IndexError(place)
        step, row = divmod(place, self._share)
        return (self.first + step) * self.batch_size + self._offset + row


class Step:
    """Makes steps.

    model      in its mode of training, on its device
    accumulate parts of each process
    loss       what a part of the batch contributes; counts: what its terms are means over
    context    entered for every forward: autocast, or nothing
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        counts: Counts,
        optimizer: torch.optim.Optimizer,
        seed: int,
        scaler: torch.amp.GradScaler,
        accumulate: int = 1,
        clip_norm: float | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.counts, self.optimizer, self.scaler = model, counts, optimizer, scaler
        self.seed, self.clip_norm, self.context = seed, clip_norm, context
        self._loss = distributed.data_parallel(_Weighted(model, loss), accumulate)

    def __call__(self, step: int, parts: Sequence[Any]) -> dict[str, float]:
        """Make step number `step` with this process's parts of its batch; the loss terms of the whole batch.

        Raises LossNotFinite, in every process and before anything moved.
        """
        weights = self._weights(parts)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, (part, weight) in enumerate(zip(parts, weights)):
            last = number == len(parts) - 1
            self._seed(step, number, len(parts))
            # Processes add their gradients up in the backward of the last part.
            with nullcontext() if last or distributed.world() == 1 else self._loss.no_sync():
                with self.context():
                    terms = self._loss(part, weight)
                loss = torch.stack(list(terms.values())).sum()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0) + term.detach()
                if last:
                    # Agreed upon before the backward, where a process would wait for one that has stopped.
                    told = self._told(sums)
                # data_parallel takes the mean over processes, of what is a share of a sum.
                self.scaler.scale(loss * distributed.world()).backward()
        self._move()
        return told

    def _weights(self, parts: Sequence[Any]) -> list[dict[str, float]]:
        if distributed.world() == len(parts) == 1:
            return [{}]
        held = [self.counts(part) for part in parts]
        names = list(held[0])
        totals = distributed.total([sum(count[name] for count in held) for name in names])
        return [{name: count[name] / max(total, 1) for name, total in zip(names, totals)} for count in held]

    def _seed(self, step: int, number: int, parts: int) -> None:
        """What the forward draws (dropout) is a function of the seed, the step and the part: nothing to save and restore."""
        part = distributed.rank() * parts + number
        digest = hashlib.sha256(f"{self.seed} {step} {part}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def _told(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([term.double() for term in sums.values()]).tolist()
        told = dict(zip(sums, distributed.total(values)))
        if not all(map(math.isfinite, told.values())):
            shown = ", ".join(f"{name} {value}" for name, value in told.items())
            raise LossNotFinite(shown)
        return told

    def _move(self) -> None:
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class _Weighted(nn.Module):
    """The loss as a module over the model's parameters, as data_parallel needs it."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any, weights: Mapping[str, float]) -> dict[str, Tensor]:
        terms = self.loss(batch)
        if not weights:
            return terms
        return {name: term * weights.get(name, weights[""]) for name, term in terms.items()}


def in_steps(stream: Iterator[Any], parts: int) -> Iterator[list[Any]]:
    """The stream's items in lists of `parts`."""
    while len(found := [item for _, item in zip(range(parts), stream)]) == parts:
        yield found
