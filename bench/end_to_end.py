"""Seconds from a base model to a target accuracy: femtune, GRPO and RLOO, a STaR script; one core.

    python bench/end_to_end.py --seeds 3    # half an hour, nearly all of it GRPO's up to --cap
    python bench/end_to_end.py --seeds 3 --contenders femtune "STaR script" "femtune, star"
    python bench/end_to_end.py --contenders GRPO --first-seed 100 --set learning_rate=3e-5    # tuning

The world rubric, its 400 training and 200 held-out problems, the seedling in float32, plain prompts by
its chat template, 64 new tokens. femtune and the scripts keep what has the exact rating; GRPO and RLOO
get 1 - |y - y*| / 4, femtune's reward of ratings, with which they do better. The contenders:

    femtune             `femtune.train`, rejection(4)
    GRPO                TRL's GRPOTrainer as femtune's baseline `grpo` runs it, 8 generations a prompt
    RLOO                TRL's RLOOTrainer, the same
    STaR script         `generate` in fixed batches, hints where it was wrong, TRL's SFTTrainer, again
    STaR script, bf16   the same, trained under bfloat16 with eager attention
    femtune, star       femtune with the script's scheme: what is left is the code's doing
    script, 4 attempts  the script with femtune's scheme

The clock runs from the problems to the first look that is at the target: model loading counts, imports
and looks do not. A look is `femtune evaluate`, greedy, the same for all: after each M-step, and for GRPO
and RLOO every 20 optimizer steps, about as often. It is of 200 problems (±.06), so who looks more often
comes to a target by luck sooner. Each run has a process of its own with one thread. Seconds are the
processor's; the wall's stand beside them, for a quiet machine (there --core keeps all on one core).

Tuned with seed 100 on the same problems, by accuracy over processor seconds. femtune (10 runs) and the
script (11): learning rates 3e-4 to 1e-3, batches of 8 to 32, 2 to 8 epochs; femtune also rejection(8)
and star; the script also from the base each time, batches of `generate`, four attempts without a hint,
and bfloat16 (7% faster here). Both do best with the same: five epochs in batches of 16 at 1e-3. GRPO
with the reward 1 for the exact rating and else 0 stayed on a plateau at .58 for 20 to 45 s (16 runs:
learning rates 3e-5 to 1e-3, 8 to 64 prompts a step, 32 generations, temperature 1.5, a KL term, entropy
bonuses); with the graded one (4 runs of 60,000 to 80,000 tokens) it came to .72 at 3e-4 in steps of 4
prompts, to .62 in steps of 8, and fell apart in steps of 2 and at 1e-3. No gradient checkpointing, and
constant schedules, in all. On a CPU with bfloat16 products training is 1.4 to 1.5 times faster under
bfloat16, but only with eager attention: so run femtune, GRPO and one of the two scripts (the other did
better by accuracy when it was tuned).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 64
ASK = {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": MAX_NEW_TOKENS}

# --- what runs, as it was tuned

FEMTUNE = {
    "learning_rate": 1e-3,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 16,
    "bf16": True,
    "attn_implementation": "eager",
    "engine_dtype": "bfloat16",
}
TRL = {"gradient_checkpointing": False, "lr_scheduler_type": "constant"}
RL = {
    "bf16": True,
    "attn_implementation": "eager",
    "rl_learning_rate": 3e-4,
    "rl_batch_size": 32,  # of 4 prompts
    "rl_num_generations": 8,
    "look_every": 20,  # steps: about as often as the others look
}
SCRIPT = {
    **TRL,
    "bf16": False,
    "learning_rate": 1e-3,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 16,
    "generate_batch": 400,
}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "femtune": ("femtune", {"scheme": "rejection:4", **FEMTUNE}),
    "GRPO": ("grpo", RL),
    "STaR script": ("script", SCRIPT),
    "STaR script, bf16": ("script", SCRIPT | {"bf16": True, "train_attention": "eager"}),
    "RLOO": ("rloo", RL),
    # what is the scheme's doing, and what is the code's
    "femtune, star": ("femtune", {"scheme": "star", **FEMTUNE}),
    "script, 4 attempts": ("script", {**SCRIPT, "attempts": 4, "hint": False}),
}


# --- the clock


@dataclass
class Race:
    """One contender's clock, and what was measured when; it stands still during evaluations."""

    measure: Callable[[Any], dict[str, float]]  # of weights: a folder, or a model in memory
    target: float
    cap: float  # processor seconds
    looks: list[dict[str, float]] = field(default_factory=list)
    away: tuple[float, float] = (0.0, 0.0)  # when it began, and the time that it stood still since

    def start(self) -> None:
        self.away = now()

    def look(self, weights: Any, tokens: int) -> bool:
        """Measure the weights, made with that many generated tokens; says whether it is over."""
        here = now()
        wall, cpu = (then - away for then, away in zip(here, self.away, strict=True))
        self.looks.append({"wall_s": wall, "cpu_s": cpu, "tokens": tokens, **self.measure(weights)})
        back = now()
        self.away = (self.away[0] + back[0] - here[0], self.away[1] + back[1] - here[1])
        print("   ", *(f"{name} {value:.5g}" for name, value in self.looks[-1].items()), file=sys.stderr)
        return self.looks[-1]["accuracy"] >= self.target or cpu > self.cap


