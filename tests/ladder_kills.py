"""A small ladder that is killed once on each of its rungs: see comparison/test_ladder.py.

    python -m tests.ladder_kills FOLDER

Forks a process for each attempt, which ends itself by SIGKILL: at a random time of the rung that it was
told to end at, or just before that rung is stored. The next attempt is the same command. Prints each
kill; exit status 1 where the table is not that of the ladder that nobody interrupted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

import femtune.runs.run
from femtune.comparison.ladder import climb
from femtune.comparison.ladder.options import LadderOptions
from femtune.config import Train
from femtune.mstep.config import Training
from femtune.sampler import no_foreign_bars

from .demo_runs import make_world
from .write_points import forked

TIMES = ("seconds", "processor_s", "engine_s", "total_s")


def run(world: Path, root: Path) -> Any:
    """Run the ladder as the command does."""
    settings = Train(
        task="judge",
        raters="named",
        scale="1,5",
        max_new_tokens=48,
        eval_data=str(world / "test.jsonl"),
        iterations=1,
        scheme="rejection:2",
        chunk_size=10,
        training=Training(learning_rate=3e-4, num_train_epochs=1, use_cpu=True),
    )
    options = LadderOptions(draws=2)
    return climb.run_ladder(str(world / "train.jsonl"), "seedling", settings, root, "quiet", options)


def attempt(world: Path, root: Path, rung: str, seed: int) -> None:
    """Run the ladder, and end this process in a rung."""
    no_foreign_bars()
    measure = climb.measure

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def measured(name: str, *rest: Any) -> Any:
        if name != rung:
            return measure(name, *rest)
        threading.Timer(random.Random(seed).uniform(0.0, 2.0), end).start()
        made = measure(name, *rest)
        end()
        return made

    climb.measure = measured
    run(world, root)


def timeless(value: Any) -> Any:
    """Return stored JSON without what a clock said."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def table(root: Path, known_as: Path) -> str:
    """Return ladder.json without times, and with another folder's name."""
    text = json.dumps(timeless(json.loads((root / "ladder.json").read_text())))
    return text.replace(str(root), str(known_as))


def main(folder: Path) -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("AutoModelForCausalLM", "LlamaForCausalLM", "Trainer"):
        getattr(transformers, name)  # imported here, for all children
    femtune.runs.run.environment = dict  # asks git, a second each time
    world = make_world(folder / "world")
    whole, killed = folder / "whole", folder / "killed"

    def child(do: Callable[[], Any]) -> int:
        return forked(lambda: do() and 0)

    if child(lambda: run(world, whole)):
        return 1
    rungs = [each["name"] for each in json.loads((whole / "ladder.json").read_text())["rungs"]]
    wrong = 0
    for seed, rung in enumerate(rungs):
        status = child(lambda rung=rung, seed=seed: attempt(world, killed, rung, seed))
        stored = (killed / "rungs" / f"{rung}.json").exists()
        wrong += status != -signal.SIGKILL or stored
        print(f"{rung}: status {status}{', was stored' if stored else ''}", flush=True)
    wrong += bool(child(lambda: run(world, killed)))
    same = not wrong and table(whole, killed) == table(killed, killed)
    print(f"{len(rungs)} kills, {wrong} wrong; the table is {'the same' if same else 'ANOTHER ONE'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
