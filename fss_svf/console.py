"""Console output: log lines and progress bars that do not overwrite each other."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fss_svf import distributed

# The `extra` of a log line for log.txt alone: on the screen it would push a bar away.
IN_FILE = {"in_file": True}
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
        if getattr(record, "in_file", False):
            return
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


def end_output() -> int:
    """Drop what is still to be printed: nobody reads it, as behind `| head -1`. Returns the exit status, SIGPIPE's."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def as_text(name: str) -> str:
    """A name as valid UTF-8: other bytes are written as \\udce4."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8."""
    return as_text(name) == name


def relative(path: Path) -> str:
    """A path as one types it in a shell in the current folder."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


class _Lines:
    """A stream for a bar where there is no terminal: each of its states is a line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(total: int, title: str, unit: str, done: int = 0) -> Any:
    """A tqdm bar. Where standard error is no terminal, a line of text every 15 seconds; none before.

    Of several processes only the first has a bar. unit: what is counted; "B" is displayed as kB, MB, GB.
    """
    how: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        text = "{desc}: {n_fmt} of {total_fmt}" + f"{unit if unit == 'B' else f' {unit}s'}"
        text += " in {elapsed}, {remaining} left{postfix}"
        # At a place of its own, as a validation's within a training, a bar would move the cursor there.
        how = {"file": _Lines(sys.stderr), "bar_format": text, "mininterval": 15, "delay": 15, "position": 0}
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        initial=done,
        disable=_shared or distributed.rank() > 0,
        **how,
    )
