"""logger=mlflow: a run of MLflow, where its environment variables say (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.errors import ConfigError
from fss_svf.training.loggers.logger import PROJECT, keep_id, kept_id, load_package

log = logging.getLogger(__name__)

# The most a request takes, and the most characters of a parameter's value that each version of MLflow takes.
_METRICS, _PARAMS, _CHARACTERS = 1000, 100, 500
# MLflow has no histograms: these quantiles are curves.
_QUANTILES = (0.05, 0.5, 0.95)


class MlflowLogger:
    """A resumed run goes on as the same run: its id is kept in mlflow.id. Nothing of MLflow's global state is used.

    A server that is lost in the middle ends no training: a warning says so once, and no more is sent.
    """

    def __init__(self, out: Path, name: str, step: int) -> None:
        mlflow = load_package("mlflow")
        self._entities, self._error = mlflow.entities, mlflow.exceptions.MlflowException
        self._lost = False
        try:
            self._client: Any = mlflow.MlflowClient()
            self._run, self._is_new = self._begin(kept_id(out, "mlflow", step), name)
        except self._error as error:
            raise ConfigError(
                f"logger=mlflow: {_line(error)}; set MLFLOW_TRACKING_URI to a server or to sqlite:///FILE, or say "
                "logger=tensorboard"
            ) from None
        keep_id(out, "mlflow", self._run)

    def _begin(self, kept: str | None, name: str) -> tuple[str, bool]:
        """Id of the run, and whether it is new."""
        if kept is not None:
            try:
                self._client.update_run(kept, status="RUNNING")
                return kept, False
            except self._error as error:
                log.warning("logger=mlflow: run %s is not there (%s); a new one begins", kept, _line(error))
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        return self._client.create_run(self._experiment(experiment), run_name=name).info.run_id, True

    def _experiment(self, name: str) -> str:
        """Its id. Another job of a sweep may make it at the same time."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except self._error:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_name(name), float(value), now, step) for name, value in values.items()]
        for begin in range(0, len(metrics), _METRICS):
            part = metrics[begin : begin + _METRICS]
            self._send(lambda part=part: self._client.log_batch(self._run, metrics=part))  # type: ignore[misc]

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        self._send(lambda: self._client.log_image(self._run, picture, key=_name(name), step=step))

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        found = np.quantile(values, _QUANTILES)
        self.scalars({f"{name}/p{100 * q:.0f}": float(value) for q, value in zip(_QUANTILES, found)}, step)

    def hparams(self, values: Mapping[str, bool | int | float | str], notes: Mapping[str, str]) -> None:
        for name, text in notes.items():
            self._send(lambda name=name, text=text: self._client.set_tag(self._run, name, text))  # type: ignore[misc]
        if not self._is_new:  # MLflow's parameters never change, and a resumed run may have another device
            return
        params = [self._entities.Param(_name(key), str(value)[:_CHARACTERS]) for key, value in values.items()]
        for begin in range(0, len(params), _PARAMS):
            part = params[begin : begin + _PARAMS]
            self._send(lambda part=part: self._client.log_batch(self._run, params=part))  # type: ignore[misc]

    def flush(self) -> None:
        """Nothing: each call writes."""

    def close(self, finished: bool) -> None:
        self._send(lambda: self._client.set_terminated(self._run, status="FINISHED" if finished else "FAILED"))

    def _send(self, call: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            call()
        except self._error as error:
            self._lost = True
            log.warning("logger=mlflow: %s; no more is sent, and log.csv has the numbers", _line(error))


def _name(name: str) -> str:
    """With the characters that MLflow takes, as a path in its plainest form."""
    return posixpath.normpath(re.sub(r"[^\w.\- /]", "_", name))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
