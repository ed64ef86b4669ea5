"""Print what a run costs on models that were not run, modeled from the draws of a measured run.

    python scripts/run_costs.py                                # the table of README.md and docs/costs.md
    python scripts/run_costs.py --problems 10000 --tokens 300  # another run
    python scripts/run_costs.py --measured words               # the constants below, from a run's folder

A model of N parameters takes 2 N FLOPs for a token that it reads or writes, and 6 N for one that it is
trained on (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, without attention). A GPU reaches a share
of its peak, assumed for each kind of work (SHARES):

    hours = (2 N read / .5 + 2 N written / .1 + 6 N trained / .35) / peak / 3,600

How often a problem is asked and trained on is that of one measured run, MEASURED. A prompt is read for
each draw, as servers bill it; a cache makes it cheaper. `femtune estimate` models your own data and
model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from femtune.data.prompts import Prompts
from femtune.engines.model_files import load_tokenizer, local_model
from femtune.runs.draws import read_draws
from femtune.tools.stored_run import fitted_prompts, open_stored
from femtune.types import Draw

MODELS = {"1.7B": 1.7e9, "8B": 8e9, "32B": 32e9}
H100 = 989.5e12  # FLOP/s in bfloat16, dense; source: femtune/tools/estimate/hardware.py
SHARES = {"read": 0.5, "written": 0.1, "trained": 0.35}  # of the peak; assumed, not measured by us
FULL, BASE = 16, 2  # bytes a parameter: float32 weights, gradients and AdamW's moments; bfloat16 weights


@dataclass(frozen=True)
class Asked:
    """How a run asks and trains, for each problem and iteration."""

    draws: float
    passes: float  # times that an example of the problem is trained on: kept examples x epochs
    prompt: float  # tokens of the plain prompt
    demos: float  # tokens of the worked examples, which the first iteration reads before it


# recipes/word-problems.yaml: rejection:4 with SmolLM2-135M-Instruct, three iterations
MEASURED = Asked(draws=3.05, passes=1.12, prompt=73.8, demos=347.0)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a run."""

    read: float
    written: float
    trained: float


def tokens(asked: Asked, problems: int, iterations: int, completion: float) -> Tokens:
    """Return the tokens of a run whose completions have `completion` tokens each.

    >>> tokens(Asked(draws=2, passes=3, prompt=4, demos=10), 5, 2, completion=6)
    Tokens(read=180, written=120, trained=300)
    """
    draws, passes = (problems * iterations * each for each in (asked.draws, asked.passes))
    return Tokens(
        read=draws * asked.prompt + problems * asked.draws * asked.demos,
        written=draws * completion,
        trained=passes * (asked.prompt + completion),
    )


def flops(parameters: float, run: Tokens) -> float:
    """Return 2 N FLOPs for each token read or written, and 6 N for each one trained.

    >>> flops(10, Tokens(read=1, written=2, trained=3))
    240
    """
    return 2 * parameters * (run.read + run.written) + 6 * parameters * run.trained


def hours(parameters: float, run: Tokens, peak: float = H100) -> float:
    """Return the hours of one GPU at the assumed shares of its peak.

    >>> round(hours(1e9, Tokens(read=5e8, written=1e8, trained=0), peak=4e18 / 3600), 6)
    1.0
    """
    seconds = 2 * parameters * (run.read / SHARES["read"] + run.written / SHARES["written"])
    return (seconds + 6 * parameters * run.trained / SHARES["trained"]) / peak / 3600


def table(run: Tokens) -> str:
    """Return the table of all models in Markdown."""
    lines = [
        "| model | FLOPs | H100 hours | memory, full | memory, LoRA |",
        "|---|---|---|---|---|",
    ]
    for name, parameters in MODELS.items():
        cells = (
            name,
            f"{flops(parameters, run):.1e}",
            f"{hours(parameters, run):.2g}",
            f"{FULL * parameters / 1e9:,.0f} GB",
            f"{BASE * parameters / 1e9:,.0f} GB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(root: Path) -> tuple[Asked, float]:
    """Return how the run in a folder asked and trained, and the mean tokens of its completions."""
    stored = open_stored(root, 1)
    tokenizer = load_tokenizer(local_model(stored.model), stored.settings.template_args)
    prompts, demos = fitted_prompts(root, stored.settings, stored.problems, tokenizer)
    shown = prompts.with_demos(demos)

    def length(draw: Draw, form: Prompts) -> int:
        messages = form.render(draw.prompt_kind, stored.problems[draw.key.problem_id])
        return len(tokenizer.encode_prompt(messages))

    finished = root.glob("iteration-*/metrics.json")
    folders = [path.parent / "draws" for path in sorted(finished) if (path.parent / "draws").exists()]
    draws = [draw for folder in folders for chunk, _ in read_draws(folder) for draw in chunk]
    steps = [json.loads((folder.parent / "metrics.json").read_text())["m_step"] for folder in folders]
    asked = len(stored.problems) * len(folders)
    found = Asked(
        draws=round(len(draws) / asked, 2),
        passes=round(sum(step["num_examples"] * step["num_epochs"] for step in steps) / asked, 2),
        prompt=round(fmean(length(draw, prompts) for draw in draws), 1),
        demos=round(fmean(length(draw, shown) - length(draw, prompts) for draw in draws), 1),
    )
    return found, fmean(len(draw.completion.tokens) for draw in draws)


def main() -> None:
    """Print the table for the run that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000, help="problems to train on")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--tokens", type=float, default=300, help="mean tokens of a completion")
    parser.add_argument("--measured", type=Path, metavar="RUN", help="print how a run of train asked")
    args = parser.parse_args()
    if args.measured:
        found, completion = measured(args.measured)
        print(f"{found}, {completion:.1f} tokens a completion")
        return
    run = tokens(MEASURED, args.problems, args.iterations, args.tokens)
    print(table(run))


if __name__ == "__main__":
    main()
