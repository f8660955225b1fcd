"""logger=wandb: a run of Weights & Biases, which its environment variables set up (WANDB_MODE, WANDB_PROJECT, ...)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.errors import ConfigError
from fss_svf.training.loggers.logger import PROJECT, keep_id, kept_id, load_package, new_id

# A row has it as a value of its own: wandb's steps only ascend, and a resumed run gives some again.
_STEP = "step"


class WandbLogger:
    """Its files are in wandb/ of the run folder. A resumed run goes on as the same run: its id is kept in wandb.id."""

    def __init__(self, out: Path, name: str, step: int) -> None:
        self._wandb = load_package("wandb")
        run_id = kept_id(out, "wandb", step) or new_id()
        try:
            self._run: Any = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=name,
                id=run_id,
                resume="allow",
                dir=str(out),
                settings=self._wandb.Settings(console="off"),  # log.txt has what is printed
            )
        except self._wandb.Error as error:
            raise ConfigError(
                f"logger=wandb: {' '.join(str(error).split())}; run 'wandb login', set WANDB_MODE=offline, or say "
                "logger=tensorboard"
            ) from None
        keep_id(out, "wandb", run_id)
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, _STEP: step})

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(picture), _STEP: step})

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Histogram(values), _STEP: step})

    def hparams(self, values: Mapping[str, bool | int | float | str], notes: Mapping[str, str]) -> None:
        # A resumed run may have another device.
        self._run.config.update({**values, **notes}, allow_val_change=True)

    def flush(self) -> None:
        """Nothing: a process of wandb's own writes."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
