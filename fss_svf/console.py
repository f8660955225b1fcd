"""What a person sees while something runs: log lines and progress bars that do not overwrite each other."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fss_svf import distributed

# Whether other jobs write to the same screen: then lines say whose they are, and there are no bars.
_shared = False


def share_screen() -> None:
    """From now on, other jobs write to this process's screen too."""
    global _shared
    _shared = True


class ConsoleHandler(logging.Handler):
    """Writes log lines to the standard error above any progress bar; job: the number of a sweep's job."""

    def __init__(self, job: int | None = None) -> None:
        super().__init__()
        self.job = job

    def emit(self, record: logging.LogRecord) -> None:
        job = f"#{self.job} " if _shared else ""
        tqdm.write(job + self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """A log.txt that takes any letter; one that cannot be written, on a full disk, is told once and ends nothing."""

    def __init__(self, filename: str | Path, delay: bool = False) -> None:
        super().__init__(filename, encoding="utf-8", errors="backslashreplace", delay=delay)
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            tqdm.write(
                f"{self.baseFilename}: cannot be written ({sys.exc_info()[1]}); the log ends here", file=sys.stderr
            )


def show_any_letter() -> None:
    """File names may have letters that the terminal does not know, or that are none: they are shown as \\udce4."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_text(name: str) -> str:
    """A name as UTF-8 can hold it: bytes that are no letters as \\udce4."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(name: str) -> bool:
    """Whether every byte of a name is part of a letter."""
    return as_text(name) == name


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
        disable=_shared or distributed.rank() > 0,
    )
