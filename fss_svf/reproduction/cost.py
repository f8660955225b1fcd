"""What jobs cost, before they run: operations of the backbone, which is most of them, by PyTorch's own counter."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fss_svf.config import EvaluateConfig, PretrainConfig, TrainConfig
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import make_sampler
from fss_svf.errors import DataError
from fss_svf.files import appearing_whole
from fss_svf.model import build_backbone, trainable_values, without_weights
from fss_svf.registry import DATASETS, TUNINGS, Choice
from fss_svf.reproduction.jobs import Job
from fss_svf.training.selection import make_selection

# A backward costs two forwards: the gradient of what comes in, and that of the weights.
_TRAINED = 3


class Costs:
    """Steps and operations of jobs. Reads the index of their dataset: raises DataError where it is not prepared."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def steps(self, job: Job) -> int:
        """Steps of a training; 0 of an evaluation."""
        if isinstance(job.config, EvaluateConfig):
            return 0
        recipe = job.config.recipe
        total = max(1, recipe.epochs * self._images(job.config)[0] // recipe.batch_size)
        return min(total, recipe.max_steps or total)

    def operations(self, job: Job) -> float:
        """Floating-point operations of the backbone: forward, and backward where it trains. The head's are not in it."""
        if isinstance(job.config, EvaluateConfig):
            assert job.needs is not None
            assert isinstance(job.needs.config, TrainConfig)
            trained, protocol = job.needs.config, job.config.protocol
            drawn = protocol.episodes * protocol.runs * (1 + max(job.config.shots))
            size = job.config.size or protocol.size or trained.recipe.tested_at
            # Every image is encoded once.
            return min(drawn, self._images(trained)[1]) * self._once(forward, trained.backbone, size)
        images, of_an_image = self.steps(job) * job.config.recipe.batch_size, _TRAINED
        if isinstance(job.config, TrainConfig):
            images *= 1 + job.config.way * job.config.shot
            of_an_image = _TRAINED if self._once(trains, job.config.backbone, job.config.tuning) else 1
        return images * of_an_image * self._once(forward, job.config.backbone, job.config.recipe.size)

    def _images(self, config: PretrainConfig | TrainConfig) -> tuple[int, int]:
        """How many images a training shows in an epoch, and how many its evaluation lists."""
        dataset = self._once(DATASETS.build, config.dataset)
        # What else the config holds changes no list.
        key = (config.dataset, config.fold, *(getattr(config, name, None) for name in ("shot", "way", "validate")))
        return self._once(lambda *_: listed(config, dataset), *key)

    def _once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), computed at the first call with these. Their text is the key, as options may hold lists."""
        key = f"{function.__qualname__} {arguments}"
        if key not in self._known:
            self._known[key] = function(*arguments)
        return self._known[key]


def listed(config: PretrainConfig | TrainConfig, dataset: Dataset) -> tuple[int, int]:
    """Images of an epoch of the training, and of the fold's list of queries (0 for a base learner)."""
    train, val = dataset.split("train").index, dataset.split("val").index
    if isinstance(config, TrainConfig):
        training = make_selection(config, dataset.options, train, val).training
        # Whatever chooses best.pt, an evaluation is of the novel classes.
        novel = replace(config, validate=replace(config.validate, selection="novel", held_out=None))
        return len(training), len(make_selection(novel, dataset.options, train, val).validating)
    return len(make_sampler(train, dataset.options, config.fold, "train", 0, config.seed, "shuffled_epochs")), 0


def forward(backbone: Choice, size: int) -> float:
    """Operations of a forward of one image of size x size pixels through all stages. Nothing is computed."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net, _ = build_backbone(without_weights(backbone))
        net(torch.empty(1, 3, size, size))
    return float(counter.get_total_flops())


def trains(backbone: Choice, tuning: Choice) -> bool:
    """Whether the tuning leaves anything of the backbone to train."""
    with torch.device("meta"):
        net, _ = build_backbone(without_weights(backbone))
        TUNINGS.build(without_weights(tuning), net)
    return trainable_values(net) > 0


class Clock:
    """The seconds that jobs took, in a file: what the machine reaches, for the estimate of the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise DataError(f"{path}: not readable ({error}); delete it, only the estimate of hours needs it") from None

    def add(self, job: Job, seconds: float) -> None:
        """Of a job that was ended and goes on, the sum."""
        self.seconds[job.name] = self.seconds.get(job.name, 0) + seconds
        with appearing_whole(self.path) as unfinished:
            unfinished.write_text(json.dumps(self.seconds, indent=1))

    def speed(self, finished: Sequence[Job], costs: Costs) -> float | None:
        """Operations a second of the finished jobs that were timed here; None without one."""
        timed = [job for job in finished if job.name in self.seconds]
        seconds = sum(self.seconds[job.name] for job in timed)
        return sum(map(costs.operations, timed)) / seconds if seconds else None
