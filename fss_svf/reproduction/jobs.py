"""The jobs of a table: base learners, trainings that choose rates, trainings, evaluations, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
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
from fss_svf.config import PretrainConfig, ReproduceConfig, Row
from fss_svf.errors import ConfigError, FssError
from fss_svf.launch import VERBS
from fss_svf.messages import of_hydra
from fss_svf.overrides import given, key_of
from fss_svf.reproduction.choosing import chosen
from fss_svf.reproduction.job import Job
from fss_svf.reproduction.untrained import as_it_is, nothing_trains
from fss_svf.run_folder import register_resolvers

_BASE = "@base"
_PRETRAIN_KEYS = {f.name for f in fields(PretrainConfig)}


def make_jobs(wanted: ReproduceConfig, out: Path) -> list[Job]:
    """The jobs of the rows that are wanted, each after what it needs. Raises ConfigError naming the row.

    Where a rate is to be chosen, and its candidates are not all done, the row's trainings and evaluations wait (Job.waits).
    """
    rows = {name: wanted.table.row(name) for name in wanted.table.rows if set(wanted.only) <= set(name.split("-"))}
    if not rows:
        words = sorted({word for name in wanted.table.rows for word in name.split("-")})
        raise ConfigError(f"only={list(wanted.only)}: no row has all of it in its name; there are {', '.join(words)}")
    for override in wanted.overrides:
        if (key := key_of(override)) in ("fold", "shot", "seed"):
            raise ConfigError(f"{override}: every cell of the table has its own; choose them by table.{key}s=[...]")
    grid = _Grid(wanted, out.absolute())
    jobs = []
    for name, row in rows.items():
        of_row = list(grid.row(name, row))
        jobs += [*grid.candidates_of(name), *of_row]
    if not jobs:
        table = wanted.table
        raise ConfigError(
            f"table.folds={list(table.folds)}, table.seeds={list(table.seeds)}: no wanted row has one of these folds and "
            f"seeds; rows are {', '.join(rows)}"
        )
    return [*grid.bases.values(), *jobs]


class _Grid:
    """Hydra composes a row once, which takes a tenth of a second; each cell sets its own values before they resolve."""

    def __init__(self, wanted: ReproduceConfig, out: Path) -> None:
        plugins = (f"plugins=[{','.join(wanted.plugins)}]",) if wanted.plugins else ()
        self.table, self.overrides, self.out = wanted.table, (*plugins, *wanted.overrides), out
        self.bases: dict[str, Job] = {}
        self.candidates: dict[tuple[str, object, object], dict[float, Job]] = {}  # by row, fold and shot; by rate
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def row(self, name: str, row: Row) -> Iterator[Job]:
        each = self.table.train_shot == "each"
        folds = [fold for fold in self.table.folds if row.folds is None or fold in row.folds]
        seeds = [seed for seed in self.table.seeds if row.seeds is None or seed in row.seeds]
        with _naming(name, "train"):
            overrides = (*(o for o in row.train.split() if _BASE not in o), *self.table.train, *self.overrides)
            untrained = nothing_trains(self._compose("train", overrides))
        if untrained:
            if row.rates:
                raise ConfigError(
                    f"row {name}: has rates, and nothing that trains (tuning=frozen, no head); leave them out"
                )
            yield from self._untrained(name, overrides, folds if seeds else [])
            return
        for seed, fold in product(seeds, folds):
            for shot in self.table.shots if each else (self.table.train_shot,):
                cell: dict[str, object] = {"fold": fold, "shot": shot, "seed": seed}
                undecided = False
                if row.rates:
                    rate = chosen(self._choosing(name, row, fold, shot), self.table.checkpoint)
                    undecided = rate is None
                    cell |= dict.fromkeys(self._rate_keys(row), row.rates[0] if rate is None else rate)
                train = self._training("train", name, row.train.split(), cell, undecided=undecided)
                yield train
                for test, dataset in (self.table.tests or {"": ""}).items():
                    yield self._evaluation(train, (shot,) if each else self.table.shots, test, dataset.split())

    def _choosing(self, name: str, row: Row, fold: object, shot: object) -> dict[float, Job]:
        """The trainings of a row's candidates, by rate: for its fold, or those of the fold that chooses for all."""
        choose = self.table.choose
        assert choose is not None  # as the table checks
        of = fold if choose.fold == "each" else choose.fold
        if (name, of, shot) not in self.candidates:
            cells = {
                rate: {"fold": of, "shot": shot, "seed": choose.seed, **dict.fromkeys(self._rate_keys(row), rate)}
                for rate in row.rates
            }
            self.candidates[name, of, shot] = {
                rate: self._training("choose", name, row.train.split(), cell, choose.train, rate)
                for rate, cell in cells.items()
            }
        return self.candidates[name, of, shot]

    def candidates_of(self, row: str) -> list[Job]:
        """The trainings of candidates that the row's jobs wait for."""
        return [job for (name, _, _), jobs in self.candidates.items() if name == row for job in jobs.values()]

    def _rate_keys(self, row: Row) -> tuple[str, ...]:
        assert self.table.choose is not None
        return row.rate or self.table.choose.rate

    def _training(
        self,
        stage: str,
        name: str,
        row: Sequence[str],
        cell: Mapping[str, object],
        more: Sequence[str] = (),
        rate: float | None = None,
        undecided: bool = False,
    ) -> Job:
        """more: further overrides of this stage, between the table's and those of the command line."""
        later = (*self.table.train, *more, *self.overrides)
        overrides = (*(o for o in row if _BASE not in o), *later)
        replaced = {key_of(override) for override in later}
        of_base = {key_of(o): o.partition("=")[2] for o in row if _BASE in o and key_of(o) not in replaced}
        base = None
        if of_base:
            with _naming(name, "train"):
                backbone = self._compose("train", overrides).backbone.name
            base = self._base_learner(backbone, cell["fold"], name)
            cell = {**cell, **{key: value.replace(_BASE, str(base.folder)) for key, value in of_base.items()}}
        tried = "" if rate is None else f"-rate{rate}"
        folder = self.out / stage / f"{name}-fold{cell['fold']}-{cell['shot']}shot-seed{cell['seed']}{tried}"
        return self._job("train", name, folder, overrides, cell, base, rate, undecided)

    def _untrained(self, name: str, train: tuple[str, ...], folds: Sequence[object]) -> Iterator[Job]:
        """Evaluations of a row in which nothing trains: one for all seeds."""
        with _naming(name, "evaluate"):
            subject = as_it_is(self._compose("train", train), lambda names: self._compose("evaluate", names))
        for fold, (test, dataset) in product(folds, (self.table.tests or {"": ""}).items()):
            folder = self.out / "evaluate" / f"{name}-fold{fold}{f'-{test}' if test else ''}"
            elsewhere = any(key_of(o) == "dataset" for o in dataset.split())
            own = [o for o in subject if not (elsewhere and key_of(o).split(".")[0] == "dataset")]
            overrides = (self._shots(self.table.shots), *own, *dataset.split(), *self.table.evaluate, *self._machine())
            yield self._job("evaluate", name, folder, overrides, {"fold": fold})

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
        best = self.table.checkpoint == "best"
        cell: dict[str, object] = {"checkpoint": train.folder / "checkpoints" / "best.pt" if best else train.folder}
        if not any(key_of(o) == "dataset" for o in dataset):
            # A training of another machine had its data elsewhere.
            cell |= {f"dataset.{key}": getattr(train.dataset.options, key) for key in ("root", "prepared")}
        folder = self.out / "evaluate" / (f"{train.folder.name}-{test}" if test else train.folder.name)
        overrides = (self._shots(shots), *dataset, *self.table.evaluate, *self._machine())
        return self._job("evaluate", train.group, folder, overrides, cell, train)

    def _shots(self, shots: Sequence[object]) -> str:
        return f"shot={shots[0]}" if len(shots) == 1 else f"shot=[{','.join(map(str, shots))}]"

    def _machine(self) -> list[str]:
        """Arguments of the command line that evaluations take too."""
        return [o for o in self.overrides if key_of(o) in ("device", "workers", "plugins")]

    def _job(
        self,
        verb: str,
        group: str,
        folder: Path,
        overrides: tuple[str, ...],
        cell: Mapping[str, object],
        needs: Job | None = None,
        rate: float | None = None,
        undecided: bool = False,
    ) -> Job:
        """overrides: those that the jobs of a row share; cell: values of further keys, of this job alone."""
        with _naming(group, verb):
            composed = self._compose(verb, overrides)
            for key, value in cell.items():
                text = str(value).replace("${", "\\${")  # letters of a folder, no interpolation
                OmegaConf.update(composed, key, value if isinstance(value, (int, float)) else text)
            values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            checked: Any = config.from_mapping(VERBS[verb].config, values)
        own = (given(key, value) for key, value in cell.items())
        return Job(verb, group, folder, (*overrides, *own), checked, needs, rate, undecided)

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
