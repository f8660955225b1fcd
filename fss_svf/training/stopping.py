"""The wish that a training ends: Ctrl+C, or a scheduler's SIGTERM or SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from time import monotonic
from types import FrameType
from typing import Any

from fss_svf import distributed
from fss_svf.errors import INTERRUPTED, Stopped

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A Ctrl+C may come twice, from the terminal and from torchrun.
_SAME_KEY = 0.3


class StopSignal:
    """While entered, a stop signal is noted, for the loop to ask about between its steps. A second Ctrl+C is an interrupt.

    at_once  raise Stopped right there, as an interrupt does: where nothing moves and all is saved, as in a validation
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.at_once = False
        self._process = os.getpid()
        self._pressed: float | None = None  # when Ctrl+C came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            # Behind nohup, or in the background of a script, Ctrl+C is for others.
            heard = [n for n in _SIGNALS if n != signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any process was asked to stop. Every process must call this, and all hear the same."""
        return distributed.total([float(self.name is not None)])[0] > 0

    def stopped(self, message: str) -> Stopped:
        """The error of a training that ends now."""
        return Stopped(message, INTERRUPTED) if self._pressed is not None else Stopped(message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader process that has just been forked
            return
        first, self.name = self.name is None, self.name or signal.Signals(number).name
        if number == signal.SIGINT:
            self._press()
        if first and self.at_once:
            raise Stopped(f"stopped by {self.name}")

    def _press(self) -> None:
        now = monotonic()
        if self._pressed is None:
            self._pressed = now
            if distributed.rank() == 0:
                # Not print: it may be what the signal interrupted.
                os.write(2, b"\nstopping with a checkpoint after this step; Ctrl+C again ends at once\n")
        elif now - self._pressed > _SAME_KEY:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
