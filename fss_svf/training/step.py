"""One optimizer step of a whole batch, of which every process does a share, in `accumulate` parts.

However a batch is shared out, the step is the same: a term of the loss is a mean over something that the parts hold
different numbers of (pixels that are not ignored; episodes), so each part counts for what it holds.

A loss that is not finite moves nothing. On a CPU the host sees it before the backward. On a GPU the host reads nothing
between two calls of `read`: the device itself notices, and the fused optimizer leaves that step and all after it out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf import distributed
from fss_svf.errors import ConfigError, TrainingError

# batch (on the CPU) to loss terms, whose sum is minimised; and what each is a mean over, "" for all that are not named.
Loss = Callable[[Any], dict[str, Tensor]]
Counts = Callable[[Any], dict[str, int]]


class LossNotFinite(TrainingError):
    """The loss of step number `step` is NaN or infinite; neither it nor a later step was made."""

    def __init__(self, step: int, terms: Mapping[str, float]) -> None:
        super().__init__(", ".join(f"{name} {value}" for name, value in terms.items()))
        self.step = step


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
        # BatchNorm that trains moves in the forward already.
        self._statistics = [
            buffer
            for module in self._loss.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for buffer in module.buffers(recurse=False)
        ]
        # A fused optimizer asks the device whether to move.
        on_device = all(group["fused"] for group in optimizer.param_groups)
        self._terms: _OnDevice | _OnHost = _OnDevice(scaler) if on_device else _OnHost()
        self._norms: dict[str, Tensor] = {}

    def __call__(self, step: int, parts: Sequence[Any], norms: bool = False) -> None:
        """Make step number `step` with this process's parts of its batch. norms: keep its gradients' norms.

        Without a fused optimizer it raises LossNotFinite, in every process and before anything moved.
        """
        before = [(value, value.clone()) for value in self._statistics]
        try:
            self._backward(step, parts)
        except LossNotFinite:
            for value, was in before:
                value.copy_(was)
            raise
        if norms:
            self._norms = self._gradient_norms()
        self._move()
        self._terms.undo(before)

    def read(self) -> dict[str, float]:
        """The loss terms of the last step, of the whole batch, nothing before the first; the host waits for the device.

        Raises LossNotFinite, in every process, where a step since the last reading was not made.
        """
        return self._terms.read()

    def read_norms(self) -> dict[str, float]:
        """Norms of the loss's gradients in the last step that kept them, by parameter group, and the "total" of all.

        Before clipping and weight decay, of the whole batch: the same in every process. The host waits for the device.
        """
        return dict(zip(self._norms, torch.stack(list(self._norms.values())).tolist())) if self._norms else {}

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Those of read_norms, on the device."""
        gradients = {
            g["name"]: [p.grad for p in g["params"] if p.grad is not None] for g in self.optimizer.param_groups
        }
        norms = {name: nn.utils.get_total_norm(of_group) for name, of_group in gradients.items() if of_group}
        if not norms:
            return {}
        norms["total"] = torch.stack(list(norms.values())).norm()
        # A scaler has made the gradients longer; its own unscale_ would change them.
        return {name: norm / self.scaler.scale(torch.ones_like(norm)) for name, norm in norms.items()}

    def _backward(self, step: int, parts: Sequence[Any]) -> None:
        """The gradients of the whole batch. Raises LossNotFinite before the last part's are computed."""
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
                # data_parallel takes the mean over processes, of what is a share of a sum.
                loss = self.scaler.scale(loss * distributed.world())
                if last:
                    # Agreed upon before the backward, where a process would wait for one that has stopped.
                    loss = self._terms.note(step, sums, loss)
                loss.backward()

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

    def _move(self) -> None:
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.clip_norm)
        with self._terms.guarding(self.optimizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()


class _OnHost:
    """The terms of the last step, which the host reads at once."""

    def __init__(self) -> None:
        self.terms: dict[str, float] = {}

    def note(self, step: int, sums: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Note the terms of step number `step`, of all processes; the loss for the backward. Raises LossNotFinite."""
        self.terms = dict(zip(sums, distributed.total(torch.stack(list(sums.values())).tolist())))
        if not all(map(math.isfinite, self.terms.values())):
            raise LossNotFinite(step, self.terms)
        return loss

    def guarding(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        return nullcontext()

    def undo(self, before: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Nothing: what is not finite has raised."""

    def read(self) -> dict[str, float]:
        return self.terms


class _OnDevice:
    """The terms of the last step, or those of the first that is not finite, on the device.

    Such a step and all after it are left out as the gradient scaler of fp16 leaves one out.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._scale = scaler.state_dict()
        self._names: list[str] = []
        self._state: Tensor | None = None  # float64: whether it is not finite, the number of the step, its terms

    def note(self, step: int, sums: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        self._names = list(sums)
        values = distributed.total_on_device(torch.stack([term.double() for term in sums.values()]))
        bad = ~values.isfinite().all()
        now = torch.cat([torch.stack([bad.double(), values.new_full((), step)]), values])
        self._state = now if self._state is None else torch.where(self._state[0] > 0, self._state, now)
        if not self.scaler.is_enabled():
            return loss
        # The scaler looks at the gradients alone, which may be finite where the loss is not.
        return loss * torch.where(self._state[0] > 0, math.nan, 1.0).to(loss.dtype)

    @contextmanager
    def guarding(self, optimizer: Any) -> Iterator[None]:
        """Within the context the optimizer leaves its step out where the loss was not finite."""
        if self.scaler.is_enabled():  # which says so itself
            yield
            return
        assert self._state is not None
        # torch.amp.GradScaler sets this attribute, and a fused optimizer leaves its step out where it is not 0.
        optimizer.found_inf = self._state[0].float()
        yield
        del optimizer.found_inf

    def undo(self, before: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give each tensor its value of before the step, where the loss was not finite."""
        assert self._state is not None
        for value, was in before:
            value.copy_(torch.where(self._state[0] > 0, was, value))

    def read(self) -> dict[str, float]:
        if self._state is None:
            return {}
        bad, step, *values = self._state.tolist()
        terms = dict(zip(self._names, values))
        if bad:
            # Each step that was left out has halved the scale.
            self.scaler.load_state_dict(self._scale)
            raise LossNotFinite(int(step), terms)
        self._scale = self.scaler.state_dict()
        return terms


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
