"""What storing costs: the share of an E-step's time that journal, shards and manifest take.

    python bench/storing.py              # 2,000 problems in chunks of 64 and of 1,024

`femtune sample` by rejection(4) on the rubric world with the seedling, whose draws are short and soon
made, the worst case. Timed by wrapping what stores; each setting runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from femtune.cli.main import main as femtune
from femtune.comparison.demo import write_world
from femtune.estep import driver, journal
from femtune.runs import run


def timed(owner: Any, name: str, spent: dict[str, float], label: str) -> None:
    """Have a function add its seconds to what was spent."""
    do: Callable[..., Any] = getattr(owner, name)

    @wraps(do)
    def timing(*args: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return do(*args, **named)
        finally:
            spent[label] += time.perf_counter() - begun

    setattr(owner, name, timing)


def measure(argv: list[str], out: Path) -> dict[str, float]:
    """Seconds of the E-step, and those spent on each kind of storing."""
    spent: dict[str, float] = defaultdict(float)
    timed(journal.Journal, "__init__", spent, "journal")
    timed(journal.Journal, "append", spent, "journal")
    timed(driver, "remove_journal", spent, "journal")
    timed(driver, "write_draws", spent, "shards")
    timed(run.Run, "record", spent, "manifest")
    if femtune([*argv, "--output-dir", str(out), "--show", "quiet"]):
        raise SystemExit("the run failed")
    metrics = json.loads((out / "iteration-001/metrics.json").read_text())["e_step"]
    # these come when a chunk's own time is known
    whole = metrics["total_s"] + spent["shards"] + spent["manifest"]
    return {"e_step": whole, **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # data, chunk size, resume, folder
    args = parser.parse_args()
    if args.one:
        data, size, resume, out = args.one
        argv = ["sample", data, "--task", "judge", "--raters", "named", "--scale", "1,5"]
        argv += ["--model", "seedling", "--max-new-tokens", "64", "--scheme", "rejection:4"]
        print(json.dumps(measure([*argv, "--chunk-size", size, "--resume", resume], Path(out))))
        return
    print("| chunk | resume | E-step s | journal s | shards s | manifest s | storing |")
    print("|---|---|---|---|---|---|---|")
    with TemporaryDirectory(dir=".") as name:  # on a disk: what is temporary may be in memory
        data, _ = write_world("rubric", Path(name) / "world", args.problems, 8)
        for number in range(args.repeats):
            for size in map(str, args.chunk_sizes):
                for resume in ("draws", "chunks"):
                    out = Path(name) / f"run-{number}-{size}-{resume}"
                    words = [sys.executable, __file__, "--one", str(data), size, resume, str(out)]
                    done = subprocess.run(words, capture_output=True, text=True, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    parts = [found.get(part, 0.0) for part in ("journal", "shards", "manifest")]
                    shown = " | ".join(f"{part:.3f}" for part in parts)
                    share = sum(parts) / found["e_step"]
                    print(
                        f"| {size} | {resume} | {found['e_step']:.1f} | {shown} | {share:.2%} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
