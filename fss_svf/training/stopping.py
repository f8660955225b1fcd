"""A scheduler's wish to have its machine back: SIGTERM, SIGUSR1."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from fss_svf import distributed
from fss_svf.errors import Stopped

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignal:
    """While entered, a stop signal is noted, for the loop to ask about between its steps.

    at_once  raise Stopped right there, as an interrupt does: where nothing moves and all is saved, as in a validation
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any process was asked to stop. Every process must call this, and all hear the same."""
        return distributed.total([float(self.name is not None)])[0] > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if self.at_once:
            raise Stopped(f"stopped by {self.name}")
