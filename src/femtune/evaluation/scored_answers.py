"""The probabilities of answers, stored beside the draws that they follow.

    iteration-000/eval/00000.parquet           draws
    iteration-000/eval_answers/00000.parquet   problem_id, index, answers, logprobs of each after z

A shard is written whole once its draws are stored. So a stopped command resumes with the shards that
are missing, and scores nothing of the others twice. An engine that keeps what it has just written scores
answers as draws come (see `Scoring`): what is scored again after a stop is the same up to rounding.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util import interrupts
from femtune._util.atomic_files import replacing
from femtune._util.parsing import Unreadable, reading_arrow
from femtune.data.prompts import Prompts
from femtune.errors import ConfigError, EngineError, RunError
from femtune.estep.answer_probs import AnswerLogprobs, answer_logprobs, closed_set
from femtune.estep.scheduler import Chunk, Sampler
from femtune.runs.draws import read_shard
from femtune.runs.run import Run
from femtune.types import Aggregate, Draw, DrawKey, Generates, Problem

Scored = Mapping[tuple[str, int], AnswerLogprobs]  # by problem and index of the draw

SCORED = pa.schema(
    [
        ("problem_id", pa.string()),
        ("index", pa.int32()),
        ("answers", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float64())),  # log pi(y | x, z) of each answer, not normalized
    ]
)


def uses_probabilities(aggregate: Aggregate, problems: Sequence[Problem], prompts: Prompts) -> bool:
    """Return whether probabilities are asked for and can be had, as far as the engine is not known.

    "auto" takes them where some problem's answers are a closed set and the format has a cue. Raises
    ConfigError where they are asked for and can't be had.
    """
    if aggregate == "votes":
        return False
    is_closed = any(map(closed_set, problems))
    if aggregate == "probabilities":
        if not prompts.format.cue:
            raise ConfigError(
                f"aggregate probabilities needs an answer format with a cue; got {prompts.format.spec}. "
                "Choose line, boxed, hash, tag, bracket or json:KEY, or --aggregate votes."
            )
        if not is_closed:
            raise ConfigError(
                "aggregate probabilities needs a closed set of answers: ratings, pairs or choices. "
                "Choose --aggregate votes."
            )
    return is_closed and bool(prompts.format.cue)


def engine_scores(sampler: Sampler, aggregate: Aggregate) -> bool:
    """Return whether the engine can score. Raises EngineError where it can't and has to."""
    able = sampler.engine.capabilities.scores
    if not able and aggregate == "probabilities":
        raise EngineError(
            "aggregate probabilities: the server can't score given completions (no prompt_logprobs, no "
            "echo with logprobs). Serve the model with vLLM, choose --engine vllm or transformers, or "
            "--aggregate votes."
        )
    return able


def score_draws(draws: Sequence[Draw], problems: Mapping[str, Problem], sampler: Sampler) -> Scored:
    """Score every answer after each draw; draws without tokens, or of open problems, are left out."""
    found = answer_logprobs(draws, problems, sampler)
    return {
        (draw.key.problem_id, draw.key.index): logprobs
        for draw, logprobs in zip(draws, found, strict=True)
        if possible(logprobs)
    }


class Scoring:
    """Score the answers after draws as these are made, while the engine keeps what that needs.

        scoring = Scoring(problems, sampler)
        for chunk in evaluation_draws(problems, scoring.sampler, on_draws=scoring.add, ...):
            scored = scoring.finish(chunk.draws)

    Where the engine keeps nothing, `finish` scores them all.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        sampler: Sampler,
        on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
    ) -> None:
        # draws that are scored together, while others are drawn; with overlap another thread draws
        draws_here = isinstance(sampler.engine, Generates) and not sampler.overlap
        self._together = sampler.engine.capabilities.scores_between if draws_here else 0
        sampling = replace(sampler.sampling, continued=self._together > 0)
        self.sampler = replace(sampler, sampling=sampling)
        self.seconds = 0.0  # since the last `finish`
        self._on_draws = on_draws
        self._problems = {problem.id: problem for problem in problems}
        self._waiting: list[Draw] = []
        self._done: set[DrawKey] = set()
        self._scored: dict[tuple[str, int], AnswerLogprobs] = {}

    def add(self, draws: Sequence[Draw]) -> None:
        """Take draws that have just been made, and show them to `on_draws`."""
        self._on_draws(draws)
        if self._together:
            self._waiting += draws
            if len(self._waiting) >= self._together:
                self._score()

    def finish(self, draws: Sequence[Draw]) -> Scored:
        """Return what is scored after a chunk's draws, and forget it."""
        self._waiting = [draw for draw in draws if draw.key not in self._done]
        self._score()
        scored, self._scored = self._scored, {}
        self._done.clear()
        return scored

    def store(self, run: Run, kind: str, iteration: int, chunk: Chunk) -> None:
        """Store a chunk's probabilities where `score_into` would, with the seconds they took."""
        scored = self.finish(chunk.draws)
        target = run.shard(iteration, f"{kind}_answers", chunk.index)
        write_scored(target, scored, self.seconds)
        run.record(target)
        self.seconds = 0.0

    def _score(self) -> None:
        begun = time.perf_counter()
        self._scored |= score_draws(self._waiting, self._problems, self.sampler)
        self._done.update(draw.key for draw in self._waiting)
        self._waiting = []
        self.seconds += time.perf_counter() - begun


