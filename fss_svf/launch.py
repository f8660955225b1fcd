"""Runs a verb: Hydra composes its config, the verb's function gets it as a dataclass. Errors become one line."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fss_svf import config, console, distributed, packed, plugins, sweeps
from fss_svf.conf_files import conf_dir, join_search_path
from fss_svf.errors import INTERRUPTED, STOPPED, ConfigError, FssError, PluginError, Stopped
from fss_svf.lock import locked
from fss_svf.messages import of_experiment, one_line
from fss_svf.newest_run import with_newest_run
from fss_svf.overrides import is_sweep, plugins_of, refuse_dashed_keys, understood_all
from fss_svf.resume import TRAINING, WORDS, begin, by_itself
from fss_svf.run_folder import delete_unbegun, keep_command, note_missing, register_resolvers

log = logging.getLogger("fss_svf")


class Verb(NamedTuple):
    """The package whose module of the verb's name runs it, the dataclass of its config, and what it does."""

    package: str
    config: type
    what: str


VERBS = {
    "prepare": Verb("data", config.PrepareConfig, "checks a download, builds masks and the index, once"),
    "pretrain": Verb("training", config.PretrainConfig, "trains the base learner of a fold (BAM's stage 1)"),
    "train": Verb("training", config.TrainConfig, "meta-trains a method with a tuning"),
    "import-official": Verb("training", config.ImportConfig, "makes a run folder of an official checkpoint"),
    "evaluate": Verb("evaluation", config.EvaluateConfig, "measures mIoU and FB-IoU by a protocol"),
    "reproduce": Verb("reproduction", config.ReproduceConfig, "runs what a table still lacks, and reports"),
    "compare": Verb("evaluation", config.CompareConfig, "tells two results, or trainings of two things, apart"),
    "report": Verb("page", config.ReportConfig, "gathers results into tables and a page"),
    "predict": Verb("prediction", config.PredictConfig, "segments your photographs by a few examples of yours"),
    "demo": Verb("prediction", config.DemoConfig, "does so in the browser: paint the object, drop a photograph"),
    "models": Verb("prediction", config.ModelsConfig, "lists the trained models in this package, or prints a card"),
    "info": Verb("", config.InfoConfig, "says what is installed, which datasets are ready, what can be chosen"),
}
# Verbs that share their work among the processes of torchrun.
_SHARED = ("pretrain", "train", "evaluate")
# Verbs without a run folder.
_NOWHERE = ("predict", "demo", "models", "info")
# Verbs that leave something to put in order when they end.
_ORDERLY = ("pretrain", "train", "evaluate", "reproduce", "demo")


