"""Ctrl-C: once finishes what is in flight, twice stops; outside of such work it stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from femtune._util import interrupts
from femtune._util.interrupts import Stopped, finishing, graceful, stop_requested


def kill(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_outside_of_work_that_is_to_be_finished_it_stops_at_once() -> None:
    done = []
    with pytest.raises(Stopped) as stop, graceful():
        kill()
        done.append("not reached")
    assert (done, stop.value.status) == ([], 130)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_heeded_at_the_end_of_what_is_in_flight(
    capfd: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    done = []
    with pytest.raises(Stopped) as stop, graceful():
        with finishing("the draws in flight"):
            assert not stop_requested()
            kill(number)
            assert stop_requested()
            done.append("finished")
        done.append("not reached")
    assert (done, stop.value.status) == (["finished"], status)
    assert (
        capfd.readouterr().err
        == "Stopping: finishing the draws in flight. Press Ctrl-C again to stop at once.\n"
    )
    assert not stop_requested()


def test_the_second_signal_stops_where_it_stands() -> None:
    done = []
    with pytest.raises(Stopped), graceful(), finishing("this"):
        kill()
        done.append("once")
        kill()
        done.append("not reached")
    assert done == ["once"]


def test_the_end_of_an_inner_block_does_not_cut_off_the_outer_one() -> None:
    done = []
    with pytest.raises(Stopped), graceful(), finishing("all"):
        with finishing("a part"):
            kill()
        done.append("the rest")
    assert done == ["the rest"]


def test_what_fails_is_told_as_it_failed() -> None:
    with pytest.raises(ZeroDivisionError), graceful(), finishing("this"):
        kill()
        raise ZeroDivisionError


def test_handlers_are_as_they_were_afterwards() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with graceful():
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] != before
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_a_stop_is_a_keyboard_interrupt_that_nothing_takes_for_an_error() -> None:
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, Exception)


SPAWNS = """
import multiprocessing, os
from contextlib import nullcontext

def session(queue):
    queue.put(os.getsid(0))

if __name__ == "__main__":  # a spawned process imports nothing of femtune's
    from femtune._util import interrupts

    spawn = multiprocessing.get_context("spawn")
    for shield in (nullcontext(), interrupts.isolate_children(), nullcontext()):
        queue = spawn.Queue()
        with shield:
            child = spawn.Process(target=session, args=(queue,))
            child.start()
        print(queue.get() == os.getsid(0))
        child.join()
"""


def test_processes_that_are_spawned_shielded_are_out_of_the_terminals_reach(tmp_path: Path) -> None:
    (script := tmp_path / "script.py").write_text(SPAWNS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def in_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed


def test_other_threads_see_the_wish_and_may_not_take_signals() -> None:
    def other() -> None:
        with graceful():  # no ValueError, as signal.signal would raise here
            assert stop_requested()

    with pytest.raises(Stopped), graceful(tells=False), finishing("this"):
        kill()
        in_thread(other)
