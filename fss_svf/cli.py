"""`fss-svf VERB key=value ...`: each verb is a Hydra application with its own config."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fss_svf import __version__, config, console, distributed, sweeps
from fss_svf.errors import ConfigError, Stopped, did_you_mean
from fss_svf.lock import locked
from fss_svf.messages import one_line
from fss_svf.overrides import conf_dir, quote, understood, value_of, without_null_groups
from fss_svf.run_folder import (
    TRAINING,
    WORDS,
    by_itself,
    folder_of,
    go_on,
    keep_command,
    refuse_other,
    register_resolvers,
)
from fss_svf.sweeps import Logged

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
    "reproduce": ("ReproduceConfig", "fss_svf.reproduction.reproduce", "runs what a table still lacks, and reports"),
    "compare": ("CompareConfig", "fss_svf.evaluation.compare", "tells two results, or trainings of two things, apart"),
    "report": ("ReportConfig", "fss_svf.reporting.report", "gathers results into tables and a page"),
    "predict": ("PredictConfig", "fss_svf.prediction.predict", "segments your photographs by a few examples of yours"),
    "demo": ("DemoConfig", "fss_svf.prediction.demo", "does so in the browser: paint the object, drop a photograph"),
    "info": ("InfoConfig", "fss_svf.info", "says what is installed, which datasets are ready, what can be chosen"),
}
# Exit status of a training that a signal has stopped, and that can go on: EX_TEMPFAIL.
STOPPED = 75
# Verbs that share their work among the processes of torchrun.
_SHARED = ("pretrain", "train", "evaluate")
# Verbs without a run folder.
_NOWHERE = ("predict", "demo", "info")
# Verbs that leave something to put in order when they end.
_ORDERLY = ("pretrain", "train", "evaluate", "reproduce", "demo")
# Overrides that make sense beside resume=PATH, as those of config.MACHINE do.
_DATA = ("dataset.root", "dataset.prepared")


class Job:
    """What Hydra runs with the composed config; a launcher may do so in another process, to which it is pickled."""

    def __init__(self, verb: str) -> None:
        self.verb = verb

    def __call__(self, cfg: DictConfig) -> Any:
        return run_job(self.verb, cfg)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The other process resolves the job's folder before it calls.
        register_resolvers()
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            console.share_screen()
            # joblib's way to start processes cannot start the loaders' own.
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


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
        _leave(f"fss-svf: no verb {verb!r}{did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}", 2)
    console.show_any_letter()
    try:
        sys.argv = [f"fss-svf {verb}", *_arguments(verb, sys.argv[2:])]
    except ConfigError as error:
        _leave(f"fss-svf {verb}: {error}", 1)
    # Before Hydra makes the run's folder: a mistyped one is not to be made.
    for refused in (_refuse_resume(verb, sys.argv[1:]), _refuse_processes(verb, sys.argv[1:])):
        if refused:
            _leave(f"fss-svf {verb}: {refused}", 1)
    sys.exit(_run_verb(verb))


def _leave(message: str, status: int) -> NoReturn:
    """End before anything ran. What all processes find the first tells, and its status is the job's."""
    if distributed.launched()[0] > 0:
        sys.exit(0)
    print(message, file=sys.stderr)
    sys.exit(status)


def _arguments(verb: str, arguments: list[str]) -> list[str]:
    """As Hydra's grammar understands them. What stands behind -- becomes the key that hands it on to every training.

    Raises ConfigError.
    """
    behind: list[str] = []
    if verb == "reproduce" and "--" in arguments:
        at = arguments.index("--")
        # Interpolations are for the training to resolve.
        behind = [f"overrides=[{','.join(quote(understood(a)) for a in arguments[at + 1 :])}]"]
        arguments = arguments[:at]
    sweep = _sweeps(arguments)
    # Between overrides Hydra's parser does not take it.
    arguments = sorted(arguments, key=lambda a: a not in ("-m", "--multirun"))
    return without_null_groups(verb, [understood(a, sweep) for a in arguments]) + behind


def _sweeps(arguments: list[str]) -> bool:
    """Whether -m is among them, as Hydra reads it."""
    return any(a == "-m" or a.startswith(("--mu", "hydra.mode=MULTIRUN")) for a in arguments)


