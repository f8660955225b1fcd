"""Errors that a user can cause and correct. Each message is one line: the request, the problem, the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MORE_SHARED_MEMORY = "give it more (docker run --shm-size=8g), or load without loader processes (workers=0)"
LOADER_LOST = f"a loader process was killed, out of memory or of shared memory; {MORE_SHARED_MEMORY}"

# Exit statuses of a training that was stopped and can go on: by a scheduler (EX_TEMPFAIL: start it again), by Ctrl+C.
STOPPED = 75
INTERRUPTED = 130


class FssError(Exception):
    """Base of every expected failure; the command line prints its message without a traceback."""


class ConfigError(FssError):
    """A key or value of the configuration is wrong."""


class PluginError(FssError):
    """A plugin is missing, cannot be imported, or registers a name that is taken."""


class DataError(FssError):
    """A dataset is missing, incomplete or damaged, or too small for the requested episodes."""


class WeightsError(FssError):
    """A checkpoint, adapter or weights file does not fit what it is loaded into."""


class TrainingError(FssError):
    """Training cannot go on: a loss that is not finite, a trainable tensor without a gradient."""


class Stopped(FssError):
    """A signal stopped a training. It has written a checkpoint and can be resumed.

    status: of the process, STOPPED or INTERRUPTED
    """

    def __init__(self, message: str, status: int = STOPPED) -> None:
        super().__init__(message)
        self.status = status


def listing(items: Iterable[object], limit: int = 5) -> str:
    """The first `limit` items joined by commas, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word closest to `word`, or an empty string."""
    by_letters = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), list(by_letters), n=1, cutoff=0.6)
    return f" (did you mean {by_letters[close[0]]!r}?)" if close else ""
