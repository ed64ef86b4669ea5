"""Runs that are ended, by a kill or a failing disk, at every kind of write and at any time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def script(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kills", "errors"])
def test_a_run_that_is_ended_at_every_kind_of_write_ends_like_one_that_is_not(
    tmp_path: Path, how: str
) -> None:
    """Half of the kinds by kills, the others by a failing disk; `tests.write_points` has all by both."""
    said = script("-m", "tests.write_points", str(tmp_path), "0", how, "halves")
    assert int(said.splitlines()[-1].split()[0]) > 55


@pytest.mark.slow
def test_a_command_that_is_killed_at_random_ends_like_one_that_is_not() -> None:
    said = script("bench/kills.py", "--kills", "6", "--problems", "24", "--iterations", "1")
    assert "All runs ended like the one that was not killed." in said
