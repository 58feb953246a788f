"""What a process of the command line takes from outside: signals, and readers that go away."""

import os
import signal
import sys
from typing import Any, TextIO


def prepare_process() -> None:
    """From now on SIGTERM ends a command as Ctrl-C does, and a pipe that nobody reads stops nothing."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)


def _interrupt(*_given: Any) -> None:
    raise KeyboardInterrupt


class Unbroken:
    """A text stream that goes nowhere once its reader has gone, as after `imagen batch … | head`.

    stream   of a file that the system has a number for
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text; its length."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._turn_away()

    def _turn_away(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
