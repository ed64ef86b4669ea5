"""A prediction is the vote of its draws, on the scale, in the order of the data; files and streams."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune import predict
from femtune.cli.main import main
from femtune.data.tasks.frames import Frame
from femtune.engines.hf import engine as hf_engine
from femtune.engines.hf.engine import TransformersEngine
from femtune.errors import ConfigError, DataError
from femtune.evaluation import scored_answers
from femtune.evaluation.aggregate import prediction
from femtune.evaluation.calibration import save_calibration
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.scored_answers import read_scored
from femtune.runs.draws import read_draws
from femtune.types import Completion, Draw, DrawKey, Problem, Score
from femtune.workflows.prediction_files import save_predictions

ASKED = ("--model", "seedling", "--max-new-tokens", "32", "--draws", "3", "--chunk-size", "2")
RATING = Frame(form="rating", scale=("1", "2", "3", "4", "5"), item="item")
SHARPENED = Calibration("temperature", RATING.scale, temperature=0.5, smoothing=1e-9)


def problem(frame: Frame | None = None, name: str = "p") -> Problem:
    return Problem(name, "Rate it.", "", {"frame": frame.column()} if frame else {})


def drawn(*answers: str, logprobs: Sequence[float] = ()) -> list[Draw]:
    """A draw of two tokens for each answer; its rationale is its number."""
    return [
        Draw(
            DrawKey(0, "p", 0, index),
            "plain",
            0,
            Completion((1, 2), "", "stop", logprobs[index] if logprobs else -1.0),
            Score(0.0, answer, "wrong" if answer else "parse_error", rationale=f"z{index}"),
        )
        for index, answer in enumerate(answers)
    ]


def voted(frame: Frame | None, *answers: str, **options: Any) -> dict[str, Any]:
    return prediction([(problem(frame), drawn(*answers))], **options)


# --- votes


def test_the_most_frequent_answer_wins_with_its_share() -> None:
    made = voted(RATING, "4", "**5**", "5/5", "", "9")
    assert made == {
        "id": "p",
        "answer": "5",
        "confidence": 2 / 3,  # of the three draws with an answer on the scale
        "abstained": False,
        "no_answer": None,
        "num_answered": 3,
        "votes": {"5": 2, "4": 1},
        "aggregate": "votes",
        "probabilities": None,
        "distribution": {"1": 0, "2": 0, "3": 0, "4": 1 / 3, "5": 2 / 3},
        "expected": pytest.approx((4 + 5 + 5) / 3),
        "consistent": None,
        "rationale": "z1",
    }


def test_of_equally_frequent_answers_the_first_wins() -> None:
    assert voted(RATING, "3", "5", "5", "3")["answer"] == "3"


@given(st.lists(st.sampled_from([*RATING.scale, "", "x"]), min_size=1, max_size=9))
def test_votes_shares_and_expectation_agree(answers: list[str]) -> None:
    made = voted(RATING, *answers)
    cast = [float(answer) for answer in answers if answer in RATING.scale]
    assert made["num_answered"] == len(cast) == sum(made["votes"].values())
    if not cast:
        assert (made["answer"], made["confidence"], made["distribution"]) == (None, None, None)
        assert (made["no_answer"], made["abstained"]) == ("unreadable", False)
        return
    assert (
        made["confidence"] == made["distribution"][made["answer"]] == max(made["distribution"].values())
    )
    assert sum(made["distribution"].values()) == pytest.approx(1)
    assert made["expected"] == pytest.approx(sum(cast) / len(cast))


def test_without_a_scale_the_first_spelling_stands_for_all() -> None:
    made = voted(None, "paris", "Paris.", "**Rome**")
    assert (made["votes"], made["answer"]) == ({"paris": 2, "Rome": 1}, "paris")
    assert (made["distribution"], made["expected"]) == (None, None)


def test_numbers_of_mathematics_are_one_vote_however_written() -> None:
    made = voted(Frame(form="math"), "0.5", "2", "1/2")
    assert (made["votes"], made["expected"]) == ({"0.5": 2, "2": 1}, 1.0)
    assert voted(None, "01", "1")["votes"] == {"01": 1, "1": 1}  # of a table: may be two codes


def test_numbered_choices_are_read_with_their_text() -> None:
    made = voted(Frame(form="choice", scale=("1", "2", "3")), "3. hen", "(3)", "2", "4")
    assert (made["votes"], made["expected"]) == ({"3": 2, "2": 1}, None)


def test_labels_are_worth_their_place() -> None:
    assert voted(Frame(form="rating", scale=("bad", "fair", "good")), "good", "Fair")["expected"] == 1.5


def test_the_rationale_is_the_likeliest_by_token_of_the_winners() -> None:
    draws = drawn("4", "5", "5", "5", logprobs=[-0.1, -4.0, -2.0, -2.0])
    assert prediction([(problem(RATING), draws)])["rationale"] == "z2"


def test_below_the_threshold_there_is_no_answer() -> None:
    assert voted(RATING, "4", "5", abstain_below=0.5)["answer"] == "4"
    made = voted(RATING, "4", "5", abstain_below=0.6)
    assert (made["answer"], made["abstained"], made["votes"]) == (None, True, {"4": 1, "5": 1})
    assert (made["no_answer"], made["confidence"]) == ("abstained", 0.5)
    unreadable = voted(RATING, "", "9", abstain_below=0.6)
    assert (unreadable["no_answer"], unreadable["abstained"]) == ("unreadable", False)


def test_a_calibration_makes_shares_probabilities() -> None:
    """At temperature 1/2 shares are squared: 3 to 1 become 9 to 1."""
    made = voted(RATING, "4", "4", "5", "4", calibration=SHARPENED, abstain_below=0.8)
    assert made["confidence"] == pytest.approx(0.9)
    assert made["expected"] == pytest.approx(4.1)
    assert made["answer"] == "4"


# --- pairs


def orders(
    given: Sequence[str], swapped: Sequence[str], scale: tuple[str, ...] = ("A", "B")
) -> list[tuple[Problem, list[Draw]]]:
    frames = [
        Frame(form="pair", scale=scale, item="item", length=0.0, pair="pair-1", swapped=turn)
        for turn in (False, True)
    ]
    return [
        (problem(frames[0], "pair-1"), drawn(*given)),
        (problem(frames[1], "pair-1 (swapped)"), drawn(*swapped)),
    ]


def test_both_orders_of_a_pair_are_one_item_in_the_order_of_the_data() -> None:
    made = prediction(orders(["A", "A", "B"], ["B", "B", "B"]))
    assert (made["id"], made["answer"], made["votes"]) == ("pair-1", "A", {"A": 5, "B": 1})
    assert made["distribution"] == {"A": 5 / 6, "B": 1 / 6}
    assert (made["consistent"], made["expected"], made["rationale"]) == (True, None, "z0")


def test_a_liking_for_the_first_place_cancels_out_and_is_shown() -> None:
    made = prediction(orders(["A", "A"], ["A", "A"]))
    assert (made["confidence"], made["consistent"]) == (0.5, False)
    assert prediction(orders(["A"], [""]))["consistent"] is None


def test_a_rationale_of_the_other_order_is_not_shown() -> None:
    """It speaks of B, and the answer is A."""
    made = prediction(orders([""], ["B", "B"]))
    assert (made["answer"], made["rationale"]) == ("A", "")


def test_a_tie_is_the_same_either_way() -> None:
    made = prediction(orders(["tie"], ["tie"], ("A", "B", "tie")))
    assert (made["answer"], made["consistent"]) == ("tie", True)


def test_a_calibration_sees_each_order_as_it_was_shown() -> None:
    """A map under which what is shown first is right half as often as it is voted for."""
    always = ((0.0, 1.0), (0.0, 0.5)), ((0.0, 1.0), (0.5, 1.0))
    biased = Calibration("isotonic", ("A", "B"), knots=always)
    made = prediction(orders(["A"], ["A"]), calibration=biased)
    assert made["distribution"] == {"A": 0.5, "B": 0.5}
    made = prediction(
        orders(["B"], ["A"]), calibration=biased
    )  # shown second: surely; first: half of it
    assert made["distribution"] == {"A": 0.25, "B": 0.75}


# --- files, streams, Python


RATINGS = [{"prompt": f"What is {n}?", "response": "A number."} for n in range(5)]
PAIRS = [{"prompt": f"{n}?", "response_a": "Yes.", "response_b": "No."} for n in range(3)]
JUDGE = ("--task", "judge", "--scale", "1,5")


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def told(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["predict", *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_file_stream_rows_and_problems_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(RATINGS)]
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(rows))
    of_file = told([str(file), *ASKED, *JUDGE], capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines(rows)))
    of_stream = told(["-", *ASKED, *JUDGE], capsys)
    options: dict[str, Any] = {"max_new_tokens": 32, "draws": 3, "chunk_size": 2}
    of_rows = list(predict(rows, "seedling", task="judge", scale="1,5", **options))
    assert of_file == of_stream == of_rows
    assert [one["id"] for one in of_file] == [row["id"] for row in rows]
    problems = [Problem("a", "2 + 2?", ""), Problem("b", "2 + 3?", "")]
    assert [one["id"] for one in predict(problems, "seedling", **options)] == ["a", "b"]


def test_a_stream_is_answered_chunk_by_chunk_and_names_its_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def arriving() -> Any:
        for row in [*RATINGS[:2], {}, RATINGS[2]]:
            seen.append(len(capsys.readouterr().out.splitlines()))
            yield json.dumps(row) + "\n" if row else "\n"

    monkeypatch.setattr("sys.stdin", arriving())
    last = told(["-", *ASKED, *JUDGE], capsys)
    assert seen == [0, 0, 2, 0]  # two lines are a chunk, answered before the third is read
    assert [one["id"] for one in last] == ["stdin-4"]


def test_parquet_loads_as_a_data_set_and_holds_what_the_lines_say(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines(PAIRS))
    for kind in ("jsonl", "parquet"):
        argv = [str(file), *ASKED, "--task", "judge", "--output", str(tmp_path / f"out.{kind}")]
        assert main(["predict", *argv]) == 0
    said = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 2  # of --chunk-size 2
    table = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "c"))
    for row, one in zip(table, said, strict=True):
        votes = {vote["answer"]: vote["count"] for vote in row.pop("votes")}
        shares = {
            name: {share["answer"]: share["share"] for share in row.pop(name)}
            for name in ("probabilities", "distribution")
        }
        assert row | {"votes": votes, **shares} == one
    assert len(said) == len(PAIRS)


def test_nothing_is_left_of_a_file_that_could_not_be_finished(tmp_path: Path) -> None:
    def failing() -> Any:
        yield voted(RATING, "4")
        raise DataError("line 2")

    with pytest.raises(DataError):
        save_predictions(failing(), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--task", "judge"], "--scale 1,5"),
        (["--abstain-below", "2"], "abstain_below must be from 0 to 1"),
        (["--draws", "1", "--calibration", "map.json"], "calibration is of shares"),
        (["--aggregate", "probabilities", "--calibration", "map.json"], "fit it again with --aggregate"),
        (["--aggregate", "probabilities"], "needs a closed set of answers"),
        (
            [*JUDGE, "--aggregate", "probabilities", "--answer-format", "regex:Score: (.+)"],
            "needs an answer format with a cue",
        ),
        (["--calibration", "nowhere.json"], "nowhere.json can't be read"),
        (["--calibration", "map.json", "--columns", "prompt=response"], "these have none"),
        (["--calibration", "map.json", "--task", "judge", "--scale", "0,5"], "fit it again"),
        (["--output", "out.xlsx"], "must end in .jsonl, .parquet or .csv"),
    ],
)
def test_what_is_refused(
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(lines(RATINGS))
    save_calibration(SHARPENED, Path("map.json"))
    assert main(["predict", "rows.jsonl", "--model", "seedling", *argv]) == 1
    assert said.lower() in " ".join(capsys.readouterr().err.split()).lower()


def test_a_bad_line_of_a_stream_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "2?"}\n\n{"prompt": \n'))
    assert main(["predict", "-", *ASKED]) == 1
    assert "stdin: rows that can't be used" in (error := capsys.readouterr().err)
    assert "line 3" in error


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ConfigError, match=r"drws is no setting\. Did you mean draws"):
        predict("rows.jsonl", "seedling", drws=3)
    with pytest.raises(DataError, match="no file"):
        predict("nowhere.jsonl", "seedling")


# --- calibrate


def test_calibrate_stores_a_map_that_evaluate_and_predict_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["world", "rubric", "--output-dir", ".", "--num-train", "150", "--num-test", "20"]) == 0
    asked = [
        *("--model", "seedling", "--max-new-tokens", "40", "--draws", "6", "--temperature", "1"),
        *JUDGE,
    ]
    capsys.readouterr()
    votes = ("--aggregate", "votes")
    made = ["calibrate", "train.jsonl", *asked, *votes, "--output", "map.json", "--show", "json"]
    assert main(made) == 0
    effect = json.loads(capsys.readouterr().out)
    assert effect["num_problems"] == 150
    assert {"ece_before", "ece_after", "brier_before", "brier_after", "ece_after_ci"} <= effect.keys()
    assert effect["of"] == "votes"
    evaluate = ["evaluate", "test.jsonl", *asked, "--output-dir", "run", "--show", "json"]
    assert main(evaluate) == 0
    raw = json.loads(capsys.readouterr().out)
    assert main([*evaluate, "--calibration", "map.json"]) == 0  # of the same draws
    mended = json.loads(capsys.readouterr().out)
    assert (mended["ece_raw"], mended["brier_raw"]) == (raw["ece"], raw["brier"])
    assert mended["brier"] != raw["brier"]
    assert mended["spearman"] is not None
    assert "map.json (blake2b " in Path("run/config.yaml").read_text()
    predicted = told(["test.jsonl", *asked, "--calibration", "map.json"], capsys)
    assert len(predicted) == 20
    assert main(["calibrate", "train.jsonl", *asked, "--output", "map.json"]) == 1
    assert "map.json exists already" in capsys.readouterr().err


# --- stopped, and gone on with


def test_predictions_that_were_stopped_go_on_with_the_draws_that_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(lines(RATINGS))
    argv = ["predict", "rows.jsonl", *ASKED, "--task", "judge", "--scale", "1,5"]
    assert main([*argv, "--output", "whole.jsonl"]) == 0
    asked: list[str] = []

    def failing(self: Any, *args: Any, **given: Any) -> Any:
        for finished in generate(self, *args, **given):
            if len(asked) >= 5:
                raise KeyboardInterrupt
            asked.extend(request.key.problem_id for request, _ in finished)
            yield finished

    generate = TransformersEngine.generate
    monkeypatch.setattr(TransformersEngine, "generate", failing)
    assert main([*argv, "--output", "out.jsonl"]) == 130
    assert not Path("out.jsonl").exists()
    first, asked = asked, []
    monkeypatch.setattr(TransformersEngine, "generate", counting(generate, asked))
    assert main([*argv, "--output", "out.jsonl"]) == 0
    assert Path("out.jsonl").read_text() == Path("whole.jsonl").read_text()
    num_draws = sum(len(d) for d, _ in read_draws(Path("out.jsonl.draws/iteration-000/eval")))
    assert len(first) + len(asked) == num_draws
    assert main(["verify", "out.jsonl.draws"]) == 0


def counting(generate: Any, asked: list[str]) -> Any:
    def counted(self: Any, *args: Any, **given: Any) -> Any:
        for finished in generate(self, *args, **given):
            asked.extend(request.key.problem_id for request, _ in finished)
            yield finished

    return counted


def assert_same_but_for_rounding(one: Path, other: Path) -> None:
    """Two files of predictions have the same lines, but for the last digits of their numbers."""
    numbers: dict[Path, list[float]] = {one: [], other: []}
    first, second = (
        [
            json.loads(line, parse_float=lambda text, into=into: into.append(float(text)))
            for line in path.read_text().splitlines()
        ]
        for path, into in numbers.items()
    )
    assert first == second
    assert numbers[one] == pytest.approx(numbers[other], abs=1e-5)


def test_answers_scored_as_draws_come_are_those_scored_after_all_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two draws together, and with an engine that keeps nothing."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(lines(RATINGS))
    score = TransformersEngine.logprobs_after
    kept: list[int] = []

    def scoring(self: TransformersEngine, asked: Any) -> Any:
        kept.append(self._tree.num_bytes)
        return score(self, asked)

    monkeypatch.setattr(TransformersEngine, "logprobs_after", scoring)
    argv = ["predict", "rows.jsonl", *ASKED, *JUDGE]
    monkeypatch.setattr(hf_engine, "_MOST_SCORED", 2)
    assert main([*argv, "--output", "between.jsonl"]) == 0
    assert all(kept) and len(kept) > len(RATINGS) / 2
    kept.clear()
    monkeypatch.setattr(hf_engine, "usual_kept_bytes", lambda memory: 0)
    assert main([*argv, "--output", "after.jsonl"]) == 0
    assert kept and not any(kept)
    assert_same_but_for_rounding(Path("between.jsonl"), Path("after.jsonl"))


def test_probabilities_that_were_stopped_go_on_and_nothing_is_scored_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(lines(RATINGS))
    argv = ["predict", "rows.jsonl", *ASKED, *JUDGE]
    assert main([*argv, "--output", "whole.jsonl"]) == 0
    scored: list[str] = []
    stops = [True]

    def scoring(draws: Any, *args: Any) -> Any:
        if stops[0] and len(scored) >= 6:  # three draws of two problems a chunk
            raise KeyboardInterrupt
        scored.extend(f"{draw.key}" for draw in draws)
        return score(draws, *args)

    score = scored_answers.answer_logprobs
    monkeypatch.setattr(scored_answers, "answer_logprobs", scoring)
    assert main([*argv, "--output", "out.jsonl"]) == 130
    stops[0] = False
    assert main([*argv, "--output", "out.jsonl"]) == 0
    assert len(scored) == len({*scored}) == 3 * len(RATINGS)
    assert_same_but_for_rounding(Path("out.jsonl"), Path("whole.jsonl"))
    said = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert all(one["aggregate"] == "probabilities" for one in said)
    assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in said)
    folder = Path("out.jsonl.draws/iteration-000")
    assert len(read_scored(folder / "eval_answers")) == len(scored)
    assert main(["verify", "out.jsonl.draws"]) == 0


def test_predictions_of_an_earlier_version_go_on_with_their_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their config.yaml has no `aggregate`, and there are no probabilities beside the draws."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(lines(RATINGS))
    argv = ["predict", "rows.jsonl", *ASKED, *JUDGE, "--output", "out.jsonl"]
    assert main([*argv, "--aggregate", "votes"]) == 0
    by_votes = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert not Path("out.jsonl.draws/iteration-000/eval_answers").exists()
    assert {one["aggregate"] for one in by_votes} == {"votes"}
    Path("out.jsonl").unlink()
    config = Path("out.jsonl.draws/config.yaml")
    old = [line for line in config.read_text().splitlines() if not line.startswith("aggregate")]
    config.write_text("\n".join(old) + "\n")

    def never(*args: Any, **given: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr(TransformersEngine, "generate", never)
    assert main(argv) == 0
    again = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert {one["aggregate"] for one in again} == {"probabilities"}
    assert [one["votes"] for one in again] == [one["votes"] for one in by_votes]


def test_a_calibration_of_probabilities_takes_one_rationale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["world", "rubric", "--output-dir", ".", "--num-train", "30", "--num-test", "4"]) == 0
    asked = ["--model", "seedling", "--max-new-tokens", "40", "--draws", "1", *JUDGE]
    capsys.readouterr()
    made = ["calibrate", "train.jsonl", *asked, "--output", "map.json", "--show", "json"]
    assert main(made) == 0
    effect = json.loads(capsys.readouterr().out)
    assert (effect["of"], effect["num_problems"]) == ("probabilities", 30)
    assert effect["brier_after"] is not None
    evaluate = ["evaluate", "test.jsonl", *asked, "--calibration", "map.json", "--output-dir", "run"]
    assert main([*evaluate, "--show", "json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert {"by_votes", "by_probabilities", "calibrated"} <= metrics.keys()
    assert metrics["calibrated"]["brier"] != metrics["by_probabilities"]["brier"]
    assert main(evaluate) == 0  # as a table, from what is stored
    assert "by probabilities" in capsys.readouterr().out
    [*said] = told(["test.jsonl", *asked, "--calibration", "map.json"], capsys)
    assert all(one["distribution"] != one["probabilities"] for one in said)
    assert (
        main(["predict", "test.jsonl", *asked, "--calibration", "map.json", "--aggregate", "votes"]) == 1
    )
