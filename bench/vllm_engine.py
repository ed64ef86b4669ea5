"""Tokens per second of VllmEngine beside vLLM's own LLM.generate, in turns, in one process, one core.

    taskset -c 0 python bench/vllm_engine.py                 # the seedling
    taskset -c 0 python bench/vllm_engine.py --model DIR --new 64 --requests 512 --dtype bfloat16

All sides write completions of the same lengths: "ragged" ends them at random, 5 tokens to --new,
"equal" at --new; no token ends one. For vLLM a length is the request's max_tokens, on both sides.

    femtune        VllmEngine.generate: a seed and the log-probability for each draw, its text decoded
    bare           LLM.generate of the same vLLM with the same parameters, made before the clock starts
    bare, plain    the same without seeds and without log-probabilities
    transformers   TransformersEngine

vLLM works in three processes. Rates are by seconds of the wall, which are what counts on a core of
one's own, and by those that the processes were given of it, which are steadier beside neighbours.
Medians over turns. Needs vLLM: see `make test-vllm`, whose environment has it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.vllm.engine import VllmEngine
from femtune.types import DrawKey, Engine, Request, Sampling
from generate import SEEDLING, end_rows_at, make_lengths, pull_from  # beside this file


def main() -> None:
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    lengths = make_lengths(args.requests, args.new, args.lengths == "ragged")
    theirs = TransformersEngine(args.model, dtype=args.dtype, device="cpu", max_batch=args.batch)
    vocabulary = theirs._model.config.get_text_config().vocab_size
    parameters = sum(weight.numel() for weight in theirs._model.parameters())
    end_rows_at(lengths)
    engine = Lengthy(
        args.model,
        tokenizer=theirs.tokenizer,
        dtype=args.dtype,
        max_batch=args.batch,
        args={"enforce_eager": args.eager},
    )
    engine.lengths = lengths
    # else a collection of all that is imported, half a second, falls on one side or the other by chance
    gc.collect()
    gc.freeze()

    sides: dict[str, Callable[[Sequence[Request]], None]] = {
        "femtune": lambda requests: run_engine(engine, requests, args.new),
        "bare": lambda requests: run_bare(engine, requests, args.new, plain=False),
        "bare, plain": lambda requests: run_bare(engine, requests, args.new, plain=True),
        "transformers": lambda requests: run_engine(theirs, requests, args.new),
    }
    rates: dict[str, list[float]] = {f"{name}, {clock}": [] for clock in CLOCKS for name in sides}
    for turn in range(args.turns + 1):  # the first warms up
        for number, (name, run) in enumerate(sides.items()):
            requests = make_requests(len(lengths), args.prompt, vocabulary, 10 * turn + number)
            run(requests)
            for clock, seconds in zip(CLOCKS, SECONDS.pop(), strict=True):
                if turn:
                    rates[f"{name}, {clock}"].append(sum(lengths) / seconds)
    print(f"{parameters / 1e6:.2f}M parameters, {args.dtype}, prompts of {args.prompt} tokens")
    print(f"{len(lengths)} completions, {args.lengths}, mean {statistics.mean(lengths):.1f} tokens")
    for name, values in rates.items():
        shown = " ".join(f"{value:,.0f}" for value in values)
        print(f"{name:19} tokens/s  median {statistics.median(values):8,.0f}   ({shown})")
    for clock in CLOCKS:
        for name in list(sides)[1:]:
            pairs = zip(rates[f"femtune, {clock}"], rates[f"{name}, {clock}"], strict=True)
            ratios = [mine / other for mine, other in pairs]
            shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
            middle = statistics.median(ratios)
            print(f"femtune / {name:12} by {clock}: median of turns {middle:.2f}   ({shown})")
    engine.close()


CLOCKS = ("wall", "cpu")
SECONDS: list[tuple[float, float]] = []  # by each clock, of a run less what was prepared before


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Add what the block took to SECONDS."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield
    SECONDS.append((time.perf_counter() - wall, cpu_seconds() - cpu))


def cpu_seconds() -> float:
    """Of this process and of those that it has started."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [own, *own.children(recursive=True)])


class Lengthy(VllmEngine):
    """An engine whose requests end at given lengths, and nowhere else."""

    lengths: Sequence[int] = ()

    def _params(self, sampling: Sampling) -> Any:
        params = super()._params(sampling)
        params.stop_token_ids = []
        params._all_stop_token_ids = set()
        return params

    def _seeded(self, params: Any, request: Request) -> Any:
        own = super()._seeded(params, request)
        own.max_tokens = self.lengths[int(request.key.problem_id)]
        return own


def make_requests(num: int, length: int, vocabulary: int, seed: int) -> list[Request]:
    """Random prompts, other ones in each run, so that none finds its keys in vLLM's prefix cache."""
    rng = random.Random(seed)
    prompts = [tuple(rng.choices(range(vocabulary), k=length)) for _ in range(num)]
    return [Request(DrawKey(1, str(i), 0, 0), prompt, i) for i, prompt in enumerate(prompts)]


def run_engine(engine: Engine, requests: Sequence[Request], new: int) -> None:
    """All requests through an engine; a request's id is its place, by which its length goes."""
    pull = pull_from(list(requests))
    with timed():
        for _finished in engine.generate(pull, Sampling(max_new_tokens=new)):
            pass


def run_bare(engine: VllmEngine, requests: Sequence[Request], new: int, *, plain: bool) -> None:
    """All requests through LLM.generate, which is given them at once."""
    shared = engine._params(Sampling(max_new_tokens=new))
    params = [copy.copy(engine._seeded(shared, request)) for request in requests]
    if plain:
        for own in params:
            own.seed = own.logprobs = None
    prompts = [{"prompt_token_ids": list(request.tokens)} for request in requests]
    with timed():
        engine._llm.generate(prompts, params, use_tqdm=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=SEEDLING)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--lengths", choices=("ragged", "equal"), default="ragged")
    parser.add_argument("--batch", type=int, default=128, help="rows at once")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation: starts sooner")
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
