"""Handling of Ctrl-C: the first one finishes and stores what is in flight, the second stops at once.

Within a `graceful` block, the first SIGINT or SIGTERM is a request to stop. Short work whose result
would otherwise be lost runs in a `finishing` block, and the request is honored at the end of that
block. Elsewhere it is honored at once, since nothing is lost. Either way `Stopped` is raised. It is
a KeyboardInterrupt, so that no handler of ordinary errors catches it. A second signal always raises
`Stopped` immediately.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import spawn
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # SIGTERM: sent by schedulers some seconds before a kill


class Stopped(KeyboardInterrupt):
    """Raised when a run stopped on request; `status` is the exit status by shell convention."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


class _State:
    """The state of this process; signals are handled per process."""

    requested: int = 0  # the first signal; 0: none
    finishing: tuple[str, ...] = ()  # the work in flight, innermost last
    in_thread = threading.Event()  # the request, as threads can see it


@contextmanager
def graceful(signals: Sequence[int] = SIGNALS, *, tells: bool = True) -> Iterator[None]:
    """Treat signals as requests to stop until the block ends. `tells`: log to stderr what is finished.

    Has no effect outside the main thread, which alone may set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        again = bool(_State.requested)
        request_stop(number)  # always: what is raised within a __del__ or a callback is swallowed
        if again or not _State.finishing:
            raise Stopped(number)
        if tells:
            _tell(f"Stopping: finishing {_State.finishing[-1]}. Press Ctrl-C again to stop at once.")

    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.requested = 0
        _State.in_thread.clear()


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Delay a first signal until the block ends. Raises Stopped there if one arrived."""
    before = _State.finishing
    _State.finishing = (*before, what)
    try:
        yield
    finally:
        _State.finishing = before
    if not before:
        check()


@contextmanager
def isolate_children() -> Iterator[None]:
    """Keep the terminal's Ctrl-C from processes that multiprocessing spawns in the block.

    A terminal sends Ctrl-C to all processes of a program's session, so an engine's processes would end
    with their work in flight. Each spawned process moves to a session of its own before it does anything
    else; its children stay in that session.
    """
    command_line = spawn.get_command_line

    def isolated(**pipes: Any) -> list[str]:
        return [
            f"import os; os.setsid(); {word}" if before == "-c" else word
            for before, word in pairwise(["", *command_line(**pipes)])
        ]

    spawn.get_command_line = isolated
    try:
        yield
    finally:
        spawn.get_command_line = command_line


class OwnStop:
    """A request to stop that femtune makes itself, and takes back: see `own_stop`."""

    fired = False

    def fire(self) -> None:
        """Request the stop, unless a signal has done so."""
        if not _State.requested:
            self.fired = True
            request_stop()


@contextmanager
def own_stop(seconds: float | None = None) -> Iterator[OwnStop]:
    """Give a request to stop that ends with the block; it is made after so many seconds, if given.

    `Stopped` is raised within the block as for a signal. The caller catches it where `fired` is True.
    """
    own = OwnStop()
    timer = None if seconds is None else threading.Timer(max(0.0, seconds), own.fire)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield own
    finally:
        if timer is not None:
            timer.cancel()
        if own.fired:
            _State.requested = 0
            _State.in_thread.clear()


def stop_requested() -> bool:
    """Return True if the run should stop; then no new work is started."""
    return _State.in_thread.is_set()


def check() -> None:
    """Raise Stopped if the run should stop."""
    if _State.requested:
        raise Stopped(_State.requested)


def request_stop(number: int = signal.SIGTERM) -> None:
    """Request a stop from within, as a signal does, for processes that are asked another way."""
    _State.requested = _State.requested or number
    _State.in_thread.set()


def _tell(line: str) -> None:
    # not with print or rich: a signal may interrupt either
    os.write(2, f"{line}\n".encode())
