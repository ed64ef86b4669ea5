"""What a scheme's rules are given: an iteration's draws with their nats, and those that are remembered.

    draws/00000.parquet      the iteration's own draws: see driver.py
    scored/00000.parquet     of these: log pi, and what answer_scoring.py says of their answers
    memory/00000.parquet     the draws that iteration k leaves to the next

Each is of one chunk of problems and written once; one chunk is held at a time. Scoring is a pass of the
model over prompt and completion, which costs about what reading a prompt of that length does.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util import interrupts
from femtune._util.atomic_files import replacing
from femtune._util.parsing import Unreadable, reading_arrow
from femtune.errors import EngineError, RunError
from femtune.estep.answer_scoring import add_answer_logprobs, right_draw, right_draws
from femtune.estep.forced_answers import Endings
from femtune.estep.scheduler import Sampler
from femtune.metric_types import EStepMetrics
from femtune.runs.draws import by_problem, read_shard, write_draws
from femtune.runs.run import Run
from femtune.schemes.answer_rules import answer_metrics
from femtune.schemes.filters import weigh
from femtune.schemes.weights import uniform
from femtune.types import SCORED, Draw, DrawKey, Problem, Scheme

LOGPROBS = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("stage", pa.int32()),
        ("index", pa.int32()),
        ("log_pi", pa.float64()),  # nats under the plain prompt; null where the scheme needs none
        ("log_q", pa.float64()),  # under the hinted prompt, for the bound
        ("log_drawn", pa.float64()),  # of drawing it by any way, where answers are forced
        # see answer_scoring.py
        ("log_answer", pa.float64()),  # log pi(y* | x, z) after its rationale
        ("log_direct", pa.float64()),  # log pi(y* | x) without one
        ("is_likeliest", pa.bool_()),  # whether no answer is likelier than y* after its rationale
        ("log_ratio", pa.float64()),  # log pi(z | x) - log q(z)
    ]
)
_KEY = 4  # columns that name the draw
_OLDER = 7  # columns of files of before `log_answer`


@dataclass(frozen=True)
class ScoredDraws:
    """The draws that the rules of an iteration see, as they are stored in a run, chunk by chunk."""

    run: Run
    iteration: int
    problems: Sequence[Problem]
    scheme: Scheme
    sampler: Sampler

    def __iter__(self) -> Iterator[list[Draw]]:
        """Each chunk's draws, in order of problem, then key: remembered ones come first."""
        return (self.chunk(index) for index in self.indices)

    @property
    def indices(self) -> range:
        """Numbers of the chunks."""
        return range(-(-len(self.problems) // self.sampler.chunk_size))

    @property
    def files(self) -> list[Path]:
        """All that is relied on, apart from the draws: see `Run.verify`."""
        mine = [self.run.shard(self.iteration, kind, i) for i in self.indices for kind in _KINDS]
        return mine + [self.run.shard(self.iteration - 1, "memory", i) for i in self.indices]

    def chunk(self, index: int) -> list[Draw]:
        """The draws of a chunk: remembered ones, and its own with their nats."""
        own, _ = read_shard(self.run.shard(self.iteration, "draws", index))
        scoring: dict[str, list[Draw]] = {p.id: [] for p in self._problems_of(index)}
        for draw in (*self.remembered(index), *self._with_logprobs(index, own)):
            scoring[draw.key.problem_id].append(draw)
        return [draw for each in scoring.values() for draw in sorted(each, key=lambda draw: draw.key)]

    def remembered(self, index: int) -> list[Draw]:
        """The draws that the last iteration has left."""
        path = self.run.shard(self.iteration - 1, "memory", index)
        if self.scheme.remember is None or self.iteration == 1 or not path.exists():
            return []
        return read_shard(path)[0]

    def choose(self, index: int, problems: Sequence[Problem]) -> Sequence[Problem]:
        """Return a chunk's problems that are due in this iteration."""
        now = (self.iteration - 1) % self.scheme.every
        return problems if self.scheme.every == 1 else [p for p in problems if self._turns[p.id] == now]

    @property
    def is_scored(self) -> bool:
        """True if log-probabilities are stored, or not needed."""
        return not self.scheme.needs & SCORED or all(
            self.run.shard(self.iteration, "scored", index).exists() for index in self.indices
        )

    def score(self) -> None:
        """Score what is not scored yet; the engine has theta_{k-1}.

        Raises EngineError if it can't, and Stopped between chunks where that is requested.
        """
        for index in self.indices:
            path = self.run.shard(self.iteration, "scored", index)
            if path.exists():
                continue
            interrupts.check()  # what is scored so far is stored
            started = time.perf_counter()
            draws, _ = read_shard(self.run.shard(self.iteration, "draws", index))
            scored = scored_draws(
                draws, self._problems_of(index), self.scheme, self.sampler, self.iteration
            )
            tokens = sum(len(draw.completion.tokens) for draw in scored)
            write_logprobs(path, scored, {"total_s": time.perf_counter() - started, "tokens": tokens})
            self.run.record(path)

    def remember(self) -> None:
        """Store what the next iteration is to know."""
        if self.scheme.remember is None:
            return
        for index in self.indices:
            path = self.run.shard(self.iteration, "memory", index)
            if not path.exists():
                kept = [
                    example.draw
                    for _, scoring in by_problem(self.chunk(index))
                    for example in weigh(self.scheme.remember, scoring)
                ]
                write_draws(path, kept, {})
                self.run.record(path)

    def metrics(self) -> EStepMetrics:
        """Return the cost of scoring, the measures of `answer_metrics`, and of schemes that remember
        `covered_share`: the share of problems with a right draw, remembered or new.
        """
        found = answer_metrics(self, self.scheme)
        if self.scheme.needs & SCORED:
            timings = [
                read_timing(path)
                for index in self.indices
                if (path := self.run.shard(self.iteration, "scored", index)).exists()
            ]
            found["scored_tokens"] = sum(int(timing["tokens"]) for timing in timings)
            found["scoring_s"] = round(sum(timing["total_s"] for timing in timings), 3)
        if self.scheme.remember is not None:
            solved = {draw.key.problem_id for chunk in self for draw in chunk if draw.accepted}
            found["covered_share"] = len(solved) / len(self.problems)
        return found

    @cached_property
    def _turns(self) -> Mapping[str, int]:
        """Assign each problem to one of `every` iterations, evenly, whatever the order of rows."""
        shuffled = sorted(self.problems, key=lambda problem: uniform(f"turn {problem.id}"))
        return {problem.id: i % self.scheme.every for i, problem in enumerate(shuffled)}

    def _problems_of(self, index: int) -> Sequence[Problem]:
        size = self.sampler.chunk_size
        return self.problems[index * size : (index + 1) * size]

    def _with_logprobs(self, index: int, draws: Sequence[Draw]) -> list[Draw]:
        if not self.scheme.needs & SCORED:
            return list(draws)
        values = read_logprobs(self.run.shard(self.iteration, "scored", index))
        found = [with_logprobs(draw, values[draw.key]) if draw.key in values else draw for draw in draws]
        if "answers" not in self.scheme.needs:
            return found
        problems = {problem.id: problem for problem in self._problems_of(index)}
        return [
            replace(draw, right=made[1])
            if draw.log_answer is not None
            and (made := right_draw(draw, problems[draw.key.problem_id], self.sampler))
            else draw
            for draw in found
        ]


_KINDS = ("scored", "memory")


def scored_draws(
    draws: Sequence[Draw], problems: Sequence[Problem], scheme: Scheme, sampler: Sampler, iteration: int
) -> list[Draw]:
    """The accepted ones of these draws, with the nats that the scheme needs, by the engine's weights.

    Where it needs the probabilities of answers, also draws with another answer: see answer_scoring.py.
    What the engine said as it drew is taken where it is of these weights and of that prompt. Raises
    EngineError where the engine can't score.
    """
    asked = {problem.id: problem for problem in problems}
    rights = right_draws(draws, asked, sampler) if "answers" in scheme.needs else {}
    accepted = [draw for draw in draws if draw.accepted or draw.key in rights]
    log_pi: Sequence[float | None] = [None] * len(accepted)
    log_drawn: Sequence[float | None] = [None] * len(accepted)
    if "log_pi" in scheme.needs:
        log_pi = logprobs_under("plain", accepted, asked, sampler, iteration)
    if sampler.force != "never" and "untruncated" in scheme.needs:
        log_drawn = drawn_logprobs(accepted, asked, sampler)
    scored = [
        replace(draw, log_pi=pi, log_drawn=drawn)
        for draw, pi, drawn in zip(accepted, log_pi, log_drawn, strict=True)
    ]
    if scheme.needs & {"answers", "gain"}:
        return add_answer_logprobs(scored, draws, rights, asked, scheme.needs, sampler)
    return scored


def drawn_logprobs(
    draws: Sequence[Draw], problems: Mapping[str, Problem], sampler: Sampler
) -> list[float]:
    """Return the log-probability (nats) of drawing each completion, freely or by a forced answer.

    Where answers are forced, z + cue + y is drawn in two ways: the model writes it, or it ends after z
    and answers the cue. Importance weights divide by the sum of both,

        pi(z, cue, y | prompt) + pi(z, end | prompt) pi(y | prompt, z, cue)

    (the balance heuristic, Veach and Guibas 1995): a weight by one of the two alone would count such a
    completion twice. The first term is left out of a completion that is too long to be written freely.
    Draws are at temperature 1 (see resolve._check_law) and under the prompt with the worked examples
    that they were drawn with. Raises EngineError where the engine can't score.
    """
    endings = Endings(sampler.tokenizer, sampler.cut, "ended", sampler.context)
    end = sampler.tokenizer.end_token_id
    shown, bare = sampler.prompts.with_demos(sampler.demos), sampler.prompts
    terms: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []  # pairs whose nats are added
    num_terms = []
    for draw in draws:
        messages = (shown if draw.demos else bare).render(
            draw.prompt_kind, problems[draw.key.problem_id]
        )
        prompt = sampler.tokenizer.encode_prompt(messages)
        found = [
            [(prompt, (*before, end)), ((*prompt, *before, *cue), answer)]
            for before, cue, answer in endings.forced_ways(draw.completion, sampler.sampling)
        ]
        if endings.could_be_free(draw.completion, sampler.sampling):
            found.append([(prompt, draw.completion.tokens)])
        terms += found
        num_terms.append(len(found))
    pairs = [pair for term in terms for pair in term]
    values = iter(sampler.engine.logprob(pairs) if pairs else [])
    sums = iter([math.fsum(next(values) for _ in term) for term in terms])
    return [float(np.logaddexp.reduce([next(sums) for _ in range(num)])) for num in num_terms]


def with_logprobs(draw: Draw, values: Sequence[Any]) -> Draw:
    """Return a draw with log pi, log q, and so on, in the order of LOGPROBS; the last may be missing."""
    return replace(draw, **dict(zip(LOGPROBS.names[_KEY:], values, strict=False)))


def logprobs_under(
    prompt: str, draws: Sequence[Draw], problems: Mapping[str, Problem], sampler: Sampler, since: int = 0
) -> list[float]:
    """Nats of each draw's completion under the prompt of that name, by the engine's weights.

    What the engine said as it drew, under that prompt, is taken of draws of iteration `since` on, which
    are to be of these weights. Raises EngineError where the engine can't score.
    """
    known = [
        d.completion.logprob if d.bare_prompt == prompt and d.key.iteration >= since else math.nan
        for d in draws
    ]
    todo = [draw for draw, values in zip(draws, known, strict=True) if math.isnan(values)]
    new = iter(logprobs(todo, problems, prompt, sampler))
    return [next(new) if math.isnan(values) else values for values in known]


def logprobs(
    draws: Sequence[Draw], problems: Mapping[str, Problem], prompt: str, sampler: Sampler
) -> list[float]:
    """Nats of each draw's completion under the prompt of that name. Raises EngineError."""
    prompts: dict[str, tuple[int, ...]] = {}
    for draw in draws:
        name = draw.key.problem_id
        if name not in prompts:
            messages = sampler.prompts.render(prompt, problems[name])
            prompts[name] = sampler.tokenizer.encode_prompt(messages)
    pairs = [(prompts[draw.key.problem_id], draw.completion.tokens) for draw in draws]
    values = sampler.engine.logprob(pairs) if pairs else []
    if bad := [draw.key for draw, each in zip(draws, values, strict=True) if math.isnan(each)]:
        raise EngineError(f"the engine gives no log-probability for {len(bad)} draws, such as {bad[0]}.")
    return values


def write_logprobs(path: Path, draws: Sequence[Draw], timing: dict[str, float]) -> None:
    """Store log-probabilities of draws, with seconds and tokens in the metadata under "timing"."""
    columns = {
        "iteration": [draw.key.iteration for draw in draws],
        "problem_id": [draw.key.problem_id for draw in draws],
        "stage": [draw.key.stage for draw in draws],
        "index": [draw.key.index for draw in draws],
        **{name: [getattr(draw, name) for draw in draws] for name in LOGPROBS.names[_KEY:]},
    }
    table = pa.Table.from_pydict(columns, schema=LOGPROBS)
    with replacing(path) as part, part.open("wb") as file:
        stored = table.replace_schema_metadata({"timing": json.dumps(timing)})
        pq.write_table(stored, file, write_page_checksum=True)


def read_logprobs(path: Path) -> dict[DrawKey, tuple[Any, ...]]:
    """Log-probabilities by draw, in the order of LOGPROBS. Raises RunError where the file is damaged."""
    table, _ = _read(path)
    rows = zip(*(column for column in table.to_pydict().values()), strict=True)
    return {DrawKey(*row[:_KEY]): tuple(row[_KEY:]) for row in rows}


def read_timing(path: Path) -> dict[str, float]:
    """Seconds and tokens that scoring took. Raises RunError where the file is damaged."""
    return _read(path)[1]


def _read(path: Path) -> tuple[Any, dict[str, float]]:
    try:
        with reading_arrow():
            table = pq.read_table(pa.memory_map(str(path)))
            timing = json.loads((table.schema.metadata or {}).get(b"timing", b"null"))
            whole = any(
                table.schema.equals(pa.schema(list(LOGPROBS)[:n])) for n in (_OLDER, len(LOGPROBS))
            )
            if not whole or not isinstance(timing, dict):
                raise Unreadable("holds no log-probabilities as they are stored")
            return table, timing
    except Unreadable as error:
        raise RunError(
            f"{path} {error}. It is damaged: `femtune verify` of its run tells what can be made again."
        ) from error
