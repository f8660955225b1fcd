"""`fss-svf VERB key=value ...`: each verb is a Hydra application with its own config."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import __version__, config
from fss_svf.errors import ConfigError, FssError, did_you_mean

log = logging.getLogger("fss_svf")

# verb: (dataclass of its config, module and function that runs it, what it does)
VERBS = {
    "prepare": ("PrepareConfig", "fss_svf.data.prepare", "checks a download, builds masks and the index, once"),
    "pretrain": ("PretrainConfig", "fss_svf.training.pretrain", "trains the base learner of a fold (BAM's stage 1)"),
    "train": ("TrainConfig", "fss_svf.training.train", "meta-trains a method with a tuning"),
    "import-official": (
        "ImportConfig",
        "fss_svf.training.import_official",
        "makes a run folder of an official checkpoint",
    ),
    "evaluate": ("EvaluateConfig", "fss_svf.evaluation.evaluate", "measures mIoU and FB-IoU by a protocol"),
    "compare": ("CompareConfig", "fss_svf.evaluation.compare", "tells two results on the same episodes apart, or not"),
    "report": ("ReportConfig", "fss_svf.reporting.report", "gathers results into a table"),
}
# Overrides that make sense beside resume=, whose run keeps its own config otherwise.
_MACHINE = ("device", "workers", "cache_gb")
_WITH_RESUME = (*_MACHINE, "dataset.root", "dataset.prepared")


class Logged(Exception):
    """A job ended with an error that its log, and with it the console, has told already."""


def conf_dir() -> Path:
    """The Hydra tree: inside the package when installed from a wheel, at the top of the repository otherwise."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def main() -> None:
    """Run the verb of sys.argv; exit status 0, 1 after an error, 2 for a wrong verb."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return
    if verb == "--version":
        print(__version__)
        return
    if verb not in VERBS:
        print(f"fss-svf: no verb {verb!r}{did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"fss-svf {verb}", *sys.argv[2:]]
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        # Before Hydra makes the run's folder: a mistyped one is not to be made.
        if key == "resume" and value != "null" and not Path(value).exists():
            print(f"fss-svf {verb}: resume={value}: there is no such run folder or checkpoint", file=sys.stderr)
            sys.exit(1)
    sys.exit(_run_verb(verb))


def _run_verb(verb: str) -> int:
    register_resolvers()
    # Makes Hydra raise instead of printing its own page, so that an error is one line here.
    asked_for_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(cfg: DictConfig) -> Any:
        return run_job(verb, cfg)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if asked_for_trace:
            raise
        print(f"fss-svf {verb}: {_one_line(error, verb)}", file=sys.stderr)
        return 1
    except Logged:
        return 1
    except KeyboardInterrupt:
        print(f"fss-svf {verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def run_job(verb: str, cfg: DictConfig) -> Any:
    """Turn the composed config into the verb's dataclass and run it in Hydra's output folder. Errors go to the log."""
    class_name, module, _ = VERBS[verb]
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        checked = config.from_mapping(getattr(config, class_name), values)
        hydra_config = HydraConfig.get()
        if getattr(checked, "resume", None) is not None:
            checked = _continued(verb, checked, list(hydra_config.overrides.task))
        run = getattr(importlib.import_module(module), verb.replace("-", "_"))
        return run(checked, Path(hydra_config.runtime.output_dir))
    except (FssError, OmegaConfBaseException) as error:
        text = str(error) if isinstance(error, FssError) else _one_line(error, verb)
        log.error("fss-svf %s: %s", verb, text)
        _end_job(error)
    except Exception as error:
        # Hydra prints a crash but leaves it out of the job's log.
        log.error("fss-svf %s: unexpected error\n%s", verb, traceback.format_exc())
        _end_job(error)


def _end_job(error: Exception) -> NoReturn:
    """A single run exits here, before Hydra adds its own lines; the other jobs of a sweep go on."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        # Hydra keeps the exception until the sweep ends: without its traceback, which holds the model.
        error.__traceback__ = None
        raise Logged(str(error))
    sys.exit(1)


