"""The training loop that pretraining and meta-training share. Killed and resumed equals never killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fss_svf import distributed, plugins
from fss_svf.backbones.backbone import Backbone
from fss_svf.base_weights import BaseWeights
from fss_svf.checkpoint import LAST_STEP, keep_checkpoint, link_checkpoint, save_checkpoint
from fss_svf.config import PretrainConfig, TrainConfig, modules_of, to_mapping
from fss_svf.console import IN_FILE, progress, relative
from fss_svf.data.loader import batches
from fss_svf.data.loading import Repeated
from fss_svf.errors import Stopped, TrainingError
from fss_svf.model import compile_stages, load_state, place
from fss_svf.precision import autocast, gradient_scaler, set_tf32
from fss_svf.provenance import provenance, write_json, write_run_folder
from fss_svf.training.loggers import Logger
from fss_svf.training.optim import describe, load_optimizer, make_optimizer, require_gradients, set_rates
from fss_svf.training.profiling import profiled
from fss_svf.training.step import LossNotFinite, Shares, Step, in_steps
from fss_svf.training.stopping import StopSignal
from fss_svf.training.tracking import Curves, DataWait, peak_memory

log = logging.getLogger(__name__)
# A best score below this is that of a model that predicts background everywhere, but for some pixels.
_NOTHING = 0.001


@dataclass
class Task:
    """What differs between the verbs that train.

    make, collate  how item number n and a batch are made
    identify       what item number n is of, in names
    epoch          items an epoch
    loss           batch (on the CPU, pinned where the device is a GPU) to loss terms, summed for the backward
    counts         what the terms are means over, of a batch: pixels or episodes, by term, "" for all others
    draw           a batch to a picture, (H, W, 3) uint8 RGB
    validate       step and logger (None in all processes but the first, and with logger=none) to scores; the one called
                   `score` chooses the best checkpoint
    every          steps between validations
    selection      what the best checkpoint is the best of, in words
    trained_on     dataset, fold and classes, kept in the checkpoint
    base           the weights that checkpoints leave out; None: they hold all
    following      what to do with the finished run, as a command; {run} is its folder
    """

    verb: str
    model: nn.Module
    backbone: nn.Module
    make: Callable[[int], Any]
    collate: Callable[[list[Any]], Any]
    identify: Callable[[int], Mapping[str, Any]]
    epoch: int
    loss: Callable[[Any], dict[str, Tensor]]
    counts: Callable[[Any], dict[str, int]]
    draw: Callable[[Any], np.ndarray]
    validate: Callable[[int, Logger | None], dict[str, float]]
    every: int
    selection: str
    trained_on: dict[str, Any] = field(default_factory=dict)
    base: BaseWeights | None = None
    following: str = "fss-svf evaluate checkpoint={run}"


def fit(
    task: Task, config: TrainConfig | PretrainConfig, device: torch.device, out: Path, resumed: Any = None
) -> float:
    """Train to the recipe's last step, from the checkpoint content `resumed` where it is given; the best score.

    Every process of the job calls this. Writes out/checkpoints/{last,best}.pt, out/log.csv, what the logger writes (such as
    out/tensorboard) and, at the end, out/finished.json. Raises TrainingError, and Stopped after Ctrl+C, SIGTERM or SIGUSR1.
    """
    try:
        run = _Run(task, config, device, out, resumed)
        with StopSignal() as stop:
            run.to_the_end(stop)
    except OSError as error:
        saved = f", go on with resume={out}" if (out / "checkpoints" / "last.pt").exists() else ""
        raise TrainingError(f"{error.filename or out}: {error.strerror or error}; training ended{saved}") from error
    return run.best


class _Run:
    """A training between its first and its last step."""

    def __init__(
        self, task: Task, config: TrainConfig | PretrainConfig, device: torch.device, out: Path, resumed: Any
    ) -> None:
        self.task, self.config, self.device, self.out = task, config, device, out
        self.provenance = provenance()
        set_tf32(config.precision)
        recipe = config.recipe
        self.total = total_steps(recipe.epochs, recipe.max_steps, task.epoch, recipe.batch_size)
        self.optimizer = make_optimizer(task.model, task.backbone, recipe.optimizer)
        self.scaler = gradient_scaler(device, config.precision)
        self.step, self.best, self.validated = 0, -1.0, True
        if resumed is not None:
            self._go_on_from(resumed)
        shares = Shares(recipe.batch_size, config.accumulate, self.step, self.total)
        if distributed.rank() == 0:
            if resumed is None and (out / "checkpoints").exists():
                raise TrainingError(
                    f"{out}: holds a run already; go on with resume={out}, or choose another hydra.run.dir"
                )
            write_run_folder(out, config, {**task.trained_on, "processes": distributed.world()})
            (out / "finished.json").unlink(missing_ok=True)
        # The data, and with it the processes that load it, is at the place of the first step to do.
        make = task.make if config.overfit is None else Repeated(task.make, config.overfit)
        self.stream = batches(make, task.collate, shares, shares.part, config.workers, pin_memory=device.type == "cuda")
        task.model.train()
        self.make_step = Step(
            task.model,
            task.loss,
            task.counts,
            self.optimizer,
            config.seed,
            self.scaler,
            config.accumulate,
            recipe.clip_norm,
            partial(autocast, device, config.precision),
        )
        log.info("%s: %s", recipe.optimizer.name, describe(self.optimizer))

    def _go_on_from(self, resumed: Mapping[str, Any]) -> None:
        load_state(self.task.model, resumed["model"], "resume")
        load_optimizer(self.optimizer, resumed["optimizer"])
        # Checkpoints of before these have neither.
        if resumed.get("scaler"):
            self.scaler.load_state_dict(resumed["scaler"])
        self.validated = resumed.get("validated", True)
        self.step, self.best = resumed["step"], resumed["best"]
        log.info("resumed at step %d of %d", self.step, self.total)
        now, then = self.config.recipe, resumed["config"]["recipe"]
        before = total_steps(then["epochs"], then["max_steps"], self.task.epoch, then["batch_size"])
        if self.total > before:
            log.warning(
                "%d steps where it had %d: from here on the rates are those of a training of %d steps",
                *(self.total, before, self.total),
            )
        elif (now.max_steps, now.epochs) != (then["max_steps"], then["epochs"]):
            raise TrainingError(
                f"recipe.max_steps={now.max_steps}, recipe.epochs={now.epochs}: the training had {before} steps, and would "
                f"have {self.total}; resume goes on for more, so give more of both"
            )

    def to_the_end(self, stop: StopSignal) -> None:
        first = distributed.rank() == 0
        run = relative(self.out)
        log.info("run folder %s; Ctrl+C stops, 'fss-svf %s resume=%s' goes on", run, self.task.verb, run)
        writer = Curves(self.config, self.out, self.step, self.validated) if first else None
        finished = False
        wait = DataWait(in_steps(self.stream, self.config.accumulate), self.device)
        try:
            with (
                progress(self.total, self.task.verb, "step", self.step) as bar,
                profiled(self.config.profile, self.out) as profile_step,
                _searching_kernels(True),
            ):
                if writer is not None:
                    writer.begin(self.config, {"selection": self.task.selection, "run folder": str(self.out)})
                if not self.validated:
                    self._validate(writer, stop)
                for parts in wait:
                    if stop.requested():
                        self._stop(stop, writer)
                    self._draw(writer, parts)
                    self._one_step(parts)
                    profile_step()
                    bar.update()
                    logged = self._is_due(self.config.log_every)
                    if logged or self._saves():
                        # Beside this read the host waits for a GPU in torch.save and in a validation alone.
                        terms = self._read()
                    if logged:
                        self._log_step(writer, bar, terms, wait.read())
                    wait.pause(self._keep(writer, stop))
                if writer is not None:
                    writer.flush()
                finished = True
        finally:
            # Loader processes end here, not when the garbage is collected.
            self.stream.close()
            if writer is not None:
                with suppress(OSError):  # what went wrong before is to be told
                    writer.close(finished)
        if first:
            write_json(self.out / "finished.json", {"step": self.step, "score": self.best})
            if self.best < _NOTHING:
                log.warning(
                    "no validation found an object: the model predicts background everywhere; try pretrained weights "
                    "(backbone.weights), another recipe.optimizer.lr, or more steps"
                )
            log.info("finished: %s (best score %.4f); next: %s", run, self.best, self.task.following.format(run=run))

    def _one_step(self, parts: Sequence[Any]) -> None:
        set_rates(self.optimizer, self.config.recipe.schedule, self.step, self.total)
        try:
            self.make_step(self.step, parts, norms=self._is_due(self.config.log_every, self.step + 1))
        except LossNotFinite as error:
            raise TrainingError(self._not_finite(error)) from None
        if self.step == 0:
            require_gradients(self.task.model)
        self.step += 1

    def _read(self) -> dict[str, float]:
        """The terms of the last step. Raises TrainingError where a step since the last reading was not finite."""
        try:
            return self.make_step.read()
        except LossNotFinite as error:
            raise TrainingError(self._not_finite(error)) from None

    def _draw(self, writer: Curves | None, parts: Sequence[Any]) -> None:
        """The first batch of a new run as it is trained on: of several processes or parts, the first part."""
        if self.step == 0 and writer is not None and writer.logger is not None:
            # As one of step 1: what comes after a checkpoint of step 0 is drawn again.
            writer.logger.image("batch", self.task.draw(parts[0]), 1)

    def _is_due(self, every: int | None, step: int | None = None) -> bool:
        """Whether something that comes every so many steps, and after the last one, comes after this many; None: now."""
        step = self.step if step is None else step
        return every is not None and (step % every == 0 or step == self.total)

    def _saves(self) -> bool:
        """Whether a checkpoint is due."""
        return self._is_due(self.task.every) or self._is_due(self.config.save_every)

    def _log_step(
        self, writer: Curves | None, bar: Any, terms: Mapping[str, float], times: Mapping[str, float]
    ) -> None:
        if writer is None:
            return
        values = {f"loss/{name}": value for name, value in terms.items()}
        rates = {f"rate/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        norms = {f"grad_norm/{name}": value for name, value in self.make_step.read_norms().items()}
        row = {**values, **rates, **norms}
        writer.add_row(row, self.step)
        writer.add_scalars({**times, **peak_memory(self.device)}, self.step)
        log.info("step %d of %d: %s", self.step, self.total, _in_words(row), extra=IN_FILE)
        waited = f", data wait {times['time/data_wait_share']:.0%}" if times else ""
        bar.set_postfix_str(f"loss {sum(terms.values()):.3f}{waited}", refresh=False)

    def _keep(self, writer: Curves | None, stop: StopSignal) -> float:
        """Checkpoint and validation, where they are due; the seconds they took."""
        began = time.perf_counter()
        self.validated = not self._is_due(self.task.every)
        if self._saves():
            # Before the validation too: a kill in it does not lose a step.
            self._save("last", writer)
        if not self.validated:
            if stop.requested():
                self._stop(stop, writer)
            self._validate(writer, stop)
        return time.perf_counter() - began

    def _validate(self, writer: Curves | None, stop: StopSignal) -> None:
        stop.at_once = True  # nothing moves, and all is saved
        try:
            with _searching_kernels(False):
                scores = self.task.validate(self.step, None if writer is None else writer.logger)
        except Stopped:
            raise stop.stopped(self._stopped_by(stop)) from None
        finally:
            stop.at_once = False
        self.task.model.train()
        self.validated = True
        if writer is not None:
            writer.add_row(scores, self.step)
        if scores["score"] > self.best:
            self.best = scores["score"]
            self._save("best", writer)
        else:
            self._save("last", writer)

    def _save(self, name: str, writer: Curves | None = None) -> None:
        """Write the checkpoint of this name, the best one as the last one too."""
        if distributed.rank() > 0:
            return
        if writer is not None:
            writer.flush()  # what is drawn up to this step is not drawn again
        model, base = self.task.model, self.task.base
        weights = {"model": model.state_dict()} if base is None else base.split(model)
        content = {
            "verb": self.task.verb,
            "config": to_mapping(self.config),
            **weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Items and random numbers are functions of it: there is no other position, and no state of a generator.
            "step": self.step,
            "best": self.best,
            "validated": self.validated,
            "selection": self.task.selection if name == "best" else LAST_STEP,
            "trained_on": self.task.trained_on,
            "provenance": self.provenance,
            "plugins": plugins.records(modules_of(self.config)),
        }
        folder = self.out / "checkpoints"
        save_checkpoint(folder / f"{name}.pt", content)
        if name == "best":  # the same weights: one file under two names
            link_checkpoint(folder / "best.pt", folder / "last.pt")
        if name in ("best", "last"):
            keep_checkpoint(folder / "last.pt", self.step, self.config.keep)

    def _stop(self, stop: StopSignal, writer: Curves | None) -> None:
        self._read()
        self._save("last", writer)
        distributed.barrier()  # the first process that ends takes the others with it
        raise stop.stopped(self._stopped_by(stop))

    def _stopped_by(self, stop: StopSignal) -> str:
        by = "Ctrl+C" if stop.name == "SIGINT" else stop.name or "a signal to another process"
        return f"stopped by {by} after step {self.step} of {self.total}, which is saved; go on with resume={self.out}"

    def _not_finite(self, error: LossNotFinite) -> str:
        """The message of a loss that is not finite, after its items and the weights it came from are saved."""
        # A GPU was ahead of the host; what it did since then moved nothing.
        self.step = error.step
        set_rates(self.optimizer, self.config.recipe.schedule, self.step, self.total)
        size = self.config.recipe.batch_size
        numbers = [n % (self.config.overfit or n + 1) for n in range(self.step * size, (self.step + 1) * size)]
        if distributed.rank() == 0:
            losses = {number: self._loss_of(number) for number in numbers}
            items = [{"item": n, **self.task.identify(n), "loss": losses[n]} for n in numbers]
            write_json(self.out / "not_finite.json", {"step": self.step, "terms": str(error), "items": items})
            self._save("not_finite")
        distributed.barrier()  # the first process that ends takes the others with it
        return (
            f"the loss is not finite at step {self.step} ({error}), items {numbers[0]}..{numbers[-1]}; lower "
            "recipe.optimizer.lr, or resume from the last checkpoint; what the items are stands in "
            f"{self.out / 'not_finite.json'}"
        )

    @torch.no_grad()
    def _loss_of(self, number: int) -> str:
        """The loss of one item alone, as text: JSON knows no NaN."""
        self.task.model.eval()  # one image alone has no statistics for a BatchNorm that trains
        terms = self.task.loss(self.task.collate([self.task.make(number)]))
        return str(sum(float(term) for term in terms.values()))


def total_steps(epochs: int, max_steps: int | None, epoch: int, batch_size: int) -> int:
    """The steps of a training; epoch: its items."""
    total = max(1, epochs * epoch // batch_size)
    return min(total, max_steps or total)


@contextmanager
def _searching_kernels(enabled: bool) -> Iterator[None]:
    """Whether cuDNN times all its kernels at each new size. Crops have one size; the batches of a validation have many."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _in_words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def prepare(model: nn.Module, backbone: Backbone, config: TrainConfig | PretrainConfig, device: torch.device) -> None:
    """Bring the model to the device, in the memory format, and with the backbone run as `config` says."""
    place(model, device, config.channels_last)
    if config.recompute:
        backbone.recompute()
    if config.compile:
        compile_stages(backbone)
