"""What the M-step trains on: draws weighed and stored as examples, and files of them read back.

One row of examples.parquet: problem_id "p17", stage 0, index 2, weight 1.0, reward 1.0,
prompt [{"role": "user", "content": ...}], completion [{"role": "assistant", "content": ...}],
prompt_tokens [...], completion_tokens [...]. `prompt` and `completion` are what TRL's SFTTrainer reads;
the tokens are what was sampled, and what femtune trains on. The prompt is always the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from femtune.errors import DataError
from femtune.files import replacing
from femtune.prompts import ChatTokenizer, Prompts
from femtune.run import by_problem
from femtune.types import Draw, Example, Problem, Rule, Tokenizer
from femtune.weigh import weigh

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
EXAMPLES = pa.schema(
    [
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


def write_examples(
    path: Path,
    chunks: Iterable[Sequence[Draw]],
    problems: Mapping[str, Problem],
    rule: Rule,
    prompts: Prompts,
    tokenizer: Tokenizer,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Weigh stored draws, problem by problem, and store the examples; gives how many there are.

    `factors` multiply the weights of examples by their problem's answer y*: see `bias.balance_factors`.
    A scheme has no say in the prompt: it is rendered here, plain, so that no hint gets into the M-step.
    Holds one chunk at a time.
    """
    num = 0
    # a file, as pyarrow takes a name with a colon for a URI
    with replacing(path) as part, part.open("wb") as file, _writer(file) as writer:
        for draws in chunks:
            rows = [
                _row(example, problems[problem_id], prompts, tokenizer, factors or {})
                for problem_id, tries in by_problem(draws)
                for example in weigh(rule, tries)
            ]
            num += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=EXAMPLES))
    return num


def _writer(file: IO[bytes]) -> Any:
    return pq.ParquetWriter(file, EXAMPLES, write_page_checksum=True)


def _row(
    example: Example,
    problem: Problem,
    prompts: Prompts,
    tokenizer: Tokenizer,
    factors: Mapping[str, float],
) -> dict[str, Any]:
    key, completion = example.draw.key, example.draw.completion
    messages = prompts.plain(problem)
    return {
        "problem_id": problem.id,
        "stage": key.stage,
        "index": key.index,
        "weight": example.weight * factors.get(problem.answer, 1.0),
        "reward": example.draw.score.reward,
        "prompt": messages,
        "completion": [{"role": "assistant", "content": completion.text}],
        "prompt_tokens": tokenizer.encode_prompt(messages),
        "completion_tokens": completion.tokens,
    }


@dataclass(frozen=True)
class TokenExamples:
    """Examples as the M-step reads them; the three sequences have one item an example."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]  # end token included
    weights: Sequence[float]

    def __len__(self) -> int:
        return len(self.weights)


def read_examples(path: Path, tokenizer: ChatTokenizer, context: int) -> TokenExamples:
    """Examples from Parquet or JSON lines with `prompt` and `completion`, and `weight` if there is one.

    Where the tokens are stored they are taken as they are; text is tokenized, with the end token after
    the completion. Rows of weight 0 are left out. Nothing is cut: raises DataError where an example is
    longer than the context, empty, or without its columns.
    """
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(pa.memory_map(str(path)))
        elif path.suffix == ".jsonl":
            table = pyarrow.json.read_json(pa.memory_map(str(path)))
        else:
            raise DataError(f"{path}: examples are read from .parquet or .jsonl files.")
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    names = set(table.column_names)
    for name in sorted(names & {"prompt", "completion", "prompt_tokens", "completion_tokens", "weight"}):
        if table[name].null_count:
            row = table[name].to_pylist().index(None) + 1
            raise DataError(f"{path}: row {row} has no `{name}`.")
    if {"prompt_tokens", "completion_tokens"} <= names:
        prompts, completions = table["prompt_tokens"].to_pylist(), table["completion_tokens"].to_pylist()
    elif {"prompt", "completion"} <= names:
        prompts = [tokenizer.encode_prompt(value) for value in table["prompt"].to_pylist()]
        texts = map(_text, table["completion"].to_pylist())
        completions = [tokenizer.encode_completion(text) if text else () for text in texts]
    else:
        raise DataError(f"{path} has columns {sorted(names)}; examples need `prompt` and `completion`.")
    weights = table["weight"].to_pylist() if "weight" in names else [1.0] * len(table)
    if odd := [row for row, weight in enumerate(weights, 1) if not math.isfinite(weight)]:
        raise DataError(f"{path}: the weight in row {odd[0]} is {weights[odd[0] - 1]}.")
    _check(path, prompts, completions, context)
    kept = [row for row, weight in enumerate(weights) if weight != 0]
    return TokenExamples(
        [prompts[row] for row in kept],
        [completions[row] for row in kept],
        [weights[row] for row in kept],
    )


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
