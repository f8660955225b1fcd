"""One command of a table, with its run folder: whether it is done, and how it begins or goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fss_svf import config
from fss_svf.config import EvaluateConfig, PretrainConfig, TrainConfig
from fss_svf.evaluation.records import has_records
from fss_svf.evaluation.untrained import choose
from fss_svf.overrides import given, key_of
from fss_svf.registry import DATASETS, Choice
from fss_svf.resume import holds


@dataclass(frozen=True, eq=False)
class Job:
    """One command.

    group      the line of the plan that it belongs to
    needs      what must be finished before: the base learner of a training, the training of an evaluation
    rate       the candidate that it tries; None: it is no such training
    undecided  its rate is not chosen yet: its config is that of the first candidate
    """

    verb: str
    group: str
    folder: Path
    overrides: tuple[str, ...]
    config: PretrainConfig | TrainConfig | EvaluateConfig
    needs: Job | None = None
    rate: float | None = None
    undecided: bool = False

    @property
    def stage(self) -> str:
        """pretrain, choose, train or evaluate."""
        return self.folder.parent.name

    @property
    def waits(self) -> bool:
        """Whether it cannot run before a rate is chosen."""
        return self.undecided or (self.needs is not None and self.needs.waits)

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def kind(self) -> str:
        """The name without fold, seed and rate: jobs of one kind take about the same time."""
        name = self.name if self.rate is None else self.name.removesuffix(f"-rate{self.rate}")
        return re.sub(r"-(fold(\d+|all)|seed\d+)", "", name)

    @property
    def done(self) -> bool:
        """Raises ConfigError where the folder holds a run of another config."""
        if self.waits:
            return False
        holds(self.config, self.folder, "move it away, or choose another name=", self.dataset)
        if isinstance(self.config, EvaluateConfig):
            shots = self.config.shots
            folders = [self.folder / f"{shot}shot" for shot in shots] if len(shots) > 1 else [self.folder]
            return all((folder / "result.json").exists() for folder in folders)
        # A rate at which the loss is not finite is tried: it is not the best.
        ends = ("finished.json",) if self.rate is None else ("finished.json", "not_finite.json")
        return any((self.folder / end).exists() for end in ends)

    @property
    def dataset(self) -> Choice:
        """Whose data it reads."""
        if not isinstance(self.config, EvaluateConfig):
            return self.config.dataset
        if "name" in self.config.dataset:
            return choose(DATASETS, self.config.dataset)
        assert self.needs is not None  # an evaluation of a checkpoint
        return self.needs.dataset

    def command(self) -> list[str]:
        """Arguments of fss-svf that begin the job, or go on with it."""
        if isinstance(self.config, EvaluateConfig) and has_records(self.folder):
            may_change = (*config.MACHINE, *(("dataset.root", "dataset.prepared") if self.needs else ()))
            return [self.verb, given("resume", self.folder), *(o for o in self.overrides if key_of(o) in may_change)]
        resume = [] if isinstance(self.config, EvaluateConfig) else ["resume=auto"]
        return [self.verb, *self.overrides, given("hydra.run.dir", self.folder), *resume]
