"""CPU seconds of scoring every answer after each draw's rationale, beside those of the draws.

    python bench/answers.py                                   # the seedling: ratings 1 to 5
    python bench/answers.py --model DIR --dtype bfloat16 --problems 8 --new 128 --max-batch 32

Draws are those of an E-step over the rubric world. All are measured in turns in one process on one
thread. "And answers" draws the same, and scores the answers after draws as these come, as `evaluate`
and `predict` do: what it takes more than the draws is the cost. "Answers after" scores them when all are
drawn, as of stored draws. "In pairs" is the same by whole passes, a row for each answer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from clock import clock
from femtune.config import Sample
from femtune.data.worlds import WORLDS
from femtune.estep.answer_probs import answer_logprobs, closed_set
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.evaluation.scored_answers import Scored, Scoring
from femtune.resolve import read_inputs
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import parse_scheme
from femtune.types import Draw, Problem, Sampling


class InPairs:
    """An engine whose continuations are scored a pair at a time."""

    def __init__(self, engine):
        self.engine = engine

    def logprobs_after(self, asked):
        """Score by whole passes."""
        pairs = [(prefix, each) for prefix, several in asked for each in several]
        most = 8192 // max(sum(map(len, pair)) for pair in pairs)
        with torch.inference_mode():
            parts = [self.engine._score(pairs[i : i + most]) for i in range(0, len(pairs), most)]
        nats = iter(torch.cat(parts).tolist())
        return [[next(nats) for _ in several] for _, several in asked]


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    problems, sampler = opened(args)
    by_id = {problem.id: problem for problem in problems}
    names = ("draws", "and answers", "answers after", "in pairs")
    spent: dict[str, list[float]] = {name: [] for name in names}
    now = clock("cpu")

    def timed(name: str, run: Callable[..., list], *given: object) -> list:
        begun = now()
        made = run(*given)
        spent[name].append(now() - begun)
        return made

    pairs = replace(sampler, engine=InPairs(sampler.engine))
    draws: list[Draw] = []
    for _ in range(args.turns + 1):  # the first warms up
        draws = timed("draws", drawn, problems, args.scheme, sampler)
        found = timed("answers after", answer_logprobs, draws, by_id, sampler)
        same = timed("in pairs", answer_logprobs, draws, by_id, pairs)
        both = timed("and answers", scored, problems, args.scheme, sampler)
    [between] = both
    at_once = [between[draw.key.problem_id, draw.key.index] for draw in draws]
    logprobs, others, more = (
        torch.tensor([each.logprobs for each in one]) for one in (found, same, at_once)
    )
    apart = max((each - others).abs().max().item() for each in (logprobs, more))
    prompts = [sampler.tokenizer.encode_prompt(sampler.prompts.render("plain", p)) for p in problems]
    print(f"{args.model}, {args.dtype}, {len(draws)} draws of {len(problems)} problems, {args.scheme}")
    written = mean([draw.completion.tokens for draw in draws])
    print(f"prompts of {mean(prompts):.0f} tokens, draws of {written:.0f}")
    print(f"{len(closed_set(problems[0]))} answers each; largest difference from pairs {apart:.2g} nats")
    whole = statistics.median(spent["draws"][1:])
    for name, values in spent.items():
        median = statistics.median(values[1:])
        shown = " ".join(f"{value:.2f}" for value in values[1:])
        print(f"{name:13} {median:7.2f} s  {median / whole:6.1%} of the draws'   ({shown})")
    turns = zip(spent["draws"][1:], spent["and answers"][1:], strict=True)
    extra = statistics.median(after / alone - 1 for alone, after in turns)
    print(f"answers as draws come cost {extra:.1%} of the draws")


def mean(rows: list) -> float:
    """Tokens a row."""
    return statistics.mean(map(len, rows))


def opened(args: argparse.Namespace) -> tuple[list[Problem], Sampler]:
    """Problems, and what they are drawn from."""
    world = WORLDS["rubric"]
    problems = world.make(args.problems, seed=7)
    settings = Sample(
        max_new_tokens=args.new,
        instruction=world.prompts().instruction,
        scheme=args.scheme,
        engine_dtype=args.dtype,
        max_batch=args.max_batch,
    )
    builder = make_sampler_builder(args.model, read_inputs(problems, settings), problems)
    return problems, builder.open_sampler(Sampling(settings.max_new_tokens))


def drawn(problems: list[Problem], scheme: str, sampler: Sampler) -> list[Draw]:
    """An E-step's draws that hold tokens."""
    chunks = e_step(problems, parse_scheme(scheme), sampler, iteration=1)
    return [draw for chunk in chunks for draw in chunk.draws if draw.completion.tokens]


def scored(problems: list[Problem], scheme: str, sampler: Sampler) -> list[Scored]:
    """Scores of the answers after the same draws, scored as these come."""
    scoring = Scoring(problems, sampler)
    chunks = e_step(problems, parse_scheme(scheme), scoring.sampler, iteration=1, on_draws=scoring.add)
    return [scoring.finish(chunk.draws) for chunk in chunks]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="seedling")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--scheme", default="rejection:4")
    parser.add_argument("--new", type=int, default=96, help="max_new_tokens")
    parser.add_argument("--max-batch", type=int, default=None)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
