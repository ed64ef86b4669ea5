"""What a reader makes of a rationale: log pi_0(y* | x, z) beside log pi_0(y* | x), stored by draw.

    iteration-003/eval/00000.parquet         draws
    iteration-003/eval_scored/00000.parquet  of some: log_answer, log_direct, and the same among answers

Both are of the correct answer in canonical form, closed, after the format's cue, under the plain prompt
without worked examples, in nats. Where the answers are a closed set, `among_*` are normalized over it:
a reader that would never answer at once has a tiny log pi_0(y* | x) whatever it thinks of y*.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.atomic_files import replacing
from femtune._util.parsing import Unreadable, reading_arrow
from femtune.errors import RunError
from femtune.estep.answer_probs import AnswerLogprobs, answer_logprobs, closed_set, direct_logprobs
from femtune.estep.scheduler import Sampler
from femtune.runs.draws import read_shard
from femtune.types import Draw, DrawKey, Problem


@dataclass(frozen=True, slots=True)
class Reading:
    """Log-probabilities of the correct answer in nats, after a rationale and without one."""

    log_answer: float
    log_direct: float
    _: KW_ONLY
    # of closed sets, normalized over the answers; None elsewhere
    among_answer: float | None = None
    among_direct: float | None = None
    # of closed sets: True if no other answer is likelier
    is_likeliest: bool | None = None
    is_likeliest_direct: bool | None = None

    @property
    def gain(self) -> float:
        """By how much the rationale raises log pi_0(y* | x); minus infinity if y* can't follow it."""
        return _difference(self.log_answer, self.log_direct)

    @property
    def choice_gain(self) -> float | None:
        """The same among the answers of a closed set; None elsewhere."""
        if self.among_answer is None or self.among_direct is None:
            return None
        return _difference(self.among_answer, self.among_direct)

    @property
    def helps(self) -> bool:
        """True if the rationale makes y* likelier: among the answers where these are a closed set."""
        gain = self.gain if self.choice_gain is None else self.choice_gain
        return gain > 0


def _difference(after: float, without: float) -> float:
    return after if np.isneginf(after) else after - without


READINGS = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("stage", pa.int32()),
        ("index", pa.int32()),
        ("log_answer", pa.float64()),
        ("log_direct", pa.float64()),
        ("among_answer", pa.float64()),
        ("among_direct", pa.float64()),
        ("is_likeliest", pa.bool_()),
        ("is_likeliest_direct", pa.bool_()),
    ]
)
_KEY = 4  # columns that name the draw


def readings(
    draws: Sequence[Draw],
    problems: Mapping[str, Problem],
    sampler: Sampler,
    direct: dict[str, AnswerLogprobs],
) -> dict[DrawKey, Reading]:
    """Score the correct answer after each draw's rationale and without it.

    Draws without tokens are left out. `direct` is what is known without a rationale, by problem; what
    is missing is added. Raises EngineError where the engine can't score.
    """
    asked = {draw.key.problem_id: problems[draw.key.problem_id] for draw in draws}
    new = [problem for name, problem in asked.items() if name not in direct]
    found = direct_logprobs(new, sampler, closed=True, answers=compared)
    direct |= {p.id: logprobs for p, logprobs in zip(new, found, strict=True) if logprobs is not None}
    after = answer_logprobs(draws, problems, sampler, closed=True, answers=compared)
    return {
        draw.key: _reading(logprobs, direct[draw.key.problem_id], problems[draw.key.problem_id])
        for draw, logprobs in zip(draws, after, strict=True)
        if logprobs is not None
    }


def compared(problem: Problem) -> tuple[str, ...]:
    """Return the answers that are scored: the closed set with y* in it, else y* alone."""
    answers = closed_set(problem)
    return answers if problem.answer in answers else (problem.answer,)


def _reading(after: AnswerLogprobs, direct: AnswerLogprobs, problem: Problem) -> Reading:
    right = problem.answer
    if len(after.answers) == 1:
        return Reading(after.of(right), direct.of(right))
    return Reading(
        after.of(right),
        direct.of(right),
        among_answer=_among(after, right),
        among_direct=_among(direct, right),
        is_likeliest=after.of(right) >= max(after.logprobs),
        is_likeliest_direct=direct.of(right) >= max(direct.logprobs),
    )


def _among(logprobs: AnswerLogprobs, answer: str) -> float:
    """Return an answer's log-probability, normalized over the answers."""
    return logprobs.of(answer) - float(np.logaddexp.reduce(logprobs.logprobs))


def score_shard(
    source: Path,
    target: Path,
    problems: Mapping[str, Problem],
    sampler: Sampler,
    direct: dict[str, AnswerLogprobs],
) -> None:
    """Store the readings of a shard's first draws of these problems, by the engine's weights."""
    begun = time.perf_counter()
    drawn = [d for d in read_shard(source)[0] if d.key.index == 0 and d.key.problem_id in problems]
    made = readings(drawn, problems, sampler, direct)
    tokens = sum(len(draw.completion.tokens) for draw in drawn if draw.key in made)
    write_readings(target, made, {"total_s": time.perf_counter() - begun, "tokens": tokens})


def write_readings(path: Path, made: Mapping[DrawKey, Reading], timing: Mapping[str, float]) -> None:
    """Store readings, with the seconds and tokens that they took under "timing"."""
    rows = [{**asdict(key), **asdict(reading)} for key, reading in made.items()]
    table = pa.Table.from_pylist(rows, schema=READINGS)
    with replacing(path) as part, part.open("wb") as file:
        stored = table.replace_schema_metadata({"timing": json.dumps(timing)})
        pq.write_table(stored, file, write_page_checksum=True)


def read_readings(path: Path) -> tuple[dict[DrawKey, Reading], dict[str, float]]:
    """Read a shard of readings and its timing. Raises RunError where it is damaged."""
    try:
        with reading_arrow():
            table = pq.read_table(pa.memory_map(str(path)))
            timing = json.loads((table.schema.metadata or {}).get(b"timing", b"null"))
            if not table.schema.equals(READINGS) or not isinstance(timing, dict):
                raise Unreadable("holds no readings of rationales as they are stored")
            rows = table.to_pylist()
    except Unreadable as error:
        raise RunError(
            f"{path} {error}. It is damaged: `femtune verify` of its run tells what can be made again."
        ) from error
    names = [field.name for field in fields(Reading)]
    keys = [DrawKey(*(row[name] for name in READINGS.names[:_KEY])) for row in rows]
    return {
        key: Reading(**{name: row[name] for name in names}) for key, row in zip(keys, rows, strict=True)
    }, timing
