"""The training loop that pretraining and meta-training share. Killed and resumed equals never killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from fss_svf.backbones.weights import LoadReport
from fss_svf.checkpoint import save_checkpoint
from fss_svf.config import PretrainConfig, TrainConfig, to_mapping
from fss_svf.console import progress
from fss_svf.data.index import Index
from fss_svf.data.loading import batches
from fss_svf.errors import DataError, TrainingError
from fss_svf.model import load_state
from fss_svf.provenance import write_json, write_run_folder
from fss_svf.training.optim import describe, make_optimizer, require_gradients, set_rates

log = logging.getLogger(__name__)


@dataclass
class Task:
    """What differs between the verbs that train.

    make, collate  how item number n and a batch are made
    epoch          items an epoch
    loss           batch (on the CPU) to loss terms, summed for the backward
    validate       step and writer to scores; the one called `score` chooses the best checkpoint
    every          steps between validations
    selection      what the best checkpoint is the best of, in words
    trained_on     dataset, fold and classes, kept in the checkpoint
    """

    verb: str
    model: nn.Module
    backbone: nn.Module
    make: Callable[[int], Any]
    collate: Callable[[list[Any]], Any]
    epoch: int
    loss: Callable[[Any], dict[str, Tensor]]
    validate: Callable[[int, SummaryWriter], dict[str, float]]
    every: int
    selection: str
    trained_on: dict[str, Any] = field(default_factory=dict)


def fit(
    task: Task, config: TrainConfig | PretrainConfig, device: torch.device, out: Path, resumed: Any = None
) -> float:
    """Train to the recipe's last step, from the checkpoint content `resumed` where it is given; the best score.

    Writes out/checkpoints/{last,best}.pt and out/tensorboard. Raises TrainingError.
    """
    if resumed is None and (out / "checkpoints").exists():
        raise TrainingError(f"{out}: holds a run already; go on with resume={out}, or choose another hydra.run.dir")
    write_run_folder(out, config, task.trained_on)
    recipe, model = config.recipe, task.model
    total = max(1, recipe.epochs * task.epoch // recipe.batch_size)
    total = min(total, recipe.max_steps or total)
    optimizer = make_optimizer(model, task.backbone, recipe.optimizer)
    step, best = 0, -1.0
    if resumed is not None:
        load_state(model, resumed["model"], "resume")
        optimizer.load_state_dict(resumed["optimizer"])
        torch.set_rng_state(resumed["rng"])
        if device.type == "cuda" and resumed["cuda_rng"] is not None:
            torch.cuda.set_rng_state(resumed["cuda_rng"], device)
        step, best = resumed["step"], resumed["best"]
        log.info("resumed at step %d of %d", step, total)
    log.info("%s: %s", recipe.optimizer.name, describe(optimizer))

    def save(name: str) -> None:
        content = {
            "verb": task.verb,
            "config": to_mapping(config),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "step": step,
            "best": best,
            "selection": task.selection if name == "best" else "last step",
            "trained_on": task.trained_on,
        }
        save_checkpoint(out / "checkpoints" / f"{name}.pt", content)

    numbers = range(step * recipe.batch_size, total * recipe.batch_size)
    stream = batches(task.make, task.collate, numbers, recipe.batch_size, config.workers, device.type == "cuda")
    model.train()
    with (
        SummaryWriter(str(out / "tensorboard"), purge_step=step) as writer,
        progress(total, task.verb, "step", step) as bar,
    ):
        writer.add_text("selection", task.selection, step)
        waiting = time.perf_counter()
        for batch in stream:
            waited = time.perf_counter() - waiting
            set_rates(optimizer, recipe.schedule, step, total)
            terms = task.loss(batch)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise TrainingError(_not_finite(terms, step, recipe.batch_size))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if step == 0:
                require_gradients(model)
            optimizer.step()
            step += 1
            if step % config.log_every == 0 or step == total:
                values = {f"loss/{name}": float(term.detach()) for name, term in terms.items()}
                rates = {f"rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
                write_scalars(writer, {**values, **rates, "seconds/data_wait": waited}, step)
                bar.set_postfix_str(f"loss {float(loss.detach()):.3f}", refresh=False)
            bar.update()
            if step % task.every == 0 or step == total:
                scores = task.validate(step, writer)
                model.train()
                write_scalars(writer, scores, step)
                if scores["score"] > best:
                    best = scores["score"]
                    save("best")
                save("last")
            waiting = time.perf_counter()
    write_json(out / "finished.json", {"step": step, "score": best})
    return best


def seen_in_training(
    config: TrainConfig | PretrainConfig,
    index: Index,
    classes: Sequence[int],
    weights: LoadReport,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint remembers of its data: its classes, then those its starting weights and `others` had seen."""
    own = [index.class_name(c) for c in classes]
    earlier = {name for seen in (weights.trained_on, others) for name in (seen or {}).get("classes", ())}
    return {
        "dataset": config.dataset.name,
        "fold": config.fold,
        "classes": own + sorted(earlier - set(own)),
        "index": index.hash,
        "backbone_weights": weights.label,
    }


def check_same_data(resumed: Mapping[str, Any], index_hash: str) -> None:
    """Raise DataError when the training images are not those that the checkpoint's run began with."""
    began_with = resumed["trained_on"]["index"]
    if began_with != index_hash:
        raise DataError(
            f"resume: the run began on an index {began_with}, the dataset has {index_hash} now, so its episodes would be "
            "others; restore the data, or start a new run"
        )


def write_scalars(writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
    """One TensorBoard scalar an entry."""
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def _not_finite(terms: Mapping[str, Tensor], step: int, batch_size: int) -> str:
    values = ", ".join(f"{name} {float(term.detach())}" for name, term in terms.items())
    first = step * batch_size
    return (
        f"the loss is not finite at step {step} ({values}), items {first}..{first + batch_size - 1}; lower "
        "recipe.optimizer.lr, or resume from the last checkpoint"
    )
