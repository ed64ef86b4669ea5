"""The same run on several engines: held-out accuracy after each iteration, over seeds.

    python bench/engines.py                                   # where vLLM is installed: make test-vllm
    python bench/engines.py --engines transformers ray

rubric, the seedling, rejection(4), the demo's settings, float32. Engines draw with noise of their own,
so runs differ by seed and engine alike: the question is whether a mean is off by more than its interval.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from femtune import train
from femtune.comparison.demo import SETTINGS, write_world
from femtune.evaluation.bootstrap import _T

ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {},
    "vllm": {"engine": "vllm"},
    "ray": {"ray_workers": 2, "chunk_size": 128},
    "ray+vllm": {"ray_workers": 1, "engine": "vllm"},
}


def main() -> None:
    args = arguments()
    common = {**asdict(SETTINGS), **asdict(SETTINGS.training)}
    del common["training"]
    common |= {"scheme": args.scheme, "iterations": args.iterations, "engine_dtype": "float32"}
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data, held_out = write_world("rubric", Path(scratch) / "data")
        for name in args.engines:
            begun = time.perf_counter()
            rows[name] = []
            for seed in range(args.seeds):
                place = Path(scratch) / f"{name}-{seed}"
                settings = common | {"eval_data": str(held_out), "seed": seed} | ENGINES[name]
                result = train(data, "seedling", output_dir=place, progress="quiet", **settings)
                rows[name].append([h["evaluation"]["accuracy"] for h in result.history])
            print(f"{name:14}{time.perf_counter() - begun:6.0f} s", flush=True)
    for name, runs in rows.items():
        print(f"{name:14}" + "  ".join(shown(values) for values in zip(*runs, strict=True)))


def shown(values: tuple[float, ...]) -> str:
    """Mean and half-width of its 95% interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    half = _T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ±{half:.3f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["transformers", "vllm", "ray"])
    parser.add_argument("--scheme", default="rejection:4")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
