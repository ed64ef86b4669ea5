"""Prompt tokens computed beside distinct ones, and drawn tokens a second, with and without kept prompts.

    python bench/real_size.py --model DIR --dtype bfloat16
    python bench/real_size.py --model DIR --dtype bfloat16 --scheme star --problems 48 --turns 3
    python bench/real_size.py --model DIR --dtype bfloat16 --votes 8

E-steps of a judge over prompts of about 300 tokens: an instruction, a question, a response to rate.
Distinct tokens are the nodes of the tree of all prompts that requests had. Computed ones passed through
the model, the last of each prompt with each request. Both sides are the same engine, in turns, in one
process, on one thread; "without" keeps no prompts (kept_bytes=0). Seconds are those of the process.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from clock import clock
from femtune.config import Sample
from femtune.engines.hf.batch import PromptTokens
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.prefix_tree import num_common
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.evaluation.evaluate import evaluation_draws
from femtune.resolve import read_inputs
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import parse_scheme
from femtune.types import Draw, Problem, Sampling
from generate import SEEDLING

TOPICS = (
    "how a bicycle stays upright",
    "why bread rises",
    "how tides come about",
    "why the sky is blue",
    "how a refrigerator cools",
    "why leaves change color",
    "how a lock on a canal works",
    "why metal feels colder than wood",
    "how bees find their way home",
    "why ice floats",
)
SENTENCES = (
    "It begins with what everybody has seen and asks why that is so.",
    "The cause is named early, and the steps that follow from it come in their order.",
    "One example is taken from the kitchen, another from a walk along the river.",
    "A number is given without its unit, so that a reader cannot check it.",
    "Two terms are used as if they meant the same, although they do not.",
    "The last part repeats the first in other words and adds a short summary.",
    "It says what is not known yet, and how one could find out.",
    "A comparison with a swing makes clear how the force changes its direction.",
    "The reader is warned of a common mistake, which the text then avoids.",
    "Some sentences are long, but each has one thought and a plain verb.",
    "It does not mention what happens when the temperature falls.",
    "An objection is raised and answered with an experiment that can be done at home.",
    "The history of the idea takes up more room than the idea.",
    "The words are simple enough for a child of ten.",
    "There is a list of three conditions, and each of them is explained.",
    "It ends with a question for the reader, and gives no hint of an answer.",
)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        problems, sampler = opened(args, Path(folder))
    engine = sampler.engine
    assert isinstance(engine, TransformersEngine)
    given = record_prompts()
    kept_bytes = engine.kept_bytes
    sides = {"with": kept_bytes, "without": 0}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    counts: dict[str, PromptTokens] = {}
    drawn: dict[str, list[Draw]] = {}
    now = clock("cpu")
    for turn in range(args.turns):
        # "without" first: the process's peak memory only grows
        for name in ("without", "with") if turn % 2 == 0 else ("with", "without"):
            engine.kept_bytes, engine.prompt_tokens = sides[name], PromptTokens()
            given.clear()
            begun = now()
            drawn[name] = draws(problems, sampler, args)
            tokens = sum(len(draw.completion.tokens) for draw in drawn[name])
            rates[name].append(tokens / (now() - begun))
            counts[name] = engine.prompt_tokens
            peaks.setdefault(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    show(args, engine, kept_bytes, given, drawn, counts, rates, peaks)


def show(args, engine, kept_bytes, given, drawn, counts, rates, peaks) -> None:
    """Print what was measured."""
    mean = statistics.mean(map(len, given))
    distinct = num_nodes(given)
    lengths = [len(draw.completion.tokens) for draw in drawn["with"]]
    what = f"{args.votes} votes" if args.votes else args.scheme
    print(f"{args.model.name}, {args.dtype}, {what}, {args.problems} problems, {engine.max_batch} rows")
    print(f"{len(given)} requests of {mean:.0f} tokens, {statistics.mean(lengths):.0f} drawn for each")
    pairs = zip(drawn["with"], drawn["without"], strict=False)
    same = sum(a.key == b.key and a.completion.tokens == b.completion.tokens for a, b in pairs)
    print(f"{same} of {len(lengths)} draws are the same on both sides")
    print(f"prompt tokens: {counts['with'].asked:,} asked, {distinct:,} distinct")
    for name, count in counts.items():
        shown = " ".join(f"{rate:.1f}" for rate in rates[name])
        print(
            f"{name:8} {count.computed:8,} computed, {count.computed / distinct:5.2f} of the distinct; "
            f"tokens/s median {statistics.median(rates[name]):6.1f} ({shown}); "
            f"peak {peaks[name]:.2f} GiB"
        )
    print(f"kept: at most {kept_bytes / 2**20:.0f} MiB")


def opened(args: argparse.Namespace, folder: Path) -> tuple[list[Problem], Sampler]:
    """Problems, and what they are drawn from."""
    settings = Sample(
        task="judge",
        scale="1,5",
        max_new_tokens=args.new,
        scheme=args.scheme,
        engine_dtype=args.dtype,
        max_batch=args.max_batch,
        rubric=(
            "A good answer names the cause, keeps to the question, is right in every sentence, and can "
            "be followed without a textbook. Length does not count. A mistake costs more than a gap."
        ),
        demos="none",
    )
    inputs = read_inputs(rows(args.problems, args.sentences), settings)
    builder = make_sampler_builder(str(args.model), inputs, inputs.problems)
    sampler = builder.open_sampler(Sampling(args.new))
    if args.kept is not None:
        sampler.engine.kept_bytes = args.kept * 2**20
    return inputs.problems, replace(sampler, force="never")  # as E-steps are by default


def rows(num: int, sentences: int) -> list[dict[str, object]]:
    """Items to judge: two responses to each question, so that rows share more than the instruction."""
    rng = random.Random(3)
    made = []
    for i in range(num):
        question = f"Explain {TOPICS[i // 2 % len(TOPICS)]} to reader {i // 2} in your own words."
        response = " ".join(rng.sample(SENTENCES, sentences))
        made.append({"prompt": question, "response": response, "score": 1 + rng.randrange(5)})
    return made


def draws(problems: Sequence[Problem], sampler: Sampler, args: argparse.Namespace) -> list[Draw]:
    """All draws of an E-step, or of an evaluation by votes."""
    if args.votes:
        chunks = evaluation_draws(problems, sampler, draws=args.votes, iteration=1)
    else:
        chunks = e_step(problems, parse_scheme(args.scheme), sampler, iteration=1)
    return [draw for chunk in chunks for draw in chunk.draws]


def record_prompts() -> list[tuple[int, ...]]:
    """Have the engine note the prompt of each request."""
    given: list[tuple[int, ...]] = []
    checked = TransformersEngine._checked

    def noted(self, requests, sampling):
        given.extend(request.tokens for request in requests)
        return checked(self, requests, sampling)

    TransformersEngine._checked = noted  # type: ignore[method-assign]  # in place of the method
    return given


def num_nodes(rows: Sequence[tuple[int, ...]]) -> int:
    """Nodes of the tree of token rows: each row adds what it does not share with its neighbor."""
    ordered = sorted(set(rows))
    shared = sum(num_common(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=SEEDLING)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--sentences", type=int, default=11, help="of a response")
    parser.add_argument("--scheme", default="rejection:8")
    parser.add_argument("--votes", type=int, default=0, help="this many draws of each problem instead")
    parser.add_argument("--new", type=int, default=48, help="max_new_tokens")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--kept", type=int, help="MiB of kept prompts; else the engine's default")
    parser.add_argument("--turns", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