def possible(logprobs: AnswerLogprobs | None) -> TypeGuard[AnswerLogprobs]:
    """Return whether something was scored, and some answer has a chance."""
    return logprobs is not None and max(logprobs.logprobs) > -math.inf


def of_draws(scored: Scored, draws: Sequence[Draw]) -> list[AnswerLogprobs]:
    """Return what was scored after these draws, in their order."""
    keys = ((draw.key.problem_id, draw.key.index) for draw in draws)
    return [scored[key] for key in keys if key in scored]


def score_into(
    run: Run, kind: str, problems: Sequence[Problem], sampler: Sampler, *, iteration: int = 0
) -> Path:
    """Score the stored draws of a kind, where it is not done yet; gives the folder of probabilities.

    `sampler.demos` must be those of the draws. Raises RunError where what is stored is damaged, and
    EngineError where the engine can't score.
    """
    by_id = {problem.id: problem for problem in problems}
    shards = range(-(-len(problems) // sampler.chunk_size))
    targets = [run.shard(iteration, f"{kind}_answers", index) for index in shards]
    run.verify(*targets)
    for index, target in zip(shards, targets, strict=True):
        if target.exists():
            continue
        with interrupts.finishing("the scoring of this chunk"):
            begun = time.perf_counter()
            draws, _ = read_shard(run.shard(iteration, kind, index))
            scored = score_draws(draws, by_id, sampler)
            write_scored(target, scored, time.perf_counter() - begun)
            run.record(target)
    return run.iteration(iteration) / f"{kind}_answers"


def write_scored(path: Path, scored: Scored, seconds: float) -> None:
    """Store a chunk's probabilities, with the seconds that scoring took under "timing"."""
    columns: dict[str, list[Any]] = {
        "problem_id": [problem_id for problem_id, _ in scored],
        "index": [index for _, index in scored],
        "answers": [logprobs.answers for logprobs in scored.values()],
        "logprobs": [logprobs.logprobs for logprobs in scored.values()],
    }
    table = pa.Table.from_pydict(columns, schema=SCORED)
    with replacing(path) as part, part.open("wb") as file:
        timed = table.replace_schema_metadata({"timing": json.dumps({"total_s": seconds})})
        pq.write_table(timed, file, write_page_checksum=True)


def read_scored(folder: Path) -> dict[tuple[str, int], AnswerLogprobs]:
    """Read the probabilities of all chunks in a folder. Raises RunError where one is damaged."""
    return {
        key: logprobs
        for path in sorted(folder.glob("*.parquet"))
        for key, logprobs in _read(path).items()
    }


def scoring_seconds(folder: Path) -> float:
    """Return the seconds that scoring a folder took."""
    paths = sorted(folder.glob("*.parquet"))
    return math.fsum(json.loads(pq.read_schema(path).metadata[b"timing"])["total_s"] for path in paths)


def _read(path: Path) -> dict[tuple[str, int], AnswerLogprobs]:
    try:
        with reading_arrow():
            table = pq.read_table(pa.memory_map(str(path)))
            if not table.schema.equals(SCORED):
                raise Unreadable("holds no probabilities of answers as they are stored")
            rows = table.to_pylist()
    except Unreadable as error:
        raise RunError(
            f"{path} {error}. It is damaged: `femtune verify` of its run tells what can be made again."
        ) from error
    return {
        (row["problem_id"], row["index"]): AnswerLogprobs(tuple(row["answers"]), tuple(row["logprobs"]))
        for row in rows
    }
