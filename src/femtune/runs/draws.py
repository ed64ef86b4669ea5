"""Stored draws: one Parquet file a chunk, written whole, read back and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from femtune._util.atomic_files import replacing
from femtune._util.parsing import Unreadable, reading_arrow
from femtune._util.text import brief
from femtune.errors import RunError
from femtune.metric_types import Served
from femtune.types import Completion, Draw, DrawKey, FinishReason, Score

DRAWS = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("stage", pa.int32()),
        ("index", pa.int32()),
        ("prompt_kind", pa.string()),  # plain or hinted
        ("seed", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),  # nats, at temperature 1
        ("drawn_logprob", pa.float64()),  # nats, as it was sampled
        ("num_forced", pa.int32()),  # last tokens that were not free
        ("demos", pa.string()),  # digest of the worked examples in its prompt
        ("temperature", pa.float64()),
        ("error", pa.string()),
        ("reward", pa.float64()),
        ("answer", pa.string()),
        ("rationale", pa.string()),
        ("reason", pa.string()),  # "" where accepted
        ("detail", pa.string()),
    ]
)

# draws of text, of an engine without tokens, have one more column: metric_types.Served
SERVED = pa.struct(
    [
        ("model", pa.string()),
        ("fingerprint", pa.string()),
        ("prompt_tokens", pa.int64()),  # null where the server gives no counts
        ("completion_tokens", pa.int64()),
        ("requests", pa.int32()),
        ("forced_by", pa.string()),
    ]
)
TEXT_DRAWS = DRAWS.append(pa.field("served", SERVED))


def write_draws(path: Path, draws: Sequence[Draw], timing: Mapping[str, float]) -> None:
    """Store one chunk's draws, with its seconds in the file's metadata under "timing"."""
    columns = as_columns(draws)
    table = pa.Table.from_pydict(columns, schema=TEXT_DRAWS if "served" in columns else DRAWS)
    with replacing(path) as part, part.open("wb") as file:  # pyarrow takes a:b.parquet for a URI
        stored = table.replace_schema_metadata({"timing": json.dumps(timing)})
        pq.write_table(stored, file, write_page_checksum=True)


def as_columns(draws: Sequence[Draw]) -> dict[str, list[Any]]:
    """Return draws by column, as DRAWS names them, or TEXT_DRAWS if one of them is of text."""
    served = [d.completion.served for d in draws]
    return {
        "iteration": [d.key.iteration for d in draws],
        "problem_id": [d.key.problem_id for d in draws],
        "stage": [d.key.stage for d in draws],
        "index": [d.key.index for d in draws],
        "prompt_kind": [d.prompt_kind for d in draws],
        "seed": [d.seed for d in draws],
        "tokens": [d.completion.tokens for d in draws],
        "text": [d.completion.text for d in draws],
        "finish_reason": [d.completion.finish_reason for d in draws],
        "logprob": [d.completion.logprob for d in draws],
        "drawn_logprob": [d.completion.drawn_logprob for d in draws],
        "num_forced": [d.completion.num_forced for d in draws],
        "demos": [d.demos for d in draws],
        "temperature": [d.temperature for d in draws],
        "error": [d.completion.error for d in draws],
        "reward": [d.score.reward for d in draws],
        "answer": [d.score.answer for d in draws],
        "rationale": [d.score.rationale for d in draws],
        "reason": [d.score.reason for d in draws],
        "detail": [d.score.detail for d in draws],
        **({"served": [each and asdict(each) for each in served]} if any(served) else {}),
    }


def from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Draw]:
    """Draws of their columns."""
    served = columns.get("served") or [None] * len(columns["tokens"])
    rows = zip(*(columns[name] for name in DRAWS.names), served, strict=True)
    return [
        Draw(
            DrawKey(iteration, problem_id, stage, index),
            prompt,
            seed,
            Completion(
                tuple(tokens),
                text,
                finish_reason,
                _number(logprob),
                error=error,
                drawn_logprob=_number(drawn_logprob),
                num_forced=num_forced,
                served=None if answered is None else Served(**answered),
            ),
            Score(reward, answer, reason, detail, rationale),
            demos=demos,
            temperature=temperature,
        )
        for (
            iteration,
            problem_id,
            stage,
            index,
            prompt,
            seed,
            tokens,
            text,
            finish_reason,
            logprob,
            drawn_logprob,
            num_forced,
            demos,
            temperature,
            error,
            reward,
            answer,
            rationale,
            reason,
            detail,
            answered,
        ) in rows
    ]


def _number(value: float) -> float:
    """The same nan for every nan, so that draws that are read twice are equal."""
    return math.nan if math.isnan(value) else value


def read_draws(folder: Path) -> Iterator[tuple[list[Draw], dict[str, float]]]:
    """The chunks stored in a folder of shards, in order: draws and timing of each."""
    for path in sorted(folder.glob("*.parquet")):
        yield read_shard(path)


def drawn(folder: Path) -> Iterator[Sequence[Draw]]:
    """Yield the chunks of draws stored in a folder."""
    return (chunk for chunk, _ in read_draws(folder))


def read_shard(path: Path) -> tuple[list[Draw], dict[str, float]]:
    """One chunk: its draws and timing. Raises RunError where the file is damaged."""
    try:
        with reading_arrow():
            table = pq.read_table(pa.memory_map(str(path)))
            timing = json.loads((table.schema.metadata or {}).get(b"timing", b"null"))
            _check_shard(table, timing)
            return from_columns(table.to_pydict()), timing
    except Unreadable as error:
        raise RunError(
            f"{path} {error}. It is damaged: `femtune verify` of its run says what can be made again."
        ) from error


def _check_shard(table: Any, timing: Any) -> None:
    """Raises Unreadable where it is no shard as `write_draws` makes them."""
    is_ours = table.schema.equals(DRAWS) or table.schema.equals(TEXT_DRAWS)
    if not is_ours or any(table[name].null_count for name in DRAWS.names):
        raise Unreadable("holds no draws as they are stored")
    if pc.list_flatten(table["tokens"]).null_count:
        raise Unreadable("holds draws without some of their tokens")
    for name, known in (("prompt_kind", ("plain", "hinted")), ("finish_reason", get_args(FinishReason))):
        if strange := {*table[name].unique().to_pylist()} - {*known}:
            raise Unreadable(f"has a {name} of {brief(repr(strange.pop()))}, expected one of {known}")
    if not isinstance(timing, dict) or not all(isinstance(s, int | float) for s in timing.values()):
        raise Unreadable("lacks the seconds that its chunk took")


def by_problem(draws: Sequence[Draw]) -> Iterator[tuple[str, list[Draw]]]:
    """A chunk's draws, problem by problem: they are stored together."""
    for problem_id, group in groupby(draws, key=lambda draw: draw.key.problem_id):
        yield problem_id, list(group)
