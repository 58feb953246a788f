"""What a process of the command line takes from outside: signals, and readers that go away."""

import ctypes
import os
import signal
import sys
from typing import Any, TextIO

# Of glibc's mallopt: parameter numbers, and the values they are set to.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT, LARGEST_OF_OLD = 2**31 - 1, 2**30, 2**25


def prepare_process() -> None:
    """From now on SIGTERM ends a command as Ctrl-C does, and a pipe that nobody reads stops nothing.

    Freed memory is kept for the next tensor.
    """
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)


def keep_freed_memory() -> None:
    """Freed memory stays with this process, up to 2 GiB, where its C library is glibc; elsewhere nothing.

    By itself glibc gives large blocks back at once, and the system fills each new tensor's pages with zeros:
    a quarter of the time of a cascade to 1024 (benchmarks/NOTES.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        if not mallopt(MMAP_THRESHOLD, LARGEST_KEPT):  # older ones refuse more than LARGEST_OF_OLD
            mallopt(MMAP_THRESHOLD, LARGEST_OF_OLD)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)


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
