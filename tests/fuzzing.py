"""Everything that reads what others wrote, and inputs for it that hardly anybody should write.

A target makes an input from a seed and reads it. What reads must give a result or raise a FemtuneError
within `LIMIT_S`; anything else is a fault: another exception, a warning, a traceback, a hang. So is a
loss in tables: a row that is neither in a problem nor counted, a text that the prompt lacks, proposed
flags that do not read the columns. An input depends on its target's name, the seed and its number
alone, so `made` makes it again.

`test_fuzz.py` runs a few inputs of each target, `bench/fuzz.py` 100,000.
"""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from femtune.errors import FemtuneError

from .fuzz import commands, runs, tables, texts

LIMIT_S = 5.0  # of processor time, for one input: nobody waits longer for a refusal


@dataclass(frozen=True)
class Target:
    """Something that reads, and inputs for it."""

    name: str
    make: Callable[[Random], Any]  # text, words, or a File
    read: Callable[[Any, Path], object]  # takes that, and a folder of its own
    share: int  # of 100,000 inputs: the fast ones get more


@dataclass(frozen=True)
class Outcome:
    """What became of an input: "result", "refused" with the message, or "fault" with it."""

    kind: str
    said: str = ""


def made(target: Target, seed: int, number: int) -> Any:
    """The input of that number."""
    return target.make(Random(f"{target.name} {seed} {number}"))


def outcome(target: Target, value: Any, folder: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Read an input in a folder."""
    begun = time.process_time()
    try:
        with warnings.catch_warnings(), _limited(limit_s):
            warnings.simplefilter("error")
            target.read(value, folder)
        found = Outcome("result")
    except FemtuneError as error:
        said = str(error)
        clear = said.strip() and "Traceback" not in said
        found = Outcome("refused" if clear else "fault", said)
    except KeyboardInterrupt:
        raise
    except BaseException:  # also SystemExit, which nothing may end in here
        return Outcome("fault", traceback.format_exc())
    took = time.process_time() - begun
    return found if took <= limit_s else Outcome("fault", f"took {took:.0f} s")


class Hung(BaseException):
    """An input took too long; no Exception, which what reads might take for a fault of the input."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises Hung in what takes more processor time; what others take of it does not count."""

    def stop(number: int, frame: object) -> None:
        raise Hung(f"took over {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- all of them

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(
            Target(f"table{suffix}", partial(tables.make_table, suffix), tables.read_table, share)
            for suffix, share in ((".jsonl", 8_000), (".json", 4_000), (".csv", 6_000), (".tsv", 2_000))
        ),
        Target("table.parquet", partial(tables.make_table, ".parquet"), tables.read_table, 6_000),
        *(
            Target(task, partial(tables.make_task, task), partial(tables.read_task, task), share)
            for task, share in (
                ("judge", 9_000),
                ("summarize", 6_000),
                ("choice", 6_000),
                ("math", 4_000),
            )
        ),
        Target("completion", texts.make_text, texts.read_completion, 9_000),
        Target("answer", texts.make_text, texts.read_answer, 9_000),
        Target("scale", texts.make_scale, texts.read_scale, 5_000),
        Target("maths", texts.make_maths, texts.read_maths, 6_000),
        Target("reward", texts.make_spec, texts.read_spec, 4_000),
        Target("scheme", texts.make_scheme, texts.read_scheme, 2_000),
        Target("calibration", runs.make_calibration, runs.read_calibration, 4_000),
        Target("shard", runs.make_shard, runs.read_shard, 3_000),
        Target("examples", runs.make_examples, runs.read_examples, 3_000),
        Target("run", runs.make_run, runs.read_run, 1_200),
        Target("model", runs.make_model, runs.read_model, 300),
        Target("config", commands.make_config, commands.read_config, 1_200),
        Target("estimate", commands.make_config, commands.read_plan, 300),
        Target("words", commands.make_words, commands.read_words, 1_000),
    )
}
