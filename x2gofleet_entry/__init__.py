"""x2gofleet_entry: where the commands begin and end: no traceback, whatever terminal, pipe, disk and user do.

A package of its own that imports nothing before it needs it: Ctrl-C is met while the command itself is imported, too.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["EXIT_INTERRUPTED", "EXIT_OUTPUT_LOST", "OutputLost", "reader", "worker"]

EXIT_OUTPUT_LOST = 4
EXIT_INTERRUPTED = 130
_STREAMS = (0, 1, 2)


class OutputLost(Exception):
    """What a command prints can't be written: the disk is full, or stdout is closed.

    Not an OSError, which commands take for a failure of what they do.
    """


class _ReaderGone(OutputLost):
    """Nobody reads the pipe any more, as after ``| head``."""


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError as exc:
            raise _ReaderGone from exc
        except OSError as exc:
            closed = exc.errno == errno.EBADF
            raise OutputLost("stdout is closed" if closed else os.strerror(exc.errno or errno.EIO)) from exc


class _Stderr(io.FileIO):
    """Where nothing can be said of the loss of what it is for."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def reader() -> int:
    """Run ``x2gofleet``; return its exit status."""

    def load() -> Callable[[], int]:
        from x2gofleet.cli.app import main

        return main

    return _run("x2gofleet", load)


def worker() -> int:
    """Run ``x2gofleet-worker``; return its exit status: 1 where what it needs more than a reader is not installed."""

    def load() -> Callable[[], int]:
        try:
            from x2gofleet_workers.cli import main
        except ModuleNotFoundError as exc:
            from x2gofleet.extras import how_to_install

            needs = f"a worker needs more than a reader: {how_to_install('worker')}"
            print(f"x2gofleet-worker: {exc}; {needs}", file=sys.stderr)
            return lambda: 1
        return main

    return _run("x2gofleet-worker", load)


def _run(program: str, load: Callable[[], Callable[[], int]]) -> int:
    """Import and run a command; return its exit status.

    EXIT_OUTPUT_LOST where stdout can't be written, and one line says why; 0 where nobody reads it any more;
    EXIT_INTERRUPTED after Ctrl-C, unless the command gives it a meaning of its own.
    """
    heeds_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds_interrupts:
        signal.signal(signal.SIGINT, _leave)
    _take_streams()
    try:
        try:
            command = load()
            if heeds_interrupts:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = command()
        except SystemExit as exc:
            status = _status_of(exc)
        finally:
            # Python's own way out takes a moment in which Ctrl-C would be a traceback.
            if heeds_interrupts:
                signal.signal(signal.SIGINT, _leave)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave()
    except _ReaderGone:
        # The usual end of what is piped into head.
        os._exit(0)
    except OutputLost as exc:
        print(
            f"{program}: what it prints can't be written: {exc}. Redirect stdout to where there is room",
            file=sys.stderr,
        )
        os._exit(EXIT_OUTPUT_LOST)
    return status


def _leave(*_: object) -> None:
    """End the process at once: Python would wait for threads that still run, and write what is still buffered."""
    os._exit(EXIT_INTERRUPTED)


def _status_of(exc: SystemExit) -> int:
    if exc.code is None or isinstance(exc.code, int):
        return exc.code or 0
    print(exc.code, file=sys.stderr)
    return 1


def _take_streams() -> None:
    """Have losses of stdout raised as OutputLost and losses of stderr ignored; also where one was closed.

    A descriptor below 3 that is closed would become that of a socket or file, which the next print writes to.
    """
    for descriptor in _STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:
            # Open for reading alone, so that what is written to a closed stdout is an error, not lost unseen.
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout, errors="replace")
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr, errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True)


def _text(raw: io.FileIO, before: object, *, errors: str) -> io.TextIOWrapper:
    """Return a text stream over ``raw`` that encodes and buffers as the one before, which may be closed."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=errors,
        line_buffering=getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )
