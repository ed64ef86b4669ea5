"""Examples for the M-step: weigh draws and store them as examples, and read files of examples.

One row of examples.parquet: iteration 1, problem_id "p17", stage 0, index 2, weight 1.0, reward 1.0,
prompt [{"role": "user", "content": ...}], completion [{"role": "assistant", "content": ...}],
prompt_tokens [...], completion_tokens [...]. TRL's SFTTrainer reads `prompt` and `completion`. femtune
trains on the tokens, which are those sampled (with `expected`, y* replaces the answer). The prompt is
the plain one. Examples of an engine without tokens lack the two columns of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from femtune._util.atomic_files import replacing
from femtune._util.parsing import Unreadable, reading_arrow
from femtune._util.text import brief
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.files.reading import file_rows
from femtune.data.prompts import Prompts
from femtune.data.rows import BadRow
from femtune.data.truncation import trained_tokens
from femtune.errors import DataError
from femtune.runs.draws import by_problem
from femtune.schemes.filters import weigh
from femtune.types import Completion, Draw, Example, Message, Problem, Rule, Tokenizer

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
EXAMPLES = pa.schema(
    [
        ("iteration", pa.int32()),  # of the draw: an earlier one if it was remembered
        ("problem_id", pa.string()),
        ("stage", pa.int32()),
        ("index", pa.int32()),
        ("weight", pa.float64()),
        ("reward", pa.float64()),
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("completion_tokens", pa.list_(pa.int32())),
    ]
)

TEXT_EXAMPLES = pa.schema([field for field in EXAMPLES if not field.name.endswith("_tokens")])


def write_examples(
    path: Path,
    chunks: Iterable[Sequence[Draw]],
    problems: Mapping[str, Problem],
    rule: Rule,
    prompts: Prompts,
    tokenizer: Tokenizer | None,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Weigh stored draws by problem and store the examples; return their number.

    Without a `tokenizer`, examples are text alone. `factors` multiply the weights of examples by y*: see
    `selection_bias.balance_factors`. Prompts are rendered here, plain: no hint enters the M-step. Holds
    one chunk at a time.
    """
    num, schema = 0, EXAMPLES if tokenizer else TEXT_EXAMPLES
    # an open file, as pyarrow reads a name with a colon as a URI
    with replacing(path) as part, part.open("wb") as file, _writer(file, schema) as writer:
        for draws in chunks:
            rows = [
                _row(example, problems[problem_id], prompts, tokenizer, factors or {})
                for problem_id, scoring in by_problem(draws)
                for example in weigh(rule, scoring)
            ]
            num += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return num


def _writer(file: IO[bytes], schema: Any) -> Any:
    return pq.ParquetWriter(file, schema, write_page_checksum=True)


def _row(
    example: Example,
    problem: Problem,
    prompts: Prompts,
    tokenizer: Tokenizer | None,
    factors: Mapping[str, float],
) -> dict[str, Any]:
    key, completion = example.draw.key, example.draw.completion
    messages = prompts.render("plain", problem)
    return {
        "iteration": key.iteration,
        "problem_id": problem.id,
        "stage": key.stage,
        "index": key.index,
        "weight": example.weight * factors.get(problem.answer, 1.0),
        "reward": example.draw.score.reward,
        "prompt": messages,
        "completion": [{"role": "assistant", "content": completion.text}],
        **(_tokens(messages, completion, tokenizer) if tokenizer else {}),
    }


def _tokens(
    messages: Sequence[Message], completion: Completion, tokenizer: Tokenizer
) -> dict[str, Sequence[int]]:
    """Return the tokens of a prompt, and those of its completion that are trained on."""
    return {
        "prompt_tokens": tokenizer.encode_prompt(messages),
        "completion_tokens": trained_tokens(
            completion.tokens, completion.finish_reason, tokenizer.end_token_id, tokenizer
        ),
    }


@dataclass(frozen=True)
class TokenExamples:
    """Examples as the M-step reads them; the three sequences have one item per example."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]  # end token included
    weights: Sequence[float]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def lengths(self) -> list[int]:
        """Return the tokens of each example, prompt and completion together."""
        return [len(p) + len(c) for p, c in zip(self.prompts, self.completions, strict=True)]


_LEAST = 1e-6  # share of the largest weight


def read_examples(path: Path, tokenizer: ChatTokenizer, context: int) -> TokenExamples:
    """Read examples from Parquet or JSON lines with `prompt`, `completion` and, optionally, `weight`.

    Stored tokens are used unchanged; text is tokenized, with the end token after the completion. Rows of
    weight 0 are left out, and rows below a millionth of the largest weight, which float32 would round to
    0 in a step's weighted mean. Nothing is truncated: raises DataError if an example is longer than the
    context, empty, or without its columns.
    """
    columns = _columns(path)
    if "prompt_tokens" in columns:
        prompts, completions = columns["prompt_tokens"], columns["completion_tokens"]
    else:
        prompts = [tokenizer.encode_prompt(value) for value in columns["prompt"]]
        texts = map(_text, columns["completion"])
        completions = [tokenizer.encode_completion(text) if text else () for text in texts]
    weights = columns.get("weight", [1.0] * len(prompts))
    _check(path, prompts, completions, context)
    top = max((abs(weight) for weight in weights), default=0.0)
    kept = [row for row, weight in enumerate(weights) if abs(weight) > _LEAST * top]
    unit = 1.0 if top > _LEAST else top
    return TokenExamples(
        [prompts[row] for row in kept],
        [completions[row] for row in kept],
        [weights[row] / unit for row in kept],
    )


def _columns(path: Path) -> dict[str, list[Any]]:
    """Read and check the needed columns of a file of examples. Raises DataError."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise DataError(f"{path}: examples are read from .parquet or .jsonl files.")
    try:
        with reading_arrow("Parquet" if path.suffix == ".parquet" else "JSON lines"):
            is_parquet = path.suffix == ".parquet"
            table = pq.read_table(pa.memory_map(str(path))) if is_parquet else _json_table(path)
            names = [*_TOKENS] if {*_TOKENS} <= {*table.column_names} else [*_TEXTS]
            if not {*names} <= {*table.column_names}:
                found = f"{path} has columns {sorted(table.column_names)}"
                raise DataError(f"{found}; examples need `prompt` and `completion`.")
            names += ["weight"] * ("weight" in table.column_names)
            return {name: _values(path, name, table[name]) for name in names}
    except Unreadable as error:
        raise DataError(f"{path} {error}") from error


def _json_table(path: Path) -> Any:
    """Return the objects of a file of JSON lines as a table. Raises DataError for other lines."""
    rows: list[dict[str, Any]] = []
    # not pyarrow's own reader: a line of null ends the process, and text like a date becomes one
    for place, row in file_rows(path):
        if isinstance(row, BadRow):
            raise DataError(f"{path}, line {place}: {row.what} ({row.detail}).")
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {place}: not an object, but {type(row).__name__}.")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


_TOKENS = ("prompt_tokens", "completion_tokens")
_TEXTS = ("prompt", "completion")


def _values(path: Path, name: str, column: Any) -> list[Any]:
    """Return the checked values of a column. Raises DataError for the first invalid one."""
    values: list[Any] = column.to_pylist()
    if column.null_count:
        raise DataError(f"{path}: row {values.index(None) + 1} has no `{name}`.")
    if name in _TOKENS:
        if values and not _are_tokens(column):
            raise DataError(f"{path}: `{name}` is of type {column.type}, expected lists of token ids.")
        return values
    expected, good = _GOOD[name]
    for row, value in enumerate(values, 1):
        if not good(value):
            raise DataError(
                f"{path}: the {name} in row {row} is {brief(repr(value))}, expected {expected}."
            )
    return values


def _are_tokens(column: Any) -> bool:
    """Check a column of tokens by type and bounds, which is faster than one by one."""
    if not pa.types.is_list(column.type) or not pa.types.is_integer(column.type.value_type):
        return False
    tokens = pc.list_flatten(column)
    return not tokens.null_count and (not len(tokens) or pc.min(tokens).as_py() >= 0)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and value != [] and _is_completion(value))


def _is_completion(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_GOOD: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt": ("text, or messages of role and content", _is_prompt),
    "completion": ("text, or messages of role and content", _is_completion),
    "weight": ("a number", _is_weight),
}


def _text(completion: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(completion, str):
        return completion
    return completion[-1]["content"] if completion else ""


def _check(
    path: Path, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], context: int
) -> None:
    pairs = list(zip(prompts, completions, strict=True))
    if empty := [row for row, (_, completion) in enumerate(pairs, 1) if not completion]:
        raise DataError(
            f"{path}: {len(empty)} examples have no completion, the first in row {empty[0]}."
        )
    long = [
        row
        for row, (prompt, completion) in enumerate(pairs, 1)
        if len(prompt) + len(completion) > context
    ]
    if long:
        longest = max(len(prompt) + len(completion) for prompt, completion in pairs)
        raise DataError(
            f"{path}: {len(long)} examples are longer than the model's context of {context} tokens (the "
            f"longest: {longest}; the first: row {long[0]}). Leave them out: femtune cuts nothing."
        )
