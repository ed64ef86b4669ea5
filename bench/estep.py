"""Kept draws per second of rejection sampling: femtune's E-step against the script one would write.

    python bench/estep.py                # the seedling, 1,000 problems of two worlds, budget 8

The script: `model.generate` over the unsolved problems in fixed batches, attempt after attempt, with the
same prompts, parser, reward, model, problems, budget and sampling. Its batch size is the best of those
given. Both alternate in one process; medians, with the least and the most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from femtune.config import Sample
from femtune.data.worlds import WORLDS
from femtune.estep.driver import e_step
from femtune.resolve import read_inputs
from femtune.rewards.builtin import exact, score
from femtune.runs.draws import write_draws
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import rejection
from femtune.types import Completion, Problem, Sampling


def ragged_problems(num: int) -> list[Problem]:
    """Half of them ratings, half sums of 1 to 4 digits: completions of about 5 to 60 tokens."""
    half = num // 2
    mixed = [asked("rubric", half), asked("sums", num - half)]
    return [problem for pair in zip(*mixed, strict=True) for problem in pair]


def asked(name: str, num: int) -> list[Problem]:
    """A world's problems, its instruction in the prompt: here several worlds share one sampler."""
    text = WORLDS[name].prompts().instruction
    problems = WORLDS[name].make(num, seed=7)
    return [replace(problem, prompt=f"{problem.prompt}\n\n{text}") for problem in problems]


class Script:
    """The plain loop: every unsolved problem once more, until all are solved or the budget is spent."""

    def __init__(self, builder, problems, budget, batch_size, max_new_tokens):
        self.model = AutoModelForCausalLM.from_pretrained(builder.base, dtype=torch.float32).eval()
        self.builder, self.problems, self.budget = builder, problems, budget
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    @torch.inference_mode()
    def __call__(self) -> int:
        tokenizer, prompts = self.builder.tokenizer, self.builder.prompts
        asked = {p.id: tokenizer.encode_prompt(prompts.plain(p)) for p in self.problems}
        unsolved, num_kept = list(self.problems), 0
        for _ in range(self.budget):
            still = []
            for begin in range(0, len(unsolved), self.batch_size):
                part = unsolved[begin : begin + self.batch_size]
                completions = self.generate([asked[p.id] for p in part])
                scores = score(
                    part,
                    completions,
                    [False] * len(part),
                    prompts=prompts,
                    reward=exact(),
                    accept_at=1.0,
                )
                still += [p for p, s in zip(part, scores, strict=True) if s.reason]
            num_kept += len(unsolved) - len(still)
            unsolved = still
        return num_kept

    def generate(self, rows: list[tuple[int, ...]]) -> list[Completion]:
        pad, end = self.builder.tokenizer.pad_token_id, self.builder.tokenizer.end_token_id
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self.model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=self.max_new_tokens
        )
        made = []
        for tokens in out[:, width:].tolist():
            stopped = end in tokens
            tokens = tokens[: tokens.index(end) + 1] if stopped else tokens
            text = self.builder.tokenizer.decode(tokens)
            made.append(Completion(tuple(tokens), text, "stop" if stopped else "length", 0.0))
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="seedling")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--max-batch", type=int, default=None, help="femtune's; by default its own")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    problems = ragged_problems(args.problems)
    settings = Sample(
        max_new_tokens=96,
        instruction="",
        scheme=f"rejection:{args.budget}",
        engine_dtype="float32",
        max_batch=args.max_batch,
    )
    builder = make_sampler_builder(args.model, read_inputs(problems, settings), problems)
    sampler = builder.open_sampler(Sampling(settings.max_new_tokens))
    own: list[float] = []

    def femtune() -> int:
        """As `femtune sample` does it, draws stored."""
        engine_s, num_kept, begun = 0.0, 0, time.perf_counter()
        with TemporaryDirectory() as folder:
            for chunk in e_step(problems, rejection(args.budget), sampler, iteration=1):
                write_draws(Path(folder) / f"{chunk.index}.parquet", chunk.draws, {})
                engine_s += chunk.engine_s
                num_kept += len({d.key.problem_id for d in chunk.draws if d.accepted})
        own.append(1 - engine_s / (time.perf_counter() - begun))
        return num_kept

    runs = {"femtune": femtune}
    for size in args.batch_sizes:
        runs[f"script, batches of {size}"] = Script(builder, problems, args.budget, size, 96)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    kept: dict[str, int] = {}
    sampler = replace(sampler, seed=1)
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            kept[name] = run()
            if repeat:  # the first warms up
                rates[name].append(kept[name] / (time.perf_counter() - begun))

    print(f"{len(problems)} problems, rejection({args.budget}), {args.threads} thread(s), float32")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:<24} {median:7.0f} kept draws/s ({min(values):.0f} to {max(values):.0f}), "
            f"kept {kept[name]}"
        )
    best = max((name for name in runs if name != "femtune"), key=lambda n: statistics.median(rates[n]))
    ratio = statistics.median(a / b for a, b in zip(rates["femtune"], rates[best], strict=True))
    print(
        f"femtune / {best}: {ratio:.2f} times; femtune's own work {statistics.median(own):.1%} of wall"
    )


if __name__ == "__main__":
    main()
