"""Problems: a bad file is refused with what, where and what to do; a good one comes back equal."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from femtune.data.problems import (
    check_disjoint,
    check_gold,
    check_lengths,
    load_problems,
    save_problems,
    split,
)
from femtune.data.prompts import Prompts, prompt_text
from femtune.data.tasks.load import Options, read_task
from femtune.errors import ConfigError, DataError, RewardError
from femtune.rewards.builtin import as_reward
from femtune.types import Problem, Prompt

ROW = {"prompt": "What is 2 + 2?", "answer": "4"}


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def refused(path: Path, *words: str, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_problems(path, columns=columns)
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, message
    return message


# --- what is read


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{**ROW, "id": "a", "level": "easy"}, {"prompt": 'Say "x,\ty"\nnow', "answer": "é"}]
    rows[1] |= {"id": "b", "level": "hard"}
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"a.{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    expected = [Problem(r["id"], r["prompt"], r["answer"], {"level": r["level"]}) for r in rows]
    for suffix in ("jsonl", "json", "parquet", "csv", "tsv"):
        assert load_problems(tmp_path / f"a.{suffix}") == expected, suffix
    assert load_problems(str(tmp_path / "a.csv")) == expected


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        *[(4, "4"), (4.0, "4"), (4.5, "4.5"), (-0.0, "0"), (10**20, f"1{'0' * 20}")],
        *[(1e20, "1e+20"), (True, "true"), (" 4\n", "4"), ("4.0", "4.0")],
    ],
)
def test_answers_become_text(tmp_path: Path, answer: Any, text: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": answer}])
    assert load_problems(path)[0].answer == text


def test_ids_are_stem_and_row_unless_given(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "judge.jsonl", [ROW, "", ROW])  # a blank line is no row
    assert [p.id for p in load_problems(path)] == ["judge-1", "judge-2"]
    path = jsonl(tmp_path / "judge.jsonl", [{**ROW, "id": 7}])
    assert load_problems(path)[0].id == "7"


def test_columns_are_renamed_when_asked_and_kept_under_their_own_name_too(tmp_path: Path) -> None:
    row = {"prompt": "x", "helpfulness": 3, "rater": {"age": 30, "tags": ["a"]}, "note": None}
    path = jsonl(tmp_path / "a.jsonl", [row])
    (problem,) = load_problems(path, columns={"answer": "helpfulness"})
    assert problem.answer == "3"
    assert problem.columns == {"helpfulness": 3, "rater": {"age": 30, "tags": ["a"]}}


def test_conversations_are_kept(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}]
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": 4}])
    assert load_problems(path)[0].prompt == prompt


def test_new_items_need_no_answers(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": "y", "answer": 4}])
    problems = load_problems(path, answers=False)
    assert [problem.answer for problem in problems] == ["", "4"]
    save_problems(problems, tmp_path / "saved.parquet")
    assert load_problems(tmp_path / "saved.parquet", answers=False) == problems
    refused(path, "no column `answer`")


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,answer\n{'x' * 200_000},4\n")
    assert len(prompt_text(load_problems(tmp_path / "a.csv")[0].prompt)) == 200_000


# --- what is refused: the file


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    jsonl(tmp_path / "judge.jsonl", [ROW])
    refused(tmp_path / "juge.jsonl", "no file", "juge.jsonl", "There is judge.jsonl")
    refused(tmp_path / "nowhere" / "a.jsonl", "no file", "nowhere")


def test_folder_unknown_suffix_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("\n \n")
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "b.csv").write_text("prompt,answer\n")
    refused(tmp_path, "is a folder of files of several kinds", "give one file of it: a.jsonl, b.csv")
    refused(
        tmp_path / "a.xlsx",
        '".xlsx"',
        "a spreadsheet: save it as CSV UTF-8",
        "Use one of .jsonl, .ndjson",
    )
    refused(tmp_path / "a.jsonl", "is empty")
    for name in ("b.jsonl", "b.json", "b.csv"):
        refused(tmp_path / name, "holds no rows")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_bad_utf8_names_the_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b'{"prompt": "x",\n"answer": "\xe9"}\n')
    refused(path, "line 2", "not UTF-8", "Save the file as UTF-8")


def test_json_that_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"prompt": "x"}')
    refused(path, "JSON dict with `prompt`", "it must be a list of objects")
    path.write_text('{"prompt": "x"}\n{"prompt": "y"}')
    refused(path, "line 2", "not JSON", "name it .jsonl")
    path.write_text("[" * 100_000)
    refused(path, "not JSON")


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("x" * 100)
    refused(tmp_path / "a.parquet", "can't be read as Parquet")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_missing_columns_suggest_the_flag(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("question,Label,n\nx,4,1\n")
    else:
        jsonl(path, [{"question": "x", "Label": "4", "n": 1}])
    words = ["`prompt` and `answer`", "it has question, Label, n"]
    refused(path, *words, "--columns prompt=question answer=Label")
    renamed = {"prompt": "question", "answer": "Label"}
    assert load_problems(path, columns=renamed)[0].answer == "4"
    refused(path, "no column `lable`", "Did you mean answer=Label", columns={"answer": "lable"})
    jsonl(tmp_path / "b.jsonl", [{"Prompt": "x", "Human Score ": 1, "Score ": 2}])
    refused(tmp_path / "b.jsonl", "--columns prompt=Prompt 'answer=Score '")
    jsonl(tmp_path / "b.jsonl", [{"a": 1, "b": 2}])
    refused(tmp_path / "b.jsonl", "it has a, b", "--columns 'prompt=<its name>'")


# --- what is refused: rows


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "x", ', ["not JSON: line 3", "column 16"]),
        ('{"prompt": "x", "answer": ' + "9" * 5000 + "}", ["not JSON: line 3"]),
        ("[1, 2]", ["not an object with prompt and answer: line 3 (list)"]),
        ({"prompt": "x"}, ["`answer` is missing: line 3"]),
        ({"prompt": " ", "answer": "4"}, ["`prompt` is empty: line 3"]),
        ({"prompt": None, "answer": "4"}, ["`prompt` is empty: line 3"]),
        ({"prompt": "x", "answer": ""}, ["`answer` is empty: line 3"]),
        ({"prompt": "x", "answer": None}, ["`answer` is empty: line 3"]),
        ({"prompt": "x", "answer": [4]}, ["`answer` must be text or a number", "line 3 (list)"]),
        ({"prompt": "x", "answer": float("nan")}, ["`answer` must be text or a number", "line 3 (nan)"]),
        ({"prompt": 4, "answer": "4"}, ["`prompt` must be text or a list", "line 3 (int)"]),
        ({"prompt": "\ud800", "answer": "4"}, ["`prompt` is not valid Unicode: line 3"]),
        ({**ROW, "id": "a-1"}, ['duplicate `id`: line 3 ("a-1", first in line 1)']),
        ({**ROW, "id": ""}, ["`id` is empty: line 3"]),
        ({"prompt": [{"role": "user", "content": "x"}], "answer": "4"}, ["text in some rows"]),
        ({"prompt": [{"role": "user"}], "answer": "4"}, ["without `role` and `content`"]),
        ({"prompt": ["x"], "answer": "4"}, ["without `role`", "line 3 (message 1)"]),
        ({"prompt": [], "answer": "4"}, ["`prompt` is empty: line 3"]),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "answer": "4"},
            ['not of role "user": line 3 (assistant)'],
        ),
        (
            {"prompt": [{"role": "user", "content": ""}], "answer": "4"},
            ["`prompt` is empty: line 3"],
        ),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, words: list[str]) -> None:
    path = jsonl(tmp_path / "a.jsonl", [ROW, {**ROW, "id": "b"}, row, ROW])
    refused(path, "rows that can't be used: 1. Correct or remove them.", *words)


def test_ids_that_are_not_unique_can_be_left_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{**ROW, "id": "x"}, {**ROW, "id": "x"}])
    refused(path, "Without the ids of the data: --columns id=.")
    assert [each.id for each in load_problems(path, columns={"id": ""})] == ["a-1", "a-2"]
    rated = [{"id": "x", "prompt": "p", "response": f"r{n}", "score": n} for n in range(1, 6)]
    jsonl(path, rated)
    with pytest.raises(DataError, match="--columns id="):
        read_task(path, "judge", Options(scale="1,5"))
    assert len(read_task(path, "judge", Options(columns={"id": ""})).problems) == 5
    jsonl(path, [{"id": "x", "prompt": "p", "answer": str(n)} for n in range(3)])
    assert len(read_task(path, "math", Options(columns={"id": ""})).problems) == 3


def test_bad_rows_are_collected_by_kind(tmp_path: Path) -> None:
    bad = [{"prompt": "", "answer": "4"}] * 7
    path = jsonl(tmp_path / "a.jsonl", [ROW, *bad, "nonsense", {**ROW, "answer": {}}])
    refused(path, "can't be used: 9", "empty: lines 2, 3, 4, 5, 6 and 2 more", "not JSON: line 9")


def test_a_bad_first_row_does_not_hide_missing_columns(tmp_path: Path) -> None:
    refused(jsonl(tmp_path / "a.jsonl", ["nonsense", {"label": 1}]), "answer=label")


def test_csv_rows_of_wrong_width_and_bad_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer\nx,4\n\nx\nx,4,5\n")
    refused(path, "wrong number of cells: lines 4 (1 cells, 2 columns), 5 (3 cells")
    path.write_text('prompt,answer\n"x"y,4\n')
    refused(path, "line 2", "Check the quotes")
    path.write_text("prompt,answer,answer\nx,4,5\n")
    refused(path, "column `answer` occurs twice")


def test_parquet_counts_rows(tmp_path: Path) -> None:
    rows = [ROW, {"prompt": None, "answer": "4"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "`prompt` is empty: row 2")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]))
def test_arbitrary_bytes_are_loaded_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    try:
        assert load_problems(path)
    except DataError as error:
        assert str(path) in str(error)


# --- what is written


def round_trip(problems: list[Problem], tmp_path: Path) -> None:
    save_problems(problems, tmp_path / "saved.parquet")
    assert load_problems(tmp_path / "saved.parquet") == problems
    assert [file.name for file in tmp_path.iterdir()] == ["saved.parquet"]


def test_saved_problems_read_back_equal(tmp_path: Path) -> None:
    columns = {"n": 1, "x": 0.5, "tags": ["a"], "rater": {"age": 30}, "mixed": "a", "none": {}}
    others = {"n": 2, "rater": {"sex": "f"}, "mixed": 3, "late": [{"a": 1}, {"b": 2}]}
    round_trip([Problem("a", "x", "4", columns), Problem("b", "y", "5", others)], tmp_path)


def test_saved_conversations_read_back_equal(tmp_path: Path) -> None:
    short: Prompt = [{"role": "user", "content": "x"}]
    named: Prompt = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "y", "name": "n"},
    ]
    round_trip([Problem("a", short, "4"), Problem("b", named, "5")], tmp_path)


json_values = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text("aé\n"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), json_values), min_size=1, max_size=4))
def test_any_columns_read_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    round_trip([Problem(str(i), "x", "4", row) for i, row in enumerate(rows)], tmp_path)


def test_what_can_not_be_stored_is_named(tmp_path: Path) -> None:
    problems = [Problem("a", "x", "4", {"c": 1j}), Problem("b", "x", "4", {"c": "x"})]
    with pytest.raises(DataError, match="column `c` can't be stored"):
        save_problems(problems, tmp_path / "a.parquet")


def test_mixed_prompts_and_shadowing_columns_are_not_saved(tmp_path: Path) -> None:
    mixed = [Problem("a", "x", "4"), Problem("b", [{"role": "user", "content": "x"}], "4")]
    with pytest.raises(DataError, match="use one form"):
        save_problems(mixed, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="reserved name `answer`"):
        save_problems([Problem("a", "x", "4", {"answer": "5"})], tmp_path / "a.parquet")


def test_saved_problems_load_as_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    save_problems([Problem("a", "x", "4", {"mixed": 1})], tmp_path / "a.parquet")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "c"))
    assert rows[0] == {"id": "a", "prompt": "x", "answer": "4", "mixed": 1}


# --- split and checks


def questions(count: int, start: int = 0) -> list[Problem]:
    return [Problem(f"p{i}", f"What is {i} + 1?", str(i + 1)) for i in range(start, start + count)]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(60)), st.integers(0, 2**40), st.floats(0.2, 0.8), st.integers(30, 60))
def test_a_side_depends_on_seed_and_prompt_alone(
    order: list[int], seed: int, share: float, count: int
) -> None:
    problems = questions(60)
    held_out = {p.id for p in split(problems, share, seed)[1]}
    some = [problems[i] for i in order][:count]
    assume(0 < len(held_out & {p.id for p in some}) < count)  # an empty side is refused
    assert [p.id for p in split(some, share, seed)[1]] == [p.id for p in some if p.id in held_out]


def test_equal_prompts_never_straddle_and_shares_are_kept() -> None:
    problems = questions(2000)
    twins = [Problem(f"{p.id}'", f" {prompt_text(p.prompt)}\n", p.answer) for p in problems]
    train, held_out = split([*problems, *twins], 0.25, seed=3)
    check_disjoint(train, held_out)
    # 2,000 prompts, share 0.25: standard deviation of the share is sqrt(.25 * .75 / 2000) = .0097
    assert abs(len(held_out) / 4000 - 0.25) < 4 * 0.0097
    assert split(problems, 0.25, 3)[1] != split(problems, 0.25, 4)[1]
    assert split(problems, 0, 3) == (problems, [])


def test_impossible_splits_are_refused() -> None:
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="must be >= 0 and < 1"):
            split(questions(3), share, 0)
    with pytest.raises(DataError, match=r"1 for training and 0 .*change eval_share"):
        split(questions(1), 0.001, 0)


def test_shared_prompts_are_named() -> None:
    twin = Problem("t", "What  is 3 + 1?\n", "4")
    check_disjoint(questions(3), [twin])
    with pytest.raises(DataError, match=r'1 of 1 test problems .*"t" \(in training "p3"\)'):
        check_disjoint(questions(4), [twin])


def test_gold_answers_that_earn_too_little_are_named() -> None:
    problems = [Problem("a", "x", "4"), Problem("b", "x", "good"), Problem("c", "x", "9")]
    check_gold(problems, as_reward("exact"))
    with pytest.raises(DataError) as caught:
        check_gold(problems, as_reward("ordinal(1, 5)"))
    message = str(caught.value)
    assert "of 2 of 3 problems" in message
    assert "\"b\": answer 'good' earns reward 0, and 1 is needed; \"c\": answer '9'" in message


def test_gold_answers_that_no_completion_can_give_are_named() -> None:
    with pytest.raises(DataError, match="\"a\": answer '4.n5' can't be read back".replace(".n", r"\\n")):
        check_gold([Problem("a", "x", "4\n5")], as_reward("exact"))


@pytest.mark.parametrize("reward", ["exact", "math", "number", "ordinal(1, 9)"])
@pytest.mark.parametrize(
    "gold",
    [
        *(
            "So it is \\boxed{5}",
            "#### 5",
            "2 + 3 = 5 #### 5",
            "<answer>5</answer>",
            "We add. So <answer>5</answer>.",
        ),
        *(
            "We add 2 and 3. The answer is 5.",
            "2 + 3 = 5.\nAnswer: 5",
            "2 + 3 = 5\n#### 5",
            "So: $\\boxed{5}$.",
        ),
    ],
)
def test_gold_that_is_a_whole_solution_is_named_with_its_answer(gold: str, reward: str) -> None:
    with pytest.raises(DataError, match=r'1 of 2 problems are not accepted: "a": .*') as caught:
        check_gold([Problem("a", "x", gold), Problem("b", "x", "5")], as_reward(reward))
    assert "is a solution whose answer '5' is not accepted" in str(caught.value)


@pytest.mark.parametrize(
    ("gold", "reward"),
    [
        *(
            ("\\boxed{5}", "math"),
            ("[[5]]", "exact"),
            ("The answer is 5", "math"),
            ("Answer: 5", "number"),
        ),
        *(("$\\frac{1}{2}$", "math"), ("B. Paris", "choice"), ("Response B", 'choice("A,B")')),
        *(
            ("The answer to life", "exact"),
            ("4 stars", 'ordinal("1,5")'),
            ("A tie", 'choice("A,B,tie")'),
        ),
    ],
)
def test_gold_in_any_form_that_a_draw_can_equal_passes(gold: str, reward: str) -> None:
    check_gold([Problem("a", "x", gold)], as_reward(reward))


def test_a_reward_that_reads_solutions_may_have_them_as_gold() -> None:
    def ends_alike(answer: str, predicted: str) -> float:
        return float(answer.endswith(f"#### {predicted}") or answer == predicted)

    check_gold([Problem("a", "x", "2 + 3 = 5 #### 5")], as_reward(ends_alike))


def test_gold_check_tells_of_rewards_that_abstain_or_fail() -> None:
    def abstains(completion: str) -> None: ...

    def fails(completion: str) -> float:
        raise KeyError("x")

    with pytest.raises(DataError, match="earns no reward, and 1 is needed"):
        check_gold(questions(1), as_reward(abstains))
    with pytest.raises(RewardError, match='reward fails on problem "p0"'):
        check_gold(questions(1), as_reward(fails))


class Words:
    """A tokenizer of words."""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        return tuple(range(len(" ".join(texts).split())))

    def decode(self, tokens: Any) -> str:
        raise NotImplementedError


def test_prompts_that_do_not_fit_are_counted() -> None:
    prompts = Prompts(instruction="", hint="It is {answer}.")  # three words more when hinted
    problems = [Problem("short", "one two", "4"), Problem("long", "one two three four", "4")]
    assert check_lengths(problems, prompts, Words(), context=17, max_new_tokens=10) == 7
    words = ["1 of 2 problems", "16 tokens", 'the hinted one of "long"', "has 7 tokens"]
    words += ["max_new_tokens is 10", "set max_new_tokens to 9 or less", "remove long"]
    with pytest.raises(DataError, match=".*".join(map(re.escape, words))):
        check_lengths(problems, prompts, Words(), context=16, max_new_tokens=10)
    with pytest.raises(DataError, match="use a longer context"):
        check_lengths(problems, prompts, Words(), context=7, max_new_tokens=10)
    assert check_lengths([], prompts, Words(), 1, 1) == 0


# --- what fuzzing found


def parquet(path: Path, table: Any) -> Path:
    pq.write_table(table, path)
    return path


def test_damaged_parquet_says_so(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x" * 99] * 9, "answer": ["4"] * 9}))
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:40] + b"\xff" * 30 + whole[70:], b"PAR1" * 3):
        path.write_bytes(content)
        refused(path, str(path), "can't be read as Parquet", "Create the file again.")


def test_parquet_values_that_python_has_not(tmp_path: Path) -> None:
    days = pa.array([-(10**6)], pa.date32())  # before the year 1
    table = pa.table({"prompt": ["x"], "answer": ["4"], "on": days})
    refused(parquet(tmp_path / "a.parquet", table), "can't be read as Parquet: date value out of range")


@pytest.mark.parametrize("named", [b"7", b"[7]", b'["other"]', b"[", b'[["level"]]'])
def test_parquet_metadata_that_name_no_columns(tmp_path: Path, named: bytes) -> None:
    table = pa.table({"prompt": ["x"], "answer": ["4"], "level": ["1"]})
    table = table.replace_schema_metadata({"femtune.json": named})
    refused(parquet(tmp_path / "a.parquet", table), str(tmp_path), "Create the file again.")


def test_a_cell_that_was_stored_as_json_and_is_none(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["x", "y"], "answer": ["4", "5"], "level": ["1", "{"]})
    table = table.replace_schema_metadata({"femtune.json": b'["level"]'})
    refused(parquet(tmp_path / "a.parquet", table), "`level` is not the JSON", "row 2")


def test_a_map_comes_back_as_an_object(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    table = pa.table({"prompt": ["x"], "answer": ["4"], "of": pa.array([[("a", 1)]], kind)})
    problems = load_problems(parquet(tmp_path / "a.parquet", table))
    assert problems[0].columns == {"of": {"a": 1}}
    save_problems(problems, tmp_path / "b.parquet")
    assert load_problems(tmp_path / "b.parquet") == problems


def test_messages_that_are_no_unicode_or_that_arrow_can_not_hold(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "?"}]
    asked = {"role": "user", "content": "x"}
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": [*said, asked], "answer": 1}])
    refused(path, "`prompt` is not valid Unicode", "line 1")
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": [{**asked, "seen": 10**400}], "answer": 1}])
    problems = load_problems(path)
    save_problems(problems, tmp_path / "b.parquet")
    assert load_problems(tmp_path / "b.parquet") == problems


def test_a_column_whose_name_is_no_unicode(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"column is called '\\ud800', which is not valid Unicode: rename it"
    ):
        save_problems([Problem("a", "x", "4", {"\ud800": 1})], tmp_path / "a.parquet")
