"""Peak resident memory of a femtune command and its children, phase by phase.

    python bench/memory.py train DATA --model DIR --max-new-tokens 64 --scheme rejection:4 --iterations 2
    python bench/memory.py --flat --sizes 1000 20000     # a tiny model of constant answer

The command runs in a process of its own, and a fresh folder. Its memory is read 5 times a second: what
the kernel counts as resident, and the part of it that is anonymous, which no file backs (weights are
mapped from files). A phase is what the run's log says. The peak is the kernel's own, of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from femtune.runs.run import read_log
from stream import constant_model

_EVERY = 0.2  # seconds between two readings
_FIRST = "before the first phase"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flat", action="store_true", help="train a tiny model on each of the sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 20_000], help="problems")
    args, command = parser.parse_known_args()
    with TemporaryDirectory() as name:
        if args.flat:
            flat(Path(name), args.sizes)
        else:
            show(measured(command, Path(name, "run")))


def flat(folder: Path, sizes: Sequence[int]) -> None:
    """Train a tiny model on more and more problems, and print the difference of the peaks."""
    constant_model(folder / "model")
    peaks = []
    for num in sizes:
        data = folder / f"{num}.jsonl"
        with data.open("w") as file:
            for number in range(num):
                row = {"prompt": f"Problem {number}: what is {number} + 7 - {number}?", "answer": "7"}
                file.write(json.dumps(row) + "\n")
        command = ["train", str(data), "--model", str(folder / "model"), "--max-new-tokens", "32"]
        command += ["--scheme", "rejection:2", "--iterations", "1", "--bound-draws", "0"]
        command += ["--num-train-epochs", "1"]
        found = measured(command, folder / f"run-{num}")
        print(f"{num:,} problems")
        show(found)
        peaks.append(found[-1][1])
    print(f"difference: {peaks[-1] - peaks[0]:,.0f} MiB")


Peak = tuple[str, float, float, float]  # phase, MiB resident and anonymous, seconds


def measured(command: Sequence[str], run: Path) -> list[Peak]:
    """Return the highest memory of each phase of a command, in order, then that of the whole."""
    whole = [sys.executable, "-m", "femtune.cli.main", *command]
    whole += ["--output-dir", str(run), "--show", "quiet"]
    process = subprocess.Popen(whole)
    phases: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    started = time.perf_counter()
    tree = psutil.Process(process.pid)
    while True:
        found = os.wait4(process.pid, os.WNOHANG)
        if found[0]:
            break
        resident, anonymous = memory_of(tree)
        highest = phases[phase_of(run)]
        highest[0], highest[1] = max(highest[0], resident), max(highest[1], anonymous)
        highest[2] += _EVERY
        time.sleep(_EVERY)
    if found[1]:
        raise SystemExit("the command failed")
    peak = max(found[2].ru_maxrss / 1024, *(resident for resident, _, _ in phases.values()))
    return [
        *((name, *each) for name, each in phases.items()),
        ("peak", peak, max(each[1] for each in phases.values()), time.perf_counter() - started),
    ]


def memory_of(tree: psutil.Process) -> tuple[float, float]:
    """Return MiB that a process and its children have: resident, and anonymous."""
    resident = anonymous = 0
    try:
        for process in [tree, *tree.children(recursive=True)]:
            used = process.memory_info()
            resident += used.rss
            anonymous += used.rss - used.shared
    except psutil.NoSuchProcess:
        pass  # one of them has ended
    return resident / 2**20, anonymous / 2**20


def phase_of(run: Path) -> str:
    """Return the phase that a run is in, by the last line of its log."""
    try:
        last = list(read_log(run))[-1]
    except (OSError, IndexError):
        return _FIRST
    return f"{last['event']} {last.get('iteration', '')}".strip()


def show(found: Sequence[Peak]) -> None:
    """Print a line for each phase."""
    for name, resident, anonymous, seconds in found:
        print(f"{name:28} {resident:7,.0f} MiB, {anonymous:7,.0f} anonymous; {seconds:5.0f} s")


if __name__ == "__main__":
    main()