class Job:
    """What Hydra runs with the composed config; a launcher may do so in another process, to which it is pickled."""

    def __init__(self, verb: str) -> None:
        self.verb = verb

    def __call__(self, cfg: DictConfig) -> Any:
        """Turn the config into the verb's dataclass and run it in Hydra's output folder. Errors go to the log."""
        values: Any = {}
        try:
            values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
            return _run_in_folder(self.verb, cfg, values)
        except KeyboardInterrupt:
            self._leave_nothing()
            raise
        except Exception as error:
            if self.verb in _NOWHERE and isinstance(error, BrokenPipeError):
                sys.exit(console.end_output())
            _tell(self.verb, error, values)
            if isinstance(error, FssError):
                self._leave_nothing()
            return _end_job(error)

    def _leave_nothing(self) -> None:
        # The log of a sweep's job may be all there is of it, and other processes may write to one.
        if not _in_sweep() and distributed.world() == 1 and self.verb not in (*_NOWHERE, "reproduce"):
            delete_unbegun(Path(HydraConfig.get().runtime.output_dir))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The other process resolves the job's folder before it calls.
        register_resolvers()
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            console.share_screen()
            # joblib's way to start processes cannot start the loaders' own.
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb with these arguments of the command line; returns the exit status."""
    console.show_any_letter()
    try:
        refuse_dashed_keys(arguments)
        plugins.add(plugins_of(arguments))
        arguments = with_newest_run(verb, arguments, is_sweep(arguments))
        sys.argv = [f"fss-svf {verb}", *understood_all(verb, arguments)]
        _check_processes(verb, arguments)
    except (ConfigError, PluginError) as error:
        return refuse(f"fss-svf {verb}: {error}", 1)
    distributed.start()
    _heed_signals(verb)
    try:
        status = _follow(verb) if distributed.rank() > 0 else _lead(verb, arguments)
    except KeyboardInterrupt:
        logging.getLogger("torch").setLevel(logging.WARNING)  # interrupted in its import, it logs statistics at exit
        if distributed.rank() == 0:
            print(f"fss-svf {verb}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except SystemExit as end:
        if distributed.world() == 1:
            raise
        status = int(end.code or 0)
    # After an error the others may be waiting for this process, and see its end alone.
    if status == 0:
        distributed.end()
    if distributed.launched()[1] > 1:
        distributed.leave(status)
    return status


def complete(verb: str, arguments: Sequence[str]) -> int:
    """Let Hydra print a shell's script for completion, or what the words of the line in COMP_LINE may become."""
    sys.argv = ["fss-svf", "--shell-completion", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        register_resolvers()
        join_search_path()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(lambda _: None)()
    except Exception as error:
        if not any(argument.startswith("query=") for argument in arguments):  # a Tab never prints an error
            return refuse(f"fss-svf: completion: {' '.join(str(error).split())}", 1)
    return 0


def refuse(message: str, status: int) -> int:
    """Print why nothing runs, and return the exit status. Of several processes the first alone does: the others return 0."""
    if distributed.launched()[0] > 0:
        return 0
    print(message, file=sys.stderr)
    return status


def _check_processes(verb: str, arguments: Sequence[str]) -> None:
    _, world = distributed.launched()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world == 1:
        return
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={world}, but {missing[0]} is not set; start by torchrun, or see docs/clusters.md"
        )
    if verb not in _SHARED:
        raise ConfigError(f"works in one process, torchrun started {world}; start it without torchrun")
    if is_sweep(arguments):
        raise ConfigError(
            "-m under torchrun: a sweep starts its jobs itself; start one torchrun a job (for fold in 0 1; do torchrun ... "
            "fold=$fold; done), or the sweep without torchrun"
        )


def _heed_signals(verb: str) -> None:
    """End in an orderly way when a scheduler wants its machine back: no features of an evaluation and no photographs of a
    demo stay on disk.

    torchrun sends SIGTERM too, when another process failed. A training has another answer from its first step on; before
    that there is nothing to save, but it can be started again.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupter(os.getpid()))
    if verb not in _ORDERLY:
        return
    goes_on = verb in (*TRAINING, "reproduce")
    status = STOPPED if goes_on else 143
    for name in ("SIGTERM", "SIGUSR1") if goes_on else ("SIGTERM",):
        if hasattr(signal, name):  # not on Windows
            signal.signal(getattr(signal, name), lambda *_: sys.exit(status))


def _interrupter(main: int) -> Callable[[int, FrameType | None], None]:
    """A handler of Ctrl+C. A loader process that has just been forked has it too, and must not raise."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == main:
            signal.signal(number, signal.SIG_DFL)  # again: ends at once, without a traceback of what is being ended
            raise KeyboardInterrupt

    return interrupt


