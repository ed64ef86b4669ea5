"""Two Ray workers beside one, a core each, on the same E-step, in turns.

    python bench/ray_workers.py                     # rubric, the seedling, rejection(4), 4,000 problems
    python bench/ray_workers.py --chunk-size 128    # smaller leases

Timed is the E-step alone, draws stored by the workers: engines are loaded and have drawn before. A
worker is one process with one thread. The draws of both are checked to be the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from femtune.config import Sample
from femtune.data.tasks.load import Options, problems_of
from femtune.data.worlds import WORLDS, make_rows
from femtune.estep.driver import e_step
from femtune.estep.ray_cluster import WorkerSpec
from femtune.estep.ray_pool import Pool
from femtune.resolve import read_inputs
from femtune.runs.draws import read_draws
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import parse_scheme
from femtune.types import Draw, Sampling


def main() -> None:
    args = arguments()
    import ray

    ray.init(num_cpus=args.workers + 1, include_dashboard=False, log_to_driver=False)
    settings = Sample(task="judge", scale="1,5", raters="named", max_new_tokens=64)
    rows, _ = make_rows(WORLDS["rubric"], args.problems, 1, seed=7)
    options = Options(scale="1,5", raters="named")
    asked = read_inputs(problems_of(rows, "judge", options, "rubric"), settings)
    builder = make_sampler_builder("seedling", asked, asked.problems)
    make_engine = partial(builder.open_sampler, Sampling(64))
    made = builder.open_sampler(Sampling(64))
    pools = {
        number: Pool(make_engine, WorkerSpec(number, address="here", gpus=0))
        for number in (1, args.workers)
    }
    seconds: dict[int, list[float]] = {number: [] for number in pools}
    drawn: dict[int, list[Draw]] = {}
    for turn in range(args.turns + 1):  # the first warms up
        for number, pool in pools.items():
            with tempfile.TemporaryDirectory() as folder:
                sampler = replace(made, engine=pool, chunk_size=args.chunk_size)
                begun = time.perf_counter()
                for _chunk in e_step(
                    asked.problems,
                    parse_scheme(args.scheme),
                    sampler,
                    iteration=1,
                    place=lambda index, folder=folder: Path(folder) / f"{index:05}.parquet",
                ):
                    pass
                taken = time.perf_counter() - begun
                drawn[number] = [draw for chunk, _ in read_draws(Path(folder)) for draw in chunk]
            if turn:
                seconds[number].append(taken)
    same = drawn[1] == drawn[args.workers]
    tokens = sum(len(draw.completion.tokens) for draw in drawn[1])
    print(f"{len(asked.problems)} problems, {args.scheme}, {args.chunk_size} a lease, {tokens:,} tokens")
    for number, values in seconds.items():
        shown = " ".join(f"{value:.1f}" for value in values)
        middle = statistics.median(values)
        print(f"{number} workers  median {middle:6.1f} s  {tokens / middle:8,.0f} tokens/s ({shown})")
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[args.workers])
    print(f"{ratio:.2f} times; the same draws: {same}")
    for pool in pools.values():
        pool.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=4000)
    parser.add_argument("--scheme", default="rejection:4")
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
