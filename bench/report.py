"""How long a report takes, and what it holds: of a run as large as is asked for, and of real runs.

    python bench/report.py --draws 1000000     # made-up draws of 5 iterations of rejection(8)
    python bench/report.py --run runs/demo     # a run that is there

Prints seconds of making the page, the most memory that it took, the page's size, and, where Playwright
and a Chromium are there, milliseconds from opening the file until it is drawn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from femtune.runs.draws import DRAWS
from femtune.runs.run import FORMAT

ITERATIONS, BUDGET, TOKENS = 5, 8, 120
CHUNK = 1024  # problems in a shard
TEXT = "It names the point and shows why, which is what was asked for. " * 8


def make_run(root: Path, num_draws: int, seed: int = 0) -> None:
    """A run of rejection(8) whose problems are solved by each draw with chances that differ."""
    rng = np.random.default_rng(seed)
    per_problem = 2.9  # draws until the first right one, with the chances below
    num_problems = max(1, round(num_draws / ITERATIONS / per_problem))
    ids = [f"problem-{number:07}" for number in range(num_problems)]
    root.mkdir(parents=True)
    settings = {
        "data": "made-up.jsonl",
        "model": "none",
        "scheme": f"rejection:{BUDGET}",
        "iterations": ITERATIONS,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings | {"format": FORMAT, "seed": seed}))
    problems = {"id": ids, "prompt": ["What is it?"] * num_problems, "answer": ["1"] * num_problems}
    pq.write_table(pa.table(problems), root / "problems.parquet")
    made = 0
    for iteration in range(1, ITERATIONS + 1):
        folder = root / f"iteration-{iteration:03}"
        (folder / "draws").mkdir(parents=True)
        for shard, start in enumerate(range(0, num_problems, CHUNK)):
            table = _shard(rng, ids[start : start + CHUNK], iteration)
            pq.write_table(table, folder / "draws" / f"{shard:05}.parquet")
            made += table.num_rows
        (folder / "metrics.json").write_text(json.dumps({"iteration": iteration}))
    print(f"{made:,} draws of {num_problems:,} problems")


def _shard(rng: np.random.Generator, ids: list[str], iteration: int) -> pa.Table:
    """Attempts at each problem until the first right one."""
    right = rng.random((len(ids), BUDGET)) < rng.beta(2, 3, (len(ids), 1))
    before = np.cumsum(right, axis=1) - right  # right ones before each
    problem, index = np.nonzero(before == 0)
    hit, num = right[problem, index], len(problem)
    lengths = rng.integers(20, 2 * TOKENS, num)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    text = pa.repeat(TEXT, num)
    columns = {
        "iteration": pa.repeat(iteration, num),
        "problem_id": pa.array(ids).take(pa.array(problem)),
        "stage": pa.repeat(0, num),
        "index": pa.array(index),
        "prompt": pa.repeat("plain", num),
        "seed": pa.array(rng.integers(1 << 62, size=num)),
        "tokens": pa.ListArray.from_arrays(offsets, rng.integers(1 << 15, size=offsets[-1])),
        "text": text,
        "finish_reason": pa.repeat("stop", num),
        "logprob": pa.repeat(-30.0, num),
        "error": pa.repeat("", num),
        "reward": pa.array(hit.astype(float)),
        "answer": pa.array(np.where(hit, "1", "2")),
        "rationale": text,
        "reason": pa.array(np.where(hit, "", "wrong")),
        "detail": pa.repeat("", num),
    }
    table = pa.table({name: columns[name] for name in DRAWS.names}).cast(DRAWS)
    return table.replace_schema_metadata({"timing": "{}"})


def measured(runs: list[Path], output: Path) -> None:
    """In a process of its own: make the page, print seconds, peak memory and size."""
    begun = time.perf_counter()
    from femtune.reporting.page.render import report

    report(runs, output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = output.stat().st_size / 1e6
    wall, cpu = time.perf_counter() - begun, time.process_time()
    print(f"made in {wall:.1f} s ({cpu:.1f} s of CPU), {peak:,.0f} MiB at most, {size:.2f} MB")


def drawn(page: Path) -> None:
    """Milliseconds until a cold browser's load event, and until the first contentful paint."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page()
        opened.goto(page.resolve().as_uri())
        load, paint = opened.evaluate(
            "() => [performance.timing.loadEventEnd - performance.timing.navigationStart,"
            " performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN]"
        )
        print(f"loaded in {load:.0f} ms, first painted at {paint:.0f} ms")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--run", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = asked.run or Path(folder) / "run"
        if asked.run is None:
            make_run(root, asked.draws)
        output = Path(folder) / "report.html"
        worker = multiprocessing.get_context("spawn").Process(target=measured, args=([root], output))
        worker.start()
        worker.join()
        drawn(output)


if __name__ == "__main__":
    main()
