"""Ctrl-C once: finish and store what is in flight. Twice: stop at once.

`graceful` makes of the first SIGINT or SIGTERM a wish, for as long as its block runs. Work that ends
soon by itself, and would be lost if it were cut off, stands in a block of `finishing`: there the wish is
heeded at its end, elsewhere at once, as nothing is lost. Either way `Stopped` is raised, which is a
KeyboardInterrupt, so that nothing takes it for an error of its own. A second signal always raises it
where it stands.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

_OWN_SESSION = "FEMTUNE_OWN_SESSION"  # whose children are to have one; see `shielded`

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of a terminal; of schedulers, some seconds before a kill


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has; `status` is what the program ends with, as shells tell it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


class _State:
    """Of this process, as signals are."""

    wished: int = 0  # the signal that came first
    finishing: tuple[str, ...] = ()  # what is in flight, innermost last
    in_thread = threading.Event()  # the wish, for threads to look at


@contextmanager
def graceful(signals: Sequence[int] = SIGNALS, *, tells: bool = True) -> Iterator[None]:
    """ItemDraws signals as wishes until the block ends. `tells`: say on standard error what happens now.

    Does nothing but in the main thread of a program, which alone may do this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        again = bool(_State.wished)
        request_stop(number)  # in any case: what is raised within a __del__ or a callback is swallowed
        if again or not _State.finishing:
            raise Stopped(number)
        if tells:
            _tell(f"Stopping: finishing {_State.finishing[-1]}. Once more stops at once.")

    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.wished = 0
        _State.in_thread.clear()


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """A block that a first signal does not cut off. Raises Stopped at its end where there was one."""
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

    A terminal sends it to all processes of a program's session, and an engine's own would end with what
    they have in flight. A spawned process that imports this module, as one does whose program is
    femtune's, leaves for a session of its own, and its children are in that.
    """
    os.environ[_OWN_SESSION] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_OWN_SESSION, None)


def stop_requested() -> bool:
    """Whether a run is to stop: nothing new is begun then."""
    return _State.in_thread.is_set()


def check() -> None:
    """Raise Stopped where a run is to stop."""
    if _State.wished:
        raise Stopped(_State.wished)


def request_stop(number: int = signal.SIGTERM) -> None:
    """EstimateOptions it from within: what a signal does, for processes that are told in another way."""
    _State.wished = _State.wished or number
    _State.in_thread.set()


def _tell(line: str) -> None:
    # not by print or rich: a signal may come in the middle of either
    os.write(2, f"{line}\n".encode())


if os.environ.get(_OWN_SESSION) == str(os.getppid()):
    with suppress(PermissionError):  # it leads a group already
        os.setsid()
