"""What a person sees while something runs: log lines and progress bars that do not overwrite each other."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

from fss_svf import distributed


class ConsoleHandler(logging.Handler):
    """Writes log lines to the standard error above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def progress(total: int, title: str, unit: str, done: int = 0) -> Any:
    """A tqdm bar; in a log file, where each state is a line of its own, it moves every 15 seconds only.

    Of several processes the first alone shows its own. unit: what is counted; of bytes, "B", it shows kB, MB, GB.
    """
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        initial=done,
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        dynamic_ncols=True,
        disable=distributed.rank() > 0,
    )
