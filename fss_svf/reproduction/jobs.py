"""The jobs of a table: base learners, trainings on them, evaluations of these, each in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config
from fss_svf.cli import VERBS
from fss_svf.config import EvaluateConfig, PretrainConfig, ReproduceConfig, TrainConfig
from fss_svf.errors import ConfigError, FssError
from fss_svf.evaluation.records import has_records
from fss_svf.messages import of_hydra
from fss_svf.overrides import conf_dir, given, is_plain
from fss_svf.run_folder import recorded, register_resolvers

_BASE = "@base"
_NUMBERS = ("@fold", "@shot", "@seed")
_OF_CELL = ("fold", "shot", "seed")
_PRETRAIN_KEYS = {f.name for f in fields(PretrainConfig)}


@dataclass(frozen=True)
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
    def done(self) -> bool:
        """Raises ConfigError where the folder holds a run of another config."""
        then = recorded(type(self.config), self.folder)
        others = config.differing(then, self.config) if then is not None else []
        if others:
            raise ConfigError(
                f"{self.folder}: holds a run with another {', '.join(others)}; move it away, or choose another name="
            )
        if isinstance(self.config, EvaluateConfig):
            shots = self.config.shots
            folders = [self.folder / f"{shot}shot" for shot in shots] if len(shots) > 1 else [self.folder]
            return all((folder / "result.json").exists() for folder in folders)
        return (self.folder / "finished.json").exists()

    def command(self) -> list[str]:
        """Arguments of fss-svf that begin the job, or go on with it."""
        if isinstance(self.config, EvaluateConfig) and has_records(self.folder):
            machine = [o for o in self.overrides if o.split("=")[0] in config.MACHINE]
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
        key = override.lstrip("+~").split("=")[0]
        if key in _OF_CELL:
            raise ConfigError(f"{override}: every cell of the table has its own; choose them by table.{key}s=[...]")
    grid = _Grid(wanted, out.absolute())
    jobs = [job for name, row in rows.items() for job in grid.row(name, row)]
    return [*grid.bases.values(), *jobs]


class _Grid:
    """Composes a row once: Hydra takes a tenth of a second for it, and a table has hundreds of jobs.

    Words in the place of what differs from cell to cell (@fold, @shot, @seed, @run, @base) are filled in afterwards.
    """

    def __init__(self, wanted: ReproduceConfig, out: Path) -> None:
        self.table, self.overrides, self.out = wanted.table, wanted.overrides, out
        self.bases: dict[str, Job] = {}
        self._composed: dict[tuple[str, ...], str] = {}

    def row(self, name: str, row: str) -> Iterator[Job]:
        each = self.table.train_shot == "each"
        for seed in self.table.seeds:
            for fold in self.table.folds:
                for shot in self.table.shots if each else (self.table.train_shot,):
                    cell = f"{name}-fold{fold}-{shot}shot-seed{seed}"
                    train = self._training(
                        name, row, cell, {"@fold": f"{fold}", "@shot": f"{shot}", "@seed": f"{seed}"}
                    )
                    yield train
                    yield self._evaluation(train, (shot,) if each else self.table.shots)

    def _training(self, name: str, row: str, cell: str, filled: dict[str, str]) -> Job:
        overrides = (
            *row.split(),
            *self.table.train,
            "fold=@fold",
            "shot=@shot",
            "seed=@seed",
            *self.overrides,
        )
        base = None
        if _BASE in row:
            training = self._config("train", overrides, name, {**filled, _BASE: "base"})
            assert isinstance(training, TrainConfig)
            base = self._base_learner(training.backbone.name, filled, name)
            filled = {**filled, _BASE: str(base.folder)}
        checked = self._config("train", overrides, name, filled)
        return Job("train", name, self.out / "train" / cell, _filled(overrides, filled), checked, base)

    def _base_learner(self, backbone: str, filled: dict[str, str], row: str) -> Job:
        if backbone not in self.table.base_learners:
            raise ConfigError(f"table.base_learners: none for {backbone}, which row {row} asks for by {_BASE}")
        name = f"{backbone}-fold{filled['@fold']}"
        if name not in self.bases:
            also = (o for o in self.overrides if o.lstrip("+~").split("=")[0].split(".")[0] in _PRETRAIN_KEYS)
            overrides = (*self.table.base_learners[backbone].split(), "fold=@fold", *also)
            checked = self._config("pretrain", overrides, f"base_learners.{backbone}", filled)
            group, folder = f"base learners {backbone}", self.out / "pretrain" / name
            self.bases[name] = Job("pretrain", group, folder, _filled(overrides, filled), checked)
        return self.bases[name]

    def _evaluation(self, train: Job, shots: tuple[object, ...]) -> Job:
        shot = f"shot={shots[0]}" if len(shots) == 1 else f"shot=[{','.join(map(str, shots))}]"
        machine = (o for o in self.overrides if o.split("=")[0] in ("device", "workers"))
        # The run's name is made of the last two folders.
        run, last = f"/{train.folder.parent.name}/@run", self.table.checkpoint == "last"
        overrides = (f"checkpoint={run}{'' if last else '/checkpoints/best.pt'}", shot, *self.table.evaluate, *machine)
        filled = {run: str(train.folder), "@run": train.folder.name}
        checked = self._config("evaluate", overrides, train.group, filled)
        folder = self.out / "evaluate" / train.folder.name
        return Job("evaluate", train.group, folder, _filled(overrides, filled), checked, train)

    def _config(
        self, verb: str, overrides: tuple[str, ...], row: str, filled: Mapping[str, str]
    ) -> PretrainConfig | TrainConfig | EvaluateConfig:
        """Raises ConfigError naming the row."""
        try:
            key = (verb, *overrides)
            if key not in self._composed:
                self._composed[key] = _compose(verb, overrides)
            text = self._composed[key]
            for word in _NUMBERS:
                text = text.replace(f'"{word}"', filled.get(word, ""))
            values = json.loads(_fill(text, {word: json.dumps(value)[1:-1] for word, value in filled.items()}))
            return config.from_mapping(getattr(config, VERBS[verb][0]), values)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"row {row}: {of_hydra(error, verb)}") from None
        except FssError as error:
            raise ConfigError(f"row {row}: {error}") from None


def _fill(text: str, filled: Mapping[str, str]) -> str:
    """`text` with values in the place of words, longer words first."""
    for word in sorted(filled, key=len, reverse=True):
        text = text.replace(word, filled[word])
    return text


def _filled(overrides: Iterable[str], filled: Mapping[str, str]) -> tuple[str, ...]:
    """Overrides of one cell; a value that was plain before is one value still, whatever letters a folder has."""
    texts = []
    for override in overrides:
        key, equals, value = override.partition("=")
        plain = equals and is_plain(value)
        texts.append(given(key, _fill(value, filled)) if plain else _fill(override, filled))
    return tuple(texts)


def _compose(verb: str, overrides: Sequence[str]) -> str:
    """The config of a command as JSON."""
    register_resolvers()
    inside = GlobalHydra.instance().is_initialized()  # as the verb itself runs
    with nullcontext() if inside else hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose(verb, list(overrides))
    return json.dumps(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
