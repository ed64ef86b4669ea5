"""How long `femtune view` takes over a run of 1,000,000 draws: to its first page, and for each filter.

    python bench/view.py --folder /tmp/view-bench

A run is made once in the folder, of random words (about 600 characters and 130 tokens a draw), 2,500
draws a shard, five iterations; its files are in the page cache, as after an E-step. Each address is
asked of a fresh `femtune view`, as a browser would ask it, until the last byte. The first page is timed
from the start of the process. Beside wall seconds stand those of CPU, of all cores: on a machine that
has other work too these are the ones to go by.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from femtune.data.problems import save_problems
from femtune.runs.draws import DRAWS
from femtune.runs.run import Run
from femtune.types import Problem

SHARD, ITERATIONS, VOCABULARY = 2_500, 5, 8_000
LETTERS = list("etaoinshrdlucmfwypvbgk")
ASKED = {
    "first page": "",
    "iteration, again": "iteration=3",
    "not kept, answer 3": "kept=no&answer=3",
    "hinted, stage 1, wrong": "prompt=hinted&stage=1&reason=wrong",
    "problem id": "problem=1234",
    "text, in a fifth of all": "text=answer: 3",
    "text, in none": "text=zzzzz",
    "text, then another filter": "text=answer: 3&iteration=4&kept=yes",
    "shuffled": "sort=shuffled",
    "least likely, kept": "sort=logprob&kept=yes",
    "page 10,000": "page=10000",
    "most tokens": "sort=-tokens",
    "most tokens, page 2": "sort=-tokens&page=2",
}


def make(root: Path, num: int) -> None:
    """A run of so many draws, as an E-step stores them."""
    rng = np.random.default_rng(0)
    words = np.array(
        ["".join(rng.choice(LETTERS, rng.integers(2, 10))) for _ in range(VOCABULARY)], object
    )
    weights = 1 / np.arange(1, VOCABULARY + 1)
    shards = num // SHARD // ITERATIONS
    for iteration in range(1, ITERATIONS + 1):
        for number in range(shards):
            path = Run(root).shard(iteration, "draws", number)
            path.parent.mkdir(parents=True, exist_ok=True)
            first = number * SHARD
            table = _shard(rng, words, weights / weights.sum(), iteration, first)
            with path.open("wb") as file:
                pq.write_table(table, file)
    problems = [Problem(f"judge-{i}", f"Rate {i}.", str(i % 5 + 1)) for i in range(shards * SHARD)]
    save_problems(problems, root / "problems.parquet")
    (root / "config.yaml").write_text("scheme: star\nmodel: seedling\niterations: 5\n")


def _shard(
    rng: np.random.Generator, words: np.ndarray, weights: np.ndarray, iteration: int, first: int
) -> pa.Table:
    lengths = rng.integers(40, 160, SHARD)
    ends = np.concatenate([[0], lengths.cumsum()])
    spoken = words[rng.choice(VOCABULARY, ends[-1], p=weights)].tolist()
    rationales = [" ".join(spoken[a:b]) for a, b in pairwise(ends)]
    answers = [str(answer) for answer in rng.integers(1, 6, SHARD)]
    correct = [str((first + i) % 5 + 1) for i in range(SHARD)]
    right = np.array([answer == known for answer, known in zip(answers, correct, strict=True)])
    offsets = pa.array((ends * 1.3).astype(np.int32))
    tokens = rng.integers(0, 150_000, int(ends[-1] * 1.3) + 1).astype(np.int32)
    stage = rng.integers(0, 2, SHARD).astype(np.int32)
    empty = pa.array([""] * SHARD)
    columns = {
        "iteration": np.full(SHARD, iteration, np.int32),
        "problem_id": [f"judge-{first + i}" for i in range(SHARD)],
        "stage": stage,
        "index": np.zeros(SHARD, np.int32),
        "prompt": np.where(stage == 1, "hinted", "plain"),
        "seed": rng.integers(0, 2**62, SHARD),
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "text": [f"{z}\nAnswer: {y}" for z, y in zip(rationales, answers, strict=True)],
        "finish_reason": ["stop"] * SHARD,
        "logprob": -rng.random(SHARD) * 100,
        "error": empty,
        "reward": right.astype(float),
        "answer": answers,
        "rationale": rationales,
        "reason": np.where(right, "", "wrong"),
        "detail": empty,
    }
    return pa.table([pa.array(columns[name], DRAWS.field(name).type) for name in DRAWS.names], DRAWS)


def visit(root: Path) -> Iterator[tuple[str, float, float]]:
    """What was asked of one start of `femtune view`, with the answer's seconds: on the wall, of CPU."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "femtune", "view", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = urlsplit(re.search(r"http\S+", said)[0])
        cookie = f"femtune-view-{address.port}={address.query.partition('=')[2]}"
        used = 0.0
        for name, query in ASKED.items():
            start = begun if not query else time.perf_counter()
            where = f"http://{address.netloc}/draws?{query.replace(' ', '%20')}"
            with urlopen(Request(where, headers={"Cookie": cookie})) as answer:
                answer.read()
            took, before, used = time.perf_counter() - start, used, cpu_s(process.pid)
            yield name, took, used - before
        process.send_signal(2)


def cpu_s(pid: int) -> float:
    """Seconds that a process has used of all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--starts", type=int, default=5)
    asked = parser.parse_args()
    root = asked.folder / f"run-{asked.draws}"
    if not (root / "config.yaml").exists():
        make(root, asked.draws)
    files = [*root.rglob("*.parquet")]
    for path in files:
        path.read_bytes()  # into the page cache
    size = sum(path.stat().st_size for path in files)
    print(f"{asked.draws:,} draws, {len(files):,} files, {size / 1e6:,.0f} MB, {os.cpu_count()} cores")
    seconds: dict[str, list[tuple[float, float]]] = {}
    for _ in range(asked.starts):
        for name, *took in visit(root):
            seconds.setdefault(name, []).append((took[0], took[1]))
    print(f"load {os.getloadavg()[0]:.1f}\n\n{'seconds':<28}{'least':>8}{'median':>8}{'CPU':>8}")
    for name, each in seconds.items():
        walls, cpus = zip(*each, strict=True)
        shown = (min(walls), statistics.median(walls), statistics.median(cpus))
        print(f"{name:<28}" + "".join(f"{value:>8.2f}" for value in shown))


if __name__ == "__main__":
    main()
