"""Examples: the plain prompt and the sampled tokens, whatever they were drawn under."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.fake import FakeEngine
from femtune.errors import DataError
from femtune.estep.driver import e_step
from femtune.mstep.examples import EXAMPLES, read_examples, write_examples
from femtune.schemes.filters import Accepted, ByReward, Chain, Share, paper_filter
from femtune.schemes.named import star
from femtune.types import Draw, Problem, Rule, Sampling

from ..models import byte_tokenizer
from ..oracle import PROMPTS, sampler

TOKENIZER = ChatTokenizer(byte_tokenizer())
# Answers that occur nowhere else, so that they give away a hint.
PROBLEMS = [Problem(f"p{i}", "Which one?", f"secret{i}") for i in range(6)]
BY_ID = {problem.id: problem for problem in PROBLEMS}


def write(prompt: str, seed: int) -> str:
    """Right where it was told."""
    told = prompt.partition("answer is ")[2].removesuffix(".")
    return f"{seed % 10}\nAnswer: {told}" if told else "?\nAnswer: none"


def chunks(chunk_size: int = 4) -> list[list[Draw]]:
    made = replace(sampler(FakeEngine(write), chunk_size=chunk_size), sampling=Sampling(64))
    return [chunk.draws for chunk in e_step(PROBLEMS, star(), made, iteration=1)]


def store(path: Path, rule: Rule = paper_filter, chunk_size: int = 4) -> int:
    return write_examples(path, chunks(chunk_size), BY_ID, rule, PROMPTS, TOKENIZER)


def test_hint_never_reaches_training_rows(tmp_path: Path) -> None:
    assert store(tmp_path / "examples.parquet") == len(PROBLEMS)
    for row in pq.read_table(tmp_path / "examples.parquet").to_pylist():
        problem = BY_ID[row["problem_id"]]
        assert row["stage"] == 1  # drawn under the hinted prompt
        assert row["prompt"] == [{"role": "user", "content": "Which one?"}] == PROMPTS.plain(problem)
        assert row["prompt_tokens"] == list(TOKENIZER.encode_prompt(row["prompt"]))
        fed = TOKENIZER.decode(row["prompt_tokens"])
        assert "Which one?" in fed
        assert "secret" not in fed
        assert "answer is" not in fed


def test_the_sampled_tokens_are_stored_with_their_text(tmp_path: Path) -> None:
    store(tmp_path / "examples.parquet")
    kept = [draw for chunk in chunks() for draw in chunk if draw.accepted]
    rows = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert [tuple(row["completion_tokens"]) for row in rows] == [d.completion.tokens for d in kept]
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": draw.completion.text}] for draw in kept
    ]
    assert [(row["problem_id"], row["stage"], row["index"]) for row in rows] == [
        (d.key.problem_id, d.key.stage, d.key.index) for d in kept
    ]


def test_weights_are_stored_and_read_back(tmp_path: Path) -> None:
    def doubling(draws: Any, examples: Any) -> list[Any]:
        return [replace(example, weight=2 * example.weight) for example in examples]

    path = tmp_path / "examples.parquet"
    assert store(path, Chain(Accepted(), doubling)) == 6
    assert read_examples(path, TOKENIZER, 256).weights == [2.0] * 6
    assert store(path, Chain(ByReward(), Share(), doubling)) == 6
    assert read_examples(path, TOKENIZER, 256).weights == [2.0] * 6


def test_chunks_change_nothing(tmp_path: Path) -> None:
    for chunk_size in (1, 4, 100):
        store(tmp_path / f"{chunk_size}.parquet", chunk_size=chunk_size)
    tables = [pq.read_table(tmp_path / f"{size}.parquet") for size in (1, 4, 100)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_stored_examples_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    store(path)
    data = read_examples(path, TOKENIZER, context=256)
    rows = pq.read_table(path).to_pylist()
    assert list(data.prompts) == [row["prompt_tokens"] for row in rows]
    assert list(data.completions) == [row["completion_tokens"] for row in rows]


def test_datasets_loads_them(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    store(path)
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == EXAMPLES.names
    assert loaded[0]["prompt"] == [{"role": "user", "content": "Which one?"}]
    assert loaded.to_list() == pq.read_table(path).to_pylist()


def test_no_examples_are_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    assert write_examples(path, chunks(), BY_ID, lambda d, e: [], PROMPTS, TOKENIZER) == 0
    assert pq.read_schema(path).names == EXAMPLES.names
    assert len(read_examples(path, TOKENIZER, 256)) == 0


def test_a_rule_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def failing(draws: Any, examples: Any) -> Any:
        if examples[0].draw.key.problem_id == "p5":
            raise ZeroDivisionError
        return examples

    with pytest.raises(ZeroDivisionError):
        store(tmp_path / "examples.parquet", failing)
    assert not (tmp_path / "examples.parquet").exists()


# --- files of other makers


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MESSAGES = {
    "prompt": [{"role": "user", "content": "2 + 2?"}],
    "completion": [{"role": "assistant", "content": "Four é"}],
}


@pytest.mark.parametrize("row", [{"prompt": "2 + 2?", "completion": "Four é"}, MESSAGES])
def test_text_is_tokenized_and_ended(tmp_path: Path, row: dict[str, Any]) -> None:
    data = read_examples(jsonl(tmp_path / "a.jsonl", row), TOKENIZER, 256)
    assert data.prompts == [TOKENIZER.encode_prompt("2 + 2?")]
    [completion] = data.completions
    assert TOKENIZER.decode(completion) == "Four é"
    assert completion[-1] == TOKENIZER.end_token_id
    assert TOKENIZER.end_token_id not in completion[:-1]
    assert data.weights == [1.0]


def test_weights_that_float32_takes_for_0_do_not_reach_the_loss(tmp_path: Path) -> None:
    """Doubt makes such of unlikely answers: a step of them alone had a loss of 0 / 0."""
    for weights, kept in (
        ([1.0, 1e-7, -1e-5], [1.0, -1e-5]),
        ([1e-200, 5e-201, 1e-300], [1.0, 0.5]),
        ([5e-324], [1.0]),
    ):
        rows = [{"prompt": "x", "completion": "z", "weight": w} for w in weights]
        data = read_examples(jsonl(tmp_path / "a.jsonl", *rows), TOKENIZER, 256)
        assert data.weights == pytest.approx(kept)


def test_rows_of_weight_0_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": f"z{w}", "weight": w} for w in (0.5, 0.0, -1.0, 2.0)]
    data = read_examples(jsonl(tmp_path / "a.jsonl", *rows), TOKENIZER, 256)
    assert data.weights == [0.5, -1.0, 2.0]
    assert [TOKENIZER.decode(c) for c in data.completions] == ["z0.5", "z-1.0", "z2.0"]
    assert len(data) == len(data.prompts) == 3


def test_what_is_longer_than_the_context_is_refused_by_row(tmp_path: Path) -> None:
    room = 256 - len(TOKENIZER.encode_prompt("x")) - 1  # for the end
    rows = [{"prompt": "x", "completion": "z" * length} for length in (1, room, room + 1, room + 9)]
    assert len(read_examples(jsonl(tmp_path / "fits.jsonl", *rows[:2]), TOKENIZER, 256)) == 2
    with pytest.raises(DataError, match=r"2 examples are longer .* 256 .* longest: 265.* row 3\b"):
        read_examples(jsonl(tmp_path / "long.jsonl", *rows), TOKENIZER, 256)


GOOD = {"prompt": "x", "completion": "z"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "x", "completion": ""}, "1 examples have no completion, the first in row 2"),
        ({"prompt": "x", "completion": None}, "row 2 has no `completion`"),
        ({"completion": "z"}, "row 2 has no `prompt`"),
    ],
)
def test_a_row_without_its_parts_is_refused(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(jsonl(tmp_path / "a.jsonl", GOOD, bad), TOKENIZER, 256)


@pytest.mark.parametrize("weight", [None, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, weight: float | None) -> None:
    table = pa.table({"prompt": ["x", "x"], "completion": ["z", "z"], "weight": [1.0, weight]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2"):
        read_examples(tmp_path / "a.parquet", TOKENIZER, 256)


def test_messages_without_any_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "x", "completion": []}
    with pytest.raises(DataError, match="1 examples have no completion, the first in row 2"):
        read_examples(jsonl(tmp_path / "a.jsonl", {**MESSAGES, "prompt": "x"}, row), TOKENIZER, 256)


def test_stored_tokens_must_not_be_empty(tmp_path: Path) -> None:
    table = pa.table({"prompt_tokens": [[1], [1]], "completion_tokens": [[2], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="1 examples have no completion, the first in row 2"):
        read_examples(tmp_path / "a.parquet", TOKENIZER, 256)


@pytest.mark.parametrize("line", ["null", "3", "[]", '"x"'])
def test_a_line_that_is_no_object_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(DataError, match="line 1: not an object"):
        read_examples(path, TOKENIZER, 256)


def test_text_like_a_date_stays_text(tmp_path: Path) -> None:
    data = read_examples(jsonl(tmp_path / "a.jsonl", {**GOOD, "prompt": "2024-02-29"}), TOKENIZER, 256)
    assert [*data.prompts[0]] == [*TOKENIZER.encode_prompt("2024-02-29")]


def test_files_without_the_columns_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "x", "answer": "y"})
    with pytest.raises(DataError, match=r"has columns \['answer', 'question'\]; examples need"):
        read_examples(path, TOKENIZER, 256)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("PAR1")
    (tmp_path / "broken.jsonl").write_text("{")
    said = {
        "none.parquet": "none.parquet can't be read",
        "none.jsonl": r"no file .*none\.jsonl",
        "broken.parquet": "broken.parquet can't be read",
        "broken.jsonl": r"broken\.jsonl, line 1: not JSON",
    }
    for name, what in said.items():
        with pytest.raises(DataError, match=what):
            read_examples(tmp_path / name, TOKENIZER, 256)
    with pytest.raises(DataError, match=r"read from \.parquet or \.jsonl"):
        read_examples(tmp_path / "a.csv", TOKENIZER, 256)


# --- what fuzzing found


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 7, "completion": "z"}, "the prompt in row 1 is 7, expected text, or messages"),
        ({"prompt": [], "completion": "z"}, r"the prompt in row 1 is \[\]"),
        ({"prompt": [{"role": "user"}], "completion": "z"}, "the prompt in row 1"),
        (
            {"prompt": "x", "completion": [{"role": "assistant", "content": 4}]},
            "the completion in row 1",
        ),
        ({"prompt": "x", "completion": True}, "the completion in row 1 is True"),
        (
            {"prompt": "x", "completion": "z", "weight": "2"},
            "row 1 is '2', expected a number",
        ),
        ({"prompt": "x", "completion": "z", "weight": True}, "the weight in row 1 is True"),
        (
            {"prompt_tokens": [1.5], "completion_tokens": [2]},
            "is of type list<.*double>",
        ),
        ({"prompt_tokens": 1, "completion_tokens": [2]}, "`prompt_tokens` is of type int64"),
        ({"prompt_tokens": [1], "completion_tokens": [-2]}, "`completion_tokens` is of type"),
        ({"prompt_tokens": [1], "completion_tokens": [2, None]}, "`completion_tokens` is of type"),
    ],
)
def test_values_of_other_types_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.\w+: .*{said}"):
        read_examples(jsonl(tmp_path / "a.jsonl", row), TOKENIZER, 256)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.\w+: .*{said}"):
        read_examples(tmp_path / "a.parquet", TOKENIZER, 256)