def _refuse_resume(verb: str, arguments: list[str]) -> str | None:
    for argument in arguments:
        words = WORDS if verb in TRAINING else ()
        if not argument.startswith("resume=") or argument == "resume=null" or (value := value_of(argument)) in words:
            continue
        if not Path(value).exists():
            return f"resume={value}: there is no such run folder or checkpoint{did_you_mean(value, words)}"
        if verb == "evaluate" and not (folder_of(value) / "config.yaml").is_file():
            return f"resume={value}: no run folder of evaluate, there is no config.yaml in it"
    return None


def _refuse_processes(verb: str, arguments: list[str]) -> str | None:
    _, world = distributed.launched()
    if world == 1:
        return None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        return f"WORLD_SIZE={world}, but {missing[0]} is not set; start by torchrun, or see docs/clusters.md"
    if verb not in _SHARED:
        return f"works in one process, torchrun started {world}; start it without torchrun"
    if _sweeps(arguments):
        return (
            "-m under torchrun: a sweep starts its jobs itself; start one torchrun a job (for fold in 0 1; do torchrun ... "
            "fold=$fold; done), or the sweep without torchrun"
        )
    return None


def _run_verb(verb: str) -> int:
    distributed.start()
    _heed_signals(verb)
    try:
        status = _follow(verb) if distributed.rank() > 0 else _lead(verb)
    except KeyboardInterrupt:
        if distributed.rank() == 0:
            print(f"fss-svf {verb}: interrupted", file=sys.stderr)
        return 130
    # After an error the others may be waiting for this process, and see its end alone.
    if status == 0:
        distributed.end()
    return status


def _heed_signals(verb: str) -> None:
    """End in an orderly way, so that no codes of an evaluation stay behind, where a scheduler wants its machine back, nor
    photographs of a demo.

    torchrun sends SIGTERM too, when another process failed. A training has another answer from its first step on; before
    that there is nothing to save, but it can be started again.
    """
    if verb not in _ORDERLY:
        return
    goes_on = verb in (*TRAINING, "reproduce")
    status = STOPPED if goes_on else 143
    for name in ("SIGTERM", "SIGUSR1") if goes_on else ("SIGTERM",):
        if hasattr(signal, name):  # not on Windows
            signal.signal(getattr(signal, name), lambda *_: sys.exit(status))


def _lead(verb: str) -> int:
    """Compose the config with Hydra and run the job. Of several processes the first does this."""
    register_resolvers()
    # Makes Hydra raise instead of printing its own page, so that an error is one line here.
    asked_for_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def told() -> bool:
        return sweeps.tell_outcome(again=verb in TRAINING and "resume=never" not in sys.argv)

    status = 1
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(Job(verb))()
        status = 0 if told() else 1
    except Logged:
        told()
    except Exception as error:
        if asked_for_trace:
            raise
        line = one_line(error, verb, _values(sys.argv[1:]))
        if line is None and not sweeps.running():
            raise
        if line is None:
            # A launcher that lost the process of a job, or could not start one: joblib ends the others, submitit does not.
            told()
            line = f"the launcher gave up: {sweeps.gist(error)}"
        print(f"fss-svf {verb}: {line}", file=sys.stderr)
        sweeps.leave()
    finally:
        sweeps.end()
    return status


def _follow(verb: str) -> int:
    """Take part in the job that the first process composed: without Hydra, and with no word but errors."""
    warnings.simplefilter("ignore")
    try:
        checked, out = distributed.broadcast((None, Path()))
    except distributed.PeerLost:
        return 0  # nothing to do, or an error: the first process says which
    in_log = console.LogFile(out / "log.txt", delay=True)
    in_log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[console.ConsoleHandler(), in_log])
    try:
        _run(verb, checked, out)
    except Exception as error:
        _tell(verb, error, {**config.to_mapping(checked), "hydra.run.dir": str(out)})
        return _status(error)
    return 0


