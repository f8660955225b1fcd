"""What a training asks of a tool that shows its curves."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fss_svf.errors import ConfigError

# wandb's project and MLflow's experiment, where the environment names none.
PROJECT = "fss-svf"


class Logger(Protocol):
    """One run of a tool. Names have slashes ("loss/main"); steps ascend, but a resumed run gives some again."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name."""

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """(H, W, 3) uint8 RGB."""

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """(N,) finite floats, N >= 1."""

    def hparams(self, values: Mapping[str, bool | int | float | str], notes: Mapping[str, str]) -> None:
        """The config's values by dotted key, and words about the run. Once, before all else."""

    def flush(self) -> None:
        """A checkpoint is about to be written, of what was given so far."""

    def close(self, finished: bool) -> None:
        """finished: whether the training came to its last step."""


def load_package(logger: str) -> Any:
    """The module that logger=NAME needs. Raises ConfigError where it is not installed."""
    try:
        module = importlib.import_module(logger)
        # A folder of that name in the working folder, such as wandb's own, is an empty package.
        missing = "" if getattr(module, "__file__", None) else "is not installed"
    except ModuleNotFoundError as error:
        missing = "is not installed" if error.name == logger else f"cannot be imported ({error})"
    except ImportError as error:
        missing = f"cannot be imported ({error})"
    if missing:
        raise ConfigError(
            f"logger={logger}: the package {logger} {missing}; pip install 'fss-svf[{logger}]', or say logger=tensorboard "
            "or logger=none"
        )
    return module


def kept_id(out: Path, logger: str, step: int) -> str | None:
    """The tool's name of the run that the folder `out` began; None for a training that starts at step 0."""
    path = _id_file(out, logger)
    return path.read_text(encoding="utf-8").strip() or None if step and path.is_file() else None


def keep_id(out: Path, logger: str, name: str) -> None:
    """Keep the tool's name of this run, for resume."""
    _id_file(out, logger).write_text(f"{name}\n", encoding="utf-8")


def new_id() -> str:
    """Drawn apart from the seed: two runs of one config are two."""
    return secrets.token_hex(4)


def _id_file(out: Path, logger: str) -> Path:
    return out / f"{logger}.id"
