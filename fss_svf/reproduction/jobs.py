"""The jobs of a table: base learners, trainings on them, evaluations of these, each in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config
from fss_svf.conf_files import conf_dir
from fss_svf.config import EvaluateConfig, PretrainConfig, ReproduceConfig, TrainConfig
from fss_svf.errors import ConfigError, FssError
from fss_svf.evaluation.records import has_records
from fss_svf.launch import VERBS
from fss_svf.messages import of_hydra
from fss_svf.overrides import given, key_of
from fss_svf.resume import holds
from fss_svf.run_folder import register_resolvers

_BASE = "@base"
_PRETRAIN_KEYS = {f.name for f in fields(PretrainConfig)}


@dataclass(frozen=True, eq=False)
class Job:
    """One command.

    group  the line of the plan that it belongs to
    needs  what must be finished before: the base learner of a training, the training of an evaluation
    """

    verb: str
    group: str
    folder: Path
    overrides: tuple[str, ...]
    config: PretrainConfig | TrainConfig | EvaluateConfig
    needs: Job | None = None

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def kind(self) -> str:
        """The name without fold and seed: jobs of one kind take about the same time."""
        return re.sub(r"-(fold(\d+|all)|seed\d+)", "", self.name)

    @property
    def done(self) -> bool:
        """Raises ConfigError where the folder holds a run of another config."""
        holds(self.config, self.folder, "move it away, or choose another name=")
        if isinstance(self.config, EvaluateConfig):
            shots = self.config.shots
            folders = [self.folder / f"{shot}shot" for shot in shots] if len(shots) > 1 else [self.folder]
            return all((folder / "result.json").exists() for folder in folders)
        return (self.folder / "finished.json").exists()

    def command(self) -> list[str]:
        """Arguments of fss-svf that begin the job, or go on with it."""
        if isinstance(self.config, EvaluateConfig) and has_records(self.folder):
            machine = [o for o in self.overrides if key_of(o) in config.MACHINE]
            return [self.verb, given("resume", self.folder), *machine]
        resume = [] if isinstance(self.config, EvaluateConfig) else ["resume=auto"]
        return [self.verb, *self.overrides, given("hydra.run.dir", self.folder), *resume]


def make_jobs(wanted: ReproduceConfig, out: Path) -> list[Job]:
    """The jobs of the rows that are wanted, each after what it needs. Raises ConfigError naming the row."""
    rows = {name: row for name, row in wanted.table.rows.items() if set(wanted.only) <= set(name.split("-"))}
    if not rows:
        words = sorted({word for name in wanted.table.rows for word in name.split("-")})
        raise ConfigError(f"only={list(wanted.only)}: no row has all of it in its name; there are {', '.join(words)}")
    for override in wanted.overrides:
        if (key := key_of(override)) in ("fold", "shot", "seed"):
            raise ConfigError(f"{override}: every cell of the table has its own; choose them by table.{key}s=[...]")
    grid = _Grid(wanted, out.absolute())
    jobs = [job for name, row in rows.items() for job in grid.row(name, row)]
    return [*grid.bases.values(), *jobs]


class _Grid:
    """Hydra composes a row once, which takes a tenth of a second; each cell sets its own values before they resolve."""

    def __init__(self, wanted: ReproduceConfig, out: Path) -> None:
        plugins = (f"plugins=[{','.join(wanted.plugins)}]",) if wanted.plugins else ()
        self.table, self.overrides, self.out = wanted.table, (*plugins, *wanted.overrides), out
        self.bases: dict[str, Job] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def row(self, name: str, row: str) -> Iterator[Job]:
        each = self.table.train_shot == "each"
        for seed, fold in product(self.table.seeds, self.table.folds):
            for shot in self.table.shots if each else (self.table.train_shot,):
                train = self._training(name, row.split(), {"fold": fold, "shot": shot, "seed": seed})
                yield train
                for test, dataset in (self.table.tests or {"": ""}).items():
                    yield self._evaluation(train, (shot,) if each else self.table.shots, test, dataset.split())

    def _training(self, name: str, row: Sequence[str], cell: Mapping[str, object]) -> Job:
        later = (*self.table.train, *self.overrides)
        overrides = (*(o for o in row if _BASE not in o), *later)
        replaced = {key_of(override) for override in later}
        of_base = {key_of(o): o.partition("=")[2] for o in row if _BASE in o and key_of(o) not in replaced}
        base = None
        if of_base:
            with _naming(name, "train"):
                backbone = self._compose("train", overrides).backbone.name
            base = self._base_learner(backbone, cell["fold"], name)
            cell = {**cell, **{key: value.replace(_BASE, str(base.folder)) for key, value in of_base.items()}}
        folder = self.out / "train" / f"{name}-fold{cell['fold']}-{cell['shot']}shot-seed{cell['seed']}"
        return self._job("train", name, folder, overrides, cell, base)

    def _base_learner(self, backbone: str, fold: object, row: str) -> Job:
        if backbone not in self.table.base_learners:
            raise ConfigError(f"table.base_learners: none for {backbone}, which row {row} asks for by {_BASE}")
        name = f"{backbone}-fold{fold}"
        if name not in self.bases:
            also = (o for o in self.overrides if key_of(o).split(".")[0] in _PRETRAIN_KEYS)
            overrides = (*self.table.base_learners[backbone].split(), *also)
            folder = self.out / "pretrain" / name
            self.bases[name] = self._job("pretrain", f"base_learners.{backbone}", folder, overrides, {"fold": fold})
        return self.bases[name]

    def _evaluation(self, train: Job, shots: tuple[object, ...], test: str, dataset: Sequence[str]) -> Job:
        shot = f"shot={shots[0]}" if len(shots) == 1 else f"shot=[{','.join(map(str, shots))}]"
        machine = (o for o in self.overrides if key_of(o) in ("device", "workers", "plugins"))
        best = self.table.checkpoint == "best"
        cell = {"checkpoint": train.folder / "checkpoints" / "best.pt" if best else train.folder}
        folder = self.out / "evaluate" / (f"{train.folder.name}-{test}" if test else train.folder.name)
        return self._job("evaluate", train.group, folder, (shot, *dataset, *self.table.evaluate, *machine), cell, train)

    def _job(
        self,
        verb: str,
        group: str,
        folder: Path,
        overrides: tuple[str, ...],
        cell: Mapping[str, object],
        needs: Job | None = None,
    ) -> Job:
        """overrides: those that the jobs of a row share; cell: values of further keys, of this job alone."""
        with _naming(group, verb):
            composed = self._compose(verb, overrides)
            for key, value in cell.items():
                text = str(value).replace("${", "\\${")  # letters of a folder, no interpolation
                OmegaConf.update(composed, key, value if isinstance(value, int) else text)
            values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            checked: Any = config.from_mapping(VERBS[verb].config, values)
        own = (given(key, value) for key, value in cell.items())
        return Job(verb, group, folder, (*overrides, *own), checked, needs)

    def _compose(self, verb: str, overrides: tuple[str, ...]) -> DictConfig:
        key = (verb, *overrides)
        if key not in self._composed:
            register_resolvers()
            inside = GlobalHydra.instance().is_initialized()  # as the verb itself runs
            with nullcontext() if inside else hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                self._composed[key] = hydra.compose(verb, list(overrides))
        return self._composed[key]


@contextmanager
def _naming(row: str, verb: str) -> Iterator[None]:
    """An error of a config becomes a ConfigError that names the row."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"row {row}: {of_hydra(error, verb)}") from None
    except FssError as error:
        raise ConfigError(f"row {row}: {error}") from None
