"""Share of what an M-step taught in float32 that an engine serves, on that iteration's own examples.

    python bench/served_gain.py RUN --engine vllm            # in the environment of `make install-vllm`
    python bench/served_gain.py RUN --engine transformers --dtype bfloat16

The gain is the log-probability, in nats, that the examples of examples.parquet win over the base, summed
over all of them. It is measured twice, each time with a base of its own:

    float32    transformers in float32: the float32 weights of the M-step (`master`, or an adapter)
    served     the engine in 16 bits, after it has loaded the iteration's model as a run does

A run keeps float32 weights of its newest iteration alone. Earlier ones are compared with the rounded
weights, and marked `model`. To compare each with its own, run and measure one iteration after another:
`femtune train ... --iterations 1`, then 2, then 3, with `--iteration 1`, 2, 3 here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers

from femtune._util.safetensors_header import stored_dtype
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.model_files import load_tokenizer, local_model
from femtune.engines.weight_check import ROUNDING, serve
from femtune.runs.checkpoints import next_start
from femtune.runs.run import stored_config
from femtune.sampler import no_foreign_bars

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and completion
Make = Callable[[], Any]  # an engine that serves the base


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    no_foreign_bars()
    base = local_model(stored_config(args.run)["model"])
    tokenizer = load_tokenizer(base)
    numbers = args.iteration or [
        int(folder.name.rpartition("-")[2])
        for folder in sorted(args.run.glob("iteration-*"))
        if (folder / "model").is_dir()
    ]
    models = [args.run / f"iteration-{number:03}" / "model" for number in numbers]
    groups = [read_pairs(model.with_name("examples.parquet")) for model in models]
    dtype = args.dtype or stored_dtype(base)
    exact = gains(
        lambda: TransformersEngine(base, tokenizer=tokenizer, dtype="float32", max_batch=32),
        [next_start(model) for model in models],
        groups,
    )
    served = gains(lambda: make_engine(args.engine, base, models, tokenizer, dtype), models, groups)
    print(f"{args.run}, {args.engine} in {dtype}")
    print("iteration  examples  tokens  float32 gain  served gain   ratio  float32 weights")
    for number, model, pairs, one, other in zip(numbers, models, groups, exact, served, strict=True):
        tokens = sum(len(completion) for _, completion in pairs)
        against = next_start(model).name
        sizes = f"{number:>9}  {len(pairs):>8}  {tokens:>6}"
        print(f"{sizes}  {one:>12.2f}  {other:>11.2f}  {other / one:>6.4f}  {against}")


def read_pairs(examples: Path) -> list[Pair]:
    """Read the prompts and completions that were trained on."""
    table = pq.read_table(examples, columns=["prompt_tokens", "completion_tokens", "weight"])
    return [
        (tuple(row["prompt_tokens"]), tuple(row["completion_tokens"]))
        for row in table.to_pylist()
        if row["weight"] > 0
    ]


def make_engine(
    name: str, base: Path, models: Sequence[Path], tokenizer: ChatTokenizer, dtype: str
) -> Any:
    """Make the engine that a run would make, with room for its adapters."""
    if name == "transformers":
        return TransformersEngine(base, tokenizer=tokenizer, dtype=dtype, max_batch=32)
    from femtune.engines.vllm.engine import VllmEngine

    configs = [model / "adapter_config.json" for model in models]
    ranks = [json.loads(config.read_text())["r"] for config in configs if config.is_file()]
    args = {"enforce_eager": True, "max_model_len": 1024}
    return VllmEngine(
        base,
        tokenizer=tokenizer,
        dtype=dtype,
        max_batch=32,
        lora_rank=max(ranks, default=None),
        args=args,
    )


def gains(make: Make, weights: Sequence[Path], groups: Sequence[Sequence[Pair]]) -> list[float]:
    """Return for each group of pairs what its weights give more than the base, summed, in nats."""
    engine = make()
    try:
        before = [sum(engine.logprob(pairs)) for pairs in groups]
        after = []
        for folder, pairs in zip(weights, groups, strict=True):
            serve(engine, folder, ROUNDING["bfloat16"])
            after.append(sum(engine.logprob(pairs)))
    finally:
        engine.close()
    return [new - old for new, old in zip(after, before, strict=True)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--iteration", type=int, nargs="+", help="all with a model, if left out")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), help="the base's, if left out")
    return parser.parse_args()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