def _continued(verb: str, now: Any, overrides: list[str]) -> Any:
    """The config of the run to resume, with the few keys replaced that may change. Raises ConfigError for others."""
    from fss_svf.checkpoint import load_checkpoint

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("resume: one run goes on at a time; leave -m out")
    given = [override.split("=")[0].lstrip("+~") for override in overrides]
    others = [o for o, key in zip(overrides, given) if key not in (*_WITH_RESUME, "resume")]
    if others:
        raise ConfigError(
            f"resume: the run goes on with its own config, but {others[0]} was given too; leave it out (only "
            f"{', '.join(_WITH_RESUME)} may change), or start a new run"
        )
    then = config.from_mapping(type(now), load_checkpoint(now.resume, verb)["config"])
    then = replace(then, resume=now.resume, **{key: getattr(now, key) for key in _MACHINE if key in given})
    moved = {key: getattr(now.dataset.options, key) for key in ("root", "prepared") if f"dataset.{key}" in given}
    if "root" in moved:  # `prepared` lies under it unless it says otherwise
        moved.setdefault("prepared", now.dataset.options.prepared)
    if moved:
        then = replace(then, dataset=replace(then.dataset, options=replace(then.dataset.options, **moved)))
    return then


def register_resolvers() -> None:
    """The interpolations that conf/ uses."""
    for name, resolver in (
        ("fss.run_folder", _run_folder),
        ("fss.hydra_folder", _hydra_folder),
        ("fss.subject", _subject),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _run_folder(resume: str | None, fresh: str) -> str:
    """A resumed run goes on in its own folder."""
    return fresh if resume is None else str(_folder_of(resume))


def _folder_of(run: str) -> Path:
    """The run folder of a checkpoint in it, or the folder itself."""
    path = Path(run).absolute()
    return path.parent.parent if path.suffix == ".pt" else path


def _hydra_folder(resume: str | None) -> str | None:
    """Hydra's record of the overrides is not written over by a resumed run's."""
    return ".hydra" if resume is None else None


def _subject(checkpoint: str | None, *, _root_: Any) -> str:
    """A name for what is evaluated: the training run's name, or the parts chosen on the command line."""
    if checkpoint is not None:
        folder = _folder_of(checkpoint)  # outputs/train/NAME/STAMP
        return f"{folder.parent.name}-{folder.name}"
    parts = (OmegaConf.select(_root_, key) for key in ("dataset.name", "fold", "method.name", "backbone.name"))
    return "-".join(str(part) for part in parts if part is not None) or "unnamed"


def _one_line(error: Exception, verb: str) -> str:
    """Hydra's and OmegaConf's pages as one line with the way out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if "Available options" in str(error):
        at = next(i for i, line in enumerate(lines) if line.startswith("Available options"))
        options = [line for line in lines[at + 1 :] if ":" not in line and " " not in line]
        return f"{text}; available: {', '.join(options)}"
    if text.startswith("Could not override"):
        key = text.split("'")[1]
        return f"no key {key!r}{_closest_key(key, verb)}; 'fss-svf {verb} --cfg job' shows all keys"
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {text}"
    return text


def _closest_key(key: str, verb: str) -> str:
    """Did-you-mean over every key of the verb's default config."""
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra.compose(verb)
    except Exception:  # a broken config tree must not hide the first error
        return ""
    known: list[str] = []

    def walk(node: Any, path: str) -> None:
        if OmegaConf.is_dict(node):
            for name in node:
                known.append(f"{path}{name}")
                if not OmegaConf.is_interpolation(node, name):
                    walk(node._get_node(name), f"{path}{name}.")

    walk(composed, "")
    return did_you_mean(key, known)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {what}" for verb, (_, _, what) in VERBS.items())
    return (
        f"fss-svf {__version__}: few-shot segmentation around Singular Value Fine-tuning\n\n"
        f"usage: fss-svf VERB key=value ...\n\n{verbs}\n\n"
        "  fss-svf VERB --cfg job   every key of a verb and its value\n"
        "  fss-svf VERB --help      its config groups\n"
        "  fss-svf VERB -m k=1,2    a sweep\n"
    )
