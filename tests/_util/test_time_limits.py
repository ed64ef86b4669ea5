"""A limit of processor time ends loops, and nothing else."""

from __future__ import annotations

import signal
import threading

import pytest

from femtune._util.time_limits import TooSlow, time_limit


def test_a_loop_without_end_is_stopped_and_the_handler_is_as_before() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(TooSlow, match=r"it takes more than 0.1 s"), time_limit(0.1):
        while True:
            pass
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_in_another_thread_there_is_no_limit() -> None:
    done: list[int] = []

    def work() -> None:
        with time_limit(0.01):
            done.append(sum(range(10**5)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [sum(range(10**5))]