def run_job(verb: str, cfg: DictConfig) -> Any:
    """Turn the composed config into the verb's dataclass and run it in Hydra's output folder. Errors go to the log."""
    values: Any = {}
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        hydra_config = HydraConfig.get()
        alone = by_itself(verb, values.get("resume"), hydra_config.mode == RunMode.MULTIRUN)
        if verb in TRAINING and values.get("resume") in WORDS:
            values["resume"] = None
        checked = config.from_mapping(getattr(config, VERBS[verb][0]), values)
        out = Path(hydra_config.runtime.output_dir)
        if verb in _NOWHERE:
            return _run(verb, checked, out)
        values["hydra.run.dir"] = str(out)
        with locked(out):
            resumed = getattr(checked, "resume", None) is not None
            if not resumed:
                refuse_other(verb, out, alone)
            if alone:
                checked, score = go_on(checked, out)
                if score is not None:
                    log.info("finished already, nothing to do: %s (score %.4f)", out, score)
                    return score
            elif resumed:
                checked = _continued(verb, checked, list(hydra_config.overrides.task))
            keep_command(verb, cfg, out, new=not (alone or resumed))
            return _run(verb, *distributed.broadcast((checked, out)))
    except Exception as error:
        _tell(verb, error, values)
        return _end_job(error)


def _values(arguments: list[str]) -> dict[str, str]:
    """The keys of the command line and what they give."""
    return {a.partition("=")[0].lstrip("+"): value_of(a) for a in arguments if "=" in a and not a.startswith("-")}


def _run(verb: str, checked: Any, out: Path) -> Any:
    module = importlib.import_module(VERBS[verb][1])
    return getattr(module, verb.replace("-", "_"))(checked, out)


def _tell(verb: str, error: Exception, values: Mapping[str, Any]) -> None:
    """Log an error: an expected one in a line, another with its traceback, which Hydra prints but leaves out of the log.

    values: of the config, to name the key of a path.
    """
    if isinstance(error, distributed.PeerLost):
        if distributed.anything_said():  # by the other process
            return
        text = "another process of this job ended before its work was done"
    else:
        text = one_line(error, verb, values) or f"unexpected error\n{traceback.format_exc()}"
    who = f"process {distributed.rank()}: " if distributed.world() > 1 else ""
    distributed.say_once(text, lambda: log.error("fss-svf %s: %s%s", verb, who, text))


def _end_job(error: Exception) -> Logged:
    """A single run exits here, before Hydra adds its own lines; the other jobs of a sweep go on."""
    if isinstance(error, Stopped) or HydraConfig.get().mode != RunMode.MULTIRUN:
        sys.exit(_status(error))
    # Hydra keeps what is raised until the sweep ends: without the traceback, which holds the model.
    error.__traceback__ = None
    return sweeps.failed_job(error, HydraConfig.get().sweeper._target_)


def _status(error: Exception) -> int:
    """Exit status of a job that ended with this error; EX_TEMPFAIL tells a scheduler to start it again."""
    return STOPPED if isinstance(error, Stopped) else 1


def _continued(verb: str, now: Any, overrides: list[str]) -> Any:
    """The config of the run to resume, with the few keys replaced that may change. Raises ConfigError for others."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("resume: one run goes on at a time; leave -m out")
    machine = tuple(key for key in config.MACHINE if hasattr(now, key))
    # An evaluation's episodes are drawn again: of the same data.
    changeable = machine if verb == "evaluate" else (*machine, *_DATA)
    given = [override.split("=")[0].lstrip("+~") for override in overrides]
    others = [o for o, key in zip(overrides, given) if key not in (*changeable, "resume")]
    if others:
        raise ConfigError(
            f"resume: the run goes on with its own config, but {others[0]} was given too; leave it out (only "
            f"{', '.join(changeable)} may change), or start a new run"
        )
    then = _config_of(verb, now.resume)
    then = replace(then, resume=now.resume, **{key: getattr(now, key) for key in machine if key in given})
    moved = {key: getattr(now.dataset.options, key) for key in ("root", "prepared") if f"dataset.{key}" in given}
    if "root" in moved:  # `prepared` lies under it unless it says otherwise
        moved.setdefault("prepared", now.dataset.options.prepared)
    if moved:
        then = replace(then, dataset=replace(then.dataset, options=replace(then.dataset.options, **moved)))
    return then


def _config_of(verb: str, run: Path) -> Any:
    """The config of an earlier run of `verb`: of a training its checkpoint's, of an evaluation config.yaml."""
    cls = getattr(config, VERBS[verb][0])
    if verb != "evaluate":
        from fss_svf.checkpoint import load_checkpoint

        return config.from_mapping(cls, load_checkpoint(run, verb)["config"])
    path = folder_of(str(run)) / "config.yaml"
    try:
        return config.from_mapping(cls, yaml.safe_load(path.read_text()))
    except (ConfigError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())  # YAML's takes several lines
        raise ConfigError(f"resume={run}: no run folder of evaluate; {path.name}: {told}") from None


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
