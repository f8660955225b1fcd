"""Console output: log lines and progress bars that do not overwrite each other."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fss_svf import distributed

# Whether other jobs write to the same screen. If so, lines begin with the job's number and there are no bars.
_shared = False


def share_screen() -> None:
    """Note that other jobs write to this screen too: lines get the job's number, bars are off."""
    global _shared
    _shared = True


class ConsoleHandler(logging.Handler):
    """Writes log lines to standard error, above any progress bar. job: the number of a sweep's job."""

    def __init__(self, job: int | None = None) -> None:
        super().__init__()
        self.job = job

    def emit(self, record: logging.LogRecord) -> None:
        job = f"#{self.job} " if _shared else ""
        tqdm.write(job + self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """A log.txt for any characters. If it cannot be written (a full disk), one line says so and the run continues."""

    def __init__(self, filename: str | Path, delay: bool = False) -> None:
        super().__init__(filename, encoding="utf-8", errors="backslashreplace", delay=delay)
        self._reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._reported:
            self._reported = True
            tqdm.write(
                f"{self.baseFilename}: cannot be written ({sys.exc_info()[1]}); the log ends here", file=sys.stderr
            )


def show_any_letter() -> None:
    """Print characters that the terminal cannot encode, and bytes that are not UTF-8, as \\udce4."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_text(name: str) -> str:
    """A name as valid UTF-8: other bytes are written as \\udce4."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8."""
    return as_text(name) == name


def progress(total: int, title: str, unit: str, done: int = 0) -> Any:
    """A tqdm bar. In a log file, where each update is a new line, it updates every 15 seconds.

    Of several processes only the first has a bar. unit: what is counted; "B" is displayed as kB, MB, GB.
    """
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        initial=done,
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        dynamic_ncols=True,
        disable=_shared or distributed.rank() > 0,
    )