def now() -> tuple[float, float]:
    """Wall and processor seconds, the latter of all threads, and of children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def run(name: str, settings: dict[str, Any], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One contender up to the highest target, in a process of its own."""
    import torch
    from transformers import AutoTokenizer

    from femtune import evaluate
    from femtune.comparison.demo import write_world
    from femtune.data.worlds import SEEDLING

    torch.set_num_threads(1)
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    hush()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train, test = write_world("rubric", folder / "world")
        numbers = count()

        def measure(weights: Any) -> dict[str, float]:
            place = folder / f"look-{next(numbers)}"
            if not isinstance(weights, Path):
                weights.save_pretrained(place / "model")
                tokenizer.save_pretrained(place / "model")
                weights = place / "model"
            found = evaluate(test, weights, output_dir=place / "draws", progress="quiet", **ASK).metrics
            return {key: found[key] for key in ("accuracy", "sound_steps", "mae")}

        race = Race(measure, max(args.targets), args.cap)
        tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
        base = measure(SEEDLING)["accuracy"]  # it also loads what all of them share
        kind = CONTENDERS[name][0]
        if kind == "femtune":
            go = prepare_femtune(train, folder / "run", race, seed, settings)
        elif kind == "script":
            go = prepare_script(train, race, seed, settings)
        else:
            go = prepare_rl(kind, train, folder / "passes", race, seed, settings)
        race.start()
        go()
    return {"name": name, "seed": seed, "settings": settings, "base": base, "looks": race.looks}


# --- the contenders: each imports and reads its data, and gives what is timed


class Over(Exception):
    """femtune is told its iterations beforehand, and would go on."""


def prepare_femtune(
    data: Path, place: Path, race: Race, seed: int, settings: dict[str, Any]
) -> Callable[[], None]:
    import femtune
    import femtune.mstep.fit
    from femtune.reporting.terminal import Quiet

    class Watch(Quiet):
        tokens = 0

        def measured(self, iteration: int, metrics: dict[str, Any]) -> None:
            if iteration:
                self.tokens += metrics["e_step"]["generated_tokens"]
                if race.look(place / f"iteration-{iteration:03}" / "model", self.tokens):
                    raise Over

    alone = {"iterations": 1000, "eval_share": 0.0, "eval_every": 0}  # `Race.look` ends and measures it

    def go() -> None:
        with suppress(Over):
            femtune.train(
                data,
                "seedling",
                output_dir=place,
                seed=seed,
                progress=Watch(),
                use_cpu=True,
                **ASK,
                **alone,
                **settings,
            )

    return go


def prepare_rl(
    kind: str, data: Path, place: Path, race: Race, seed: int, settings: dict[str, Any]
) -> Callable[[], None]:
    from femtune.comparison.policy_gradient import Environment, policy_gradient
    from femtune.config import RL
    from femtune.data.tasks.load import Options, read_task
    from femtune.data.worlds import SEEDLING
    from femtune.engines.hf.engine import read_tokenizer
    from femtune.mstep.config import Training
    from femtune.rewards.builtin import ordinal, score
    from femtune.types import Sampling

    read = read_task(data, "judge", Options(raters="named", scale="1,5"))
    own = {key: value for key, value in settings.items() if key.startswith("rl_")}
    rest = {key: value for key, value in settings.items() if key not in {*own, "look_every"}}
    training = Training(use_cpu=True, per_device_train_batch_size=64, **rest)
    grade = partial(score, prompts=read.prompts, reward=ordinal((1, 5)))
    place.mkdir()

    def go() -> None:
        world = Environment(
            problems=read.problems,
            prompts=read.prompts,
            tokenizer=read_tokenizer(SEEDLING),
            grade=grade,
            sampling=Sampling(MAX_NEW_TOKENS),
            seed=seed,
        )
        weights, spent, over = SEEDLING, 0, False
        steps = count(1)

        def is_over(model: Any, tokens: int) -> bool:
            nonlocal over
            if next(steps) % settings["look_every"] == 0:
                over = race.look(model, spent + tokens)
            return over

        for iteration in count(1):  # each pass with a fresh optimizer, as the baselines have
            out = place / str(iteration)
            policy_gradient(
                *(kind, world, weights, out, training, RL(**own)), iteration=iteration, is_over=is_over
            )
            if over:
                return
            weights = out
            spent += json.loads((out / "pass.json").read_text())["e_step"]["generated_tokens"]

    return go


