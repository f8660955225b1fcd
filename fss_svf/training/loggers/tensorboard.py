"""logger=tensorboard: event files in tensorboard/ of the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# Curves on the HPARAMS page beside the config.
_SCORES = ("score",)


class TensorBoardLogger:
    """What a killed run wrote after its last checkpoint, of this step, is cut off, and written again."""

    def __init__(self, out: Path, step: int) -> None:
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._step = step

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._writer.add_histogram(name, values, step)

    def hparams(self, values: Mapping[str, bool | int | float | str], notes: Mapping[str, str]) -> None:
        """Through this writer: SummaryWriter.add_hparams makes a run of its own."""
        for name, text in notes.items():
            self._writer.add_text(name, text, self._step)
        for summary in hparams(dict(values), dict.fromkeys(_SCORES, 0.0)):
            self._writer._get_file_writer().add_summary(summary)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()
