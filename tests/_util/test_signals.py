"""Signals to the real program: what is in flight is stored, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from femtune._util import interrupts
from femtune.cli.main import main
from femtune.comparison.demo import write_world
from femtune.estep.journal import Journal
from femtune.runs.draws import read_draws
from femtune.types import DrawKey


def test_a_signal_that_python_swallows_is_heeded_at_the_next_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is raised within a __del__ is printed and dropped."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Odd:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with interrupts.graceful(tells=False):
        odd = Odd()
        del odd
        assert len(dropped) == 1
        with pytest.raises(interrupts.Stopped):
            interrupts.check()
    assert not interrupts.stop_requested()


PROGRAM = (
    "import os, signal, sys; from femtune.cli.main import main;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a parent may have it ignored
    "sys.exit(main())"
)
STOPPED = "Stopped. Finished work is stored; run the same command to resume.\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    train, test = write_world("rubric", tmp_path_factory.mktemp("world"), 96, 8)
    words = [str(train), "--eval-data", str(test), "--task", "judge", "--raters", "named"]
    words += ["--scale", "1,5", "--model", "seedling", "--max-new-tokens", "64", "--max-batch", "8"]
    return [*words, "--iterations", "1", "--chunk-size", "48", "--show", "quiet", "--output-dir"]


@contextmanager
def begun(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left."""
    program = [sys.executable, "-c", PROGRAM, *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(seen: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def journalled(root: Path) -> int:
    """Lines of journals in E-steps."""
    return sum(p.read_bytes().count(b"\n") for p in root.glob("iteration-001/draws/*.open.jsonl"))


def has_drawn(root: Path) -> bool:
    return any((root / "iteration-001/draws").glob("*"))


def logged(root: Path, event: str) -> bool:
    return (root / "log.jsonl").exists() and f'"{event}"' in (root / "log.jsonl").read_text()


def stored_draws(root: Path) -> dict[DrawKey, tuple[int, ...]]:
    """Of the E-step: in shards, and in the journals of the chunks that are open."""
    folder = root / "iteration-001/draws"
    found = {draw.key: draw for chunk, _ in read_draws(folder) for draw in chunk}
    for path in folder.glob("*.open.jsonl"):
        with Journal(path.with_name(path.name.replace(".open.jsonl", ".parquet"))) as journal:
            found |= {draw.key: draw for draw in journal.draws}
    return {key: draw.completion.tokens for key, draw in found.items()}


@pytest.fixture(scope="module")
def uncut(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uncut") / "run"
    assert main(["train", *command, str(root)]) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times", "whom", "flags"),
    [
        (signal.SIGINT, 1, os.killpg, []),
        (signal.SIGTERM, 1, os.kill, ["--overlap"]),
        (signal.SIGINT, 2, os.kill, []),
    ],
)
def test_a_signal_in_the_e_step_stores_what_is_in_flight_and_two_stop_at_once(
    command: list[str],
    uncut: Path,
    tmp_path: Path,
    number: int,
    times: int,
    whom: Callable[[int, int], None],
    flags: list[str],
) -> None:
    words = ["train", *command, str(root := tmp_path / "run"), *flags]
    with begun(*words) as process:
        wait_for(lambda: journalled(root) >= 3, process)
        before = stored_draws(root)
        for _ in range(times):
            whom(process.pid, number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.endswith(STOPPED)
    in_flight = "Stopping: finishing the draws in flight. Press Ctrl-C again to stop at once.\n"
    assert error == in_flight + STOPPED or times == 2
    assert "Traceback" not in error
    after = stored_draws(root)
    assert before.items() <= after.items()
    assert len(after) > len(before) or times == 2
    assert not (root / "iteration-001/examples.parquet").exists()
    assert main(words) == 0
    assert stored_draws(root) == stored_draws(uncut)
    weights = "iteration-001/model/model.safetensors"
    assert (root / weights).read_bytes() == (uncut / weights).read_bytes()


@pytest.mark.slow
def test_a_signal_in_the_m_step_is_heeded_at_its_end(
    command: list[str], uncut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with begun("train", *command, str(root := tmp_path / "run")) as process:
        wait_for(lambda: logged(root, "M-step") and any(scratch.glob("tmp*")), process)  # it trains
        os.kill(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    said = (
        "Stopping: finishing this M-step, which would otherwise start over. "
        "Press Ctrl-C again to stop at once.\n"
    )
    # what an E-step keeps may be no more than luck would: a warning of its own line
    told = [line for line in error.splitlines(keepends=True) if not line.startswith("! E-step: ")]
    assert "".join(told) == said + STOPPED
    weights = "iteration-001/model/model.safetensors"
    assert (root / weights).read_bytes() == (uncut / weights).read_bytes()
    assert not (root / "iteration-001/metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg)],
)
def test_a_signal_to_a_comparison_has_its_runs_store_what_is_in_flight(
    command: list[str], tmp_path: Path, number: int, whom: Callable[[int, int], None]
) -> None:
    words = ["compare", *command, str(root := tmp_path / "runs"), "--no-baselines", "--workers", "2"]
    words += ["--schemes", "pps", "star"]
    runs = [root / "pps-seed0", root / "star-seed0"]
    with begun(*words) as process:
        # where cores are few, one may be through with its chunk before the other begins
        wait_for(lambda: all(map(has_drawn, runs)) and any(map(journalled, runs)), process)
        workers = children(process.pid)
        before = [stored_draws(run) for run in runs]
        whom(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number, error
        assert error.endswith(STOPPED) and "Traceback" not in error
        after = [stored_draws(run) for run in runs]
        assert all(few.items() <= more.items() for few, more in zip(before, after, strict=True))
        assert before != after
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline  # none is left behind
            time.sleep(0.05)
    if number == signal.SIGTERM:
        return  # from here on as after the other
    assert main(words) == 0
    assert all(stored_draws(run).items() >= few.items() for run, few in zip(runs, after, strict=True))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
