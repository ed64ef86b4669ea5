"""Tokens for each processor second on real prompts: femtune, transformers' generate, another checkout.

    python bench/side_by_side.py --data FILE --task math --columns prompt=input answer=target --model DIR
    python bench/side_by_side.py ... --demos 4 --before CHECKOUT     # worked examples; another commit

All sides get the same prompts and write completions of the same lengths, 8 tokens to --new, which are
drawn at random. generate writes fixed batches, padded at the left: it is charged for the longest row of
each, and credited with the tokens before the cuts. Each side runs in a process of its own on one thread,
in turns. Another checkout is asked without the check of its fused pass, which refused bfloat16 before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

SRC = Path(__file__).parents[1] / "src"


def main() -> None:
    args = arguments()
    if args.side:
        print(json.dumps(written(args.side, json.loads(args.work.read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work.json")
        work.write_text(json.dumps(work_of(args)))
        sides = {"femtune": SRC, **{f"generate {n}": SRC for n in args.generate_batches}}
        if args.before:
            sides[f"femtune of {args.before.name}"] = args.before / "src"
        rates: dict[str, list[float]] = {name: [] for name in sides}
        peaks: dict[str, float] = {}
        for turn in range(args.turns):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                found = in_process(name, sides[name], work)
                rates[name].append(found["tokens"] / found["seconds"])
                peaks[name] = found["peak_mib"]
                print(f"turn {turn + 1}, {name}: {rates[name][-1]:.1f} tokens/s", file=sys.stderr)
        show(json.loads(work.read_text()), rates, peaks)


def show(work: dict[str, Any], rates: dict[str, list[float]], peaks: dict[str, float]) -> None:
    """Print a table with a row for each side."""
    prompts, lengths = work["prompts"], work["lengths"]
    print(
        f"{len(prompts)} prompts of {statistics.mean(map(len, prompts)):.0f} tokens, "
        f"{statistics.mean(lengths):.1f} drawn for each, {work['dtype']}"
    )
    own = statistics.median(rates["femtune"])
    print("| | tokens/s, by turn | femtune is | peak MiB |\n|---|---|---|---|")
    for name, found in rates.items():
        times = "" if name == "femtune" else f"{own / statistics.median(found):.2f} times"
        print(f"| {name} | {', '.join(f'{r:.1f}' for r in found)} | {times} | {peaks[name]:,.0f} |")


def work_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return prompts as tokens, and the lengths of completions."""
    from femtune.config import Sample
    from femtune.engines.hf.engine import read_tokenizer
    from femtune.resolve import read_inputs

    given: dict[str, Any] = {"task": args.task, "columns": tuple(args.columns)}
    inputs = read_inputs(str(args.data), Sample(**given, rubric=args.rubric))
    demos = inputs.demos[: args.demos]
    if len(demos) < args.demos:
        raise SystemExit(f"the task has {len(demos)} worked examples, fewer than {args.demos}")
    prompts = inputs.prompts.with_demos(demos) if demos else inputs.prompts
    tokenizer = read_tokenizer(args.model)
    rng = random.Random(0)
    problems = rng.sample(list(inputs.problems), min(args.problems, len(inputs.problems)))
    return {
        "model": str(args.model),
        "dtype": args.dtype,
        "prompts": [tokenizer.encode_prompt(prompts.render("plain", each)) for each in problems],
        "lengths": [rng.randint(8, args.new) for _ in problems],
    }


def in_process(side: str, src: Path, work: Path) -> dict[str, float]:
    """Return what a side measures in a process of its own, with the package of `src`."""
    environment = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--side", side, "--work", str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def written(side: str, work: dict[str, Any]) -> dict[str, float]:
    """Write all completions by one side; return tokens, processor seconds and peak memory."""
    import torch

    torch.set_num_threads(1)
    write = by_generate if side.startswith("generate") else by_engine
    seconds = write(side, work, getattr(torch, work["dtype"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens": sum(work["lengths"]), "seconds": seconds, "peak_mib": peak}


def by_engine(side: str, work: dict[str, Any], dtype: Any) -> float:
    """Write by the transformers engine of the package that is imported; return processor seconds."""
    from femtune.types import DrawKey, Request, Sampling

    try:
        engines = import_module("femtune.engines.hf.engine")
        batch = import_module("femtune.engines.hf.batch")
    except ImportError:  # an earlier commit
        engines = import_module("femtune.engines.transformers")
        batch = import_module("femtune.engines.batch")
    if side != "femtune":
        causal: Any = import_module(batch.step_logits.__module__)
        causal._check_slots, causal._apart = (lambda model: None), (lambda model, served: 0.0)
    lengths = work["lengths"]

    def append(self: Any, row: Any, token: int) -> bool:
        row.tokens.append(token)
        ended = len(row.tokens) == lengths[int(row.request.key.problem_id)]
        row.finish_reason = "length" if ended else None
        return ended

    batch.Batch._append = append
    engine = engines.TransformersEngine(work["model"], dtype=dtype)
    requests = [
        Request(DrawKey(1, str(i), 0, 0), tuple(prompt), i) for i, prompt in enumerate(work["prompts"])
    ]

    def pull(room: int) -> list[Any]:
        given, requests[:room] = requests[:room], []
        return given

    started = time.process_time()
    for _ in engine.generate(pull, Sampling(max_new_tokens=max(lengths))):
        pass
    return time.process_time() - started


def by_generate(side: str, work: dict[str, Any], dtype: Any) -> float:
    """Write by model.generate in batches of the size that the side's name ends with."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(work["model"], dtype=dtype)
    size = int(side.split()[-1])
    started = time.process_time()
    for start in range(0, len(work["prompts"]), size):
        rows = work["prompts"][start : start + size]
        width, longest = max(map(len, rows)), max(work["lengths"][start : start + size])
        ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
        mask = torch.tensor([[*[0] * (width - len(row)), *[1] * len(row)] for row in rows])
        ends: dict[str, Any] = {"max_new_tokens": longest, "min_new_tokens": longest, "pad_token_id": 0}
        model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, **ends)
    return time.process_time() - started


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", default="table")
    parser.add_argument("--columns", nargs="*", default=[])
    parser.add_argument("--rubric", help="of a judge")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--demos", type=int, default=0, help="worked examples before each prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of the longest completion")
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[64])
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another commit of femtune")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