def prepare_script(data: Path, race: Race, seed: int, settings: dict[str, Any]) -> Callable[[], None]:
    from femtune.data.tasks.load import Options, read_task
    from femtune.data.worlds import SEEDLING
    from star_script import train_script

    read = read_task(data, "judge", Options(raters="named", scale="1,5"))
    common = {"seed": seed, "max_new_tokens": MAX_NEW_TOKENS}
    return lambda: train_script(read.problems, read.prompts, SEEDLING, race.look, **common, **settings)


def hush() -> None:
    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


# --- what came of it


@dataclass(frozen=True)
class Row:
    """A contender at a target, medians over seeds; where not all came there, what the best was."""

    name: str
    target: float
    reached: int
    seeds: int
    cpu_s: float
    wall_s: float
    accuracy: float
    sound_steps: float
    tokens: float

    @property
    def mark(self) -> str:
        return "" if 2 * self.reached > self.seeds else ">"  # the median run came there, or not

    def text(self) -> str:
        seconds = f"{self.mark}{self.cpu_s:.1f}"
        return (
            f"{self.name:<20}{self.target:>7.2f}{f'{self.reached} of {self.seeds}':>9}{seconds:>9}"
            f"{self.wall_s:>8.1f}{self.accuracy:>10.3f}{self.sound_steps:>7.3f}{self.tokens:>11,.0f}"
        )


def at_target(name: str, target: float, results: list[dict[str, Any]]) -> Row:
    found, reached = [], 0
    for result in results:
        there = [look for look in result["looks"] if look["accuracy"] >= target]
        reached += bool(there)
        best = max(result["looks"], key=lambda look: look["accuracy"])
        last = result["looks"][-1]  # one that did not come there took all its time
        times = {key: last[key] for key in ("cpu_s", "wall_s", "tokens")}
        found.append(there[0] if there else best | times)
    keys = ("cpu_s", "wall_s", "accuracy", "sound_steps", "tokens")
    medians = {key: statistics.median(each[key] for each in found) for key in keys}
    return Row(name, target, reached, len(results), **medians)


def show(results: list[dict[str, Any]], targets: list[float]) -> None:
    """The table, and how many times femtune's seconds the others took."""
    names = list(dict.fromkeys(result["name"] for result in results))
    by_name = {name: [each for each in results if each["name"] == name] for name in names}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{packages}; {platform.machine()}, 1 thread; base accuracy {results[0]['base']:.3f}")
    print(
        f"{'':<20}{'target':>7}{'reached':>9}{'cpu s':>9}{'wall s':>8}{'accuracy':>10}{'sound':>7}"
        f"{'generated':>11}"
    )
    for target in targets:
        rows = {name: at_target(name, target, by_name[name]) for name in names}
        for row in rows.values():
            print(row.text())
        first = rows.get("femtune")
        if first and not first.mark and len(rows) > 1:
            ratios = [
                f"{name} {row.mark}{row.cpu_s / first.cpu_s:.1f} (wall {row.wall_s / first.wall_s:.1f})"
                for name, row in rows.items()
                if row is not first
            ]
            print(f"    times femtune's seconds to {target:.2f}: {', '.join(ratios)}")
    for name in names:
        settings = " ".join(f"{key}={value}" for key, value in by_name[name][0]["settings"].items())
        print(f"{name}: {settings}")


def main() -> None:
    args = arguments()
    # before torch is imported, here and in the processes
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    results = []
    spawn = multiprocessing.get_context("spawn")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.contenders:
            settings = CONTENDERS[name][1] | dict(args.set)
            print(f"{name}, seed {seed}", *args.set, file=sys.stderr)
            with ProcessPoolExecutor(1, spawn) as pool:
                results.append(pool.submit(run, name, settings, seed, args).result())
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results, sorted(args.targets))


def setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)[:4])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.65, 0.7, 0.75, 0.8])
    parser.add_argument("--cap", type=float, default=300, help="processor seconds of a run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--set", type=setting, nargs="+", default=[], help="of all, for tuning: key=value"
    )
    parser.add_argument("--core", type=int, help="the core to stay on, where the machine is quiet")
    parser.add_argument("--json", type=Path, help="where to write all that was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