def _lead(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config with Hydra and run the job. Of several processes the first does this."""
    register_resolvers()
    own = _values(arguments).get("hydra.run.dir")
    note_missing(None if own is None else Path(own).absolute())
    # Makes Hydra raise instead of printing its own page, so that an error is one line here.
    asked_for_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"
    again = verb in TRAINING and "resume=never" not in arguments
    try:
        join_search_path()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(Job(verb))()
    except Exception as error:
        line = one_line(error, verb, _values(arguments))
        if asked_for_trace or (line is None and sweeps.Outcomes.sweep is None):
            raise
        sweeps.report(again)
        # A launcher may lose the process of a job, or not start one.
        print(f"fss-svf {verb}: {line or f'the launcher gave up: {sweeps.gist(error)}'}", file=sys.stderr)
        return 1
    except BaseException:  # an interrupt, or the end of a single run
        sweeps.interrupt()
        raise
    return 0 if sweeps.report(again) else 1


def _follow(verb: str) -> int:
    """Take part in the job that the first process composed: without Hydra, and with no word but errors."""
    warnings.simplefilter("ignore")
    try:
        nothing: tuple[Any, Path] = (None, Path())
        checked, out = distributed.broadcast(nothing)
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


def _run_in_folder(verb: str, cfg: DictConfig, values: dict[str, Any]) -> Any:
    """values: the resolved `cfg`; gets hydra.run.dir, for the message of an error."""
    hydra_config = HydraConfig.get()
    alone = by_itself(verb, values.get("resume"), _in_sweep())
    if verb in TRAINING and values.get("resume") in WORDS:
        values["resume"] = None
    try:
        checked: Any = config.from_mapping(VERBS[verb].config, values)
    except ConfigError as error:
        raise of_experiment(error, hydra_config.runtime.choices) from None
    out = Path(hydra_config.runtime.output_dir)
    if verb in _NOWHERE:
        return _run(verb, checked, out)
    values["hydra.run.dir"] = str(out)
    plans = getattr(checked, "plan", False)  # it can be asked for while the jobs run
    with nullcontext() if plans else locked(out):
        start = begin(verb, checked, out, alone)
        if start.score is not None:
            log.info("finished already, nothing to do: %s (score %.4f)", out, start.score)
            return start.score
        if not plans:
            keep_command(verb, cfg, out, start.new)
        return _run(verb, *distributed.broadcast((start.config, out)))


def _values(arguments: Sequence[str]) -> dict[str, str]:
    """The keys of the command line and what they give."""
    pairs = (argument.partition("=") for argument in arguments if not argument.startswith("-"))
    return {key.lstrip("+"): value for key, equals, value in pairs if equals}


def _run(verb: str, checked: Any, out: Path) -> Any:
    """Call the function of the verb, imported now: 'fss-svf --help' comes without torch."""
    is_new = isinstance(checked, config.EvaluateConfig) and checked.resume is None
    if is_new and packed.chosen(checked.checkpoint, checked.model) is None:
        checked.require_parts()  # before PyTorch is imported, which takes seconds
    name = verb.replace("-", "_")
    module = ".".join(filter(None, ("fss_svf", VERBS[verb].package, name)))
    result = getattr(importlib.import_module(module), name)(checked, out)
    distributed.barrier()  # torchrun ends all processes when one fails, even one that has only its end to come
    return result


def _tell(verb: str, error: Exception, values: Mapping[str, Any]) -> None:
    """Log an error: an expected one in a line, another with its traceback, which Hydra prints but leaves out of the log.

    values: of the config, to name the key of a path.
    """
    if isinstance(error, distributed.PeerLost):
        if distributed.anything_logged():  # by the other process
            return
        text = "another process of this job ended before its work was done"
    else:
        text = one_line(error, verb, values) or f"unexpected error\n{traceback.format_exc()}"
    who = f"process {distributed.rank()}: " if distributed.world() > 1 else ""
    distributed.log_once(text, lambda: log.error("fss-svf %s: %s%s", verb, who, text))


def _end_job(error: Exception) -> sweeps.Logged:
    """A single run exits here, before Hydra adds its own lines; the other jobs of a sweep go on."""
    if isinstance(error, Stopped) or not _in_sweep():
        sys.exit(_status(error))
    return sweeps.Logged(sweeps.gist(error))


def _status(error: Exception) -> int:
    """Exit status of a job that ended with this error."""
    return error.status if isinstance(error, Stopped) else 1


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN
