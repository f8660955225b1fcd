"""Where a training's curves and pictures go, by the key `logger`. log.csv of the run folder is written beside each of them.

logger       what a training asks of such a tool
tensorboard  and the other tools, a file each
"""

from __future__ import annotations

from pathlib import Path

from fss_svf.config import LoggerName
from fss_svf.training.loggers.logger import Logger, load_package

__all__ = ["Logger", "make_logger", "require_package"]


def require_package(logger: LoggerName) -> None:
    """Raise ConfigError where the package that logger=NAME needs is not installed."""
    if logger in ("wandb", "mlflow"):
        load_package(logger)


def make_logger(logger: LoggerName, out: Path, name: str, step: int) -> Logger | None:
    """The tool's run of the run folder `out`; None with logger=none.

    name: of the run. step: of the checkpoint that it goes on from, 0 for a new one. Raises ConfigError.
    """
    # A tool's import takes a second and more, which a run without it does not need.
    if logger == "tensorboard":
        from fss_svf.training.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(out, step)
    if logger == "wandb":
        from fss_svf.training.loggers.wandb import WandbLogger

        return WandbLogger(out, name, step)
    if logger == "mlflow":
        from fss_svf.training.loggers.mlflow import MlflowLogger

        return MlflowLogger(out, name, step)
    return None
