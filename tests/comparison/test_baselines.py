"""The baselines: their numbers on hand-made cases and against sklearn, and each end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from tests.models import tiny_model

from femtune.comparison.baseline_draws import Baseline, answered, judged
from femtune.comparison.baselines import (
    baseline_settings,
    both_orders,
    by_vote,
    chosen,
    most_frequent,
    run_baseline,
)
from femtune.comparison.compare import Job, _histories, compare, jobs
from femtune.comparison.demo import write_world
from femtune.comparison.regression import (
    PENALTIES,
    Features,
    embeddings,
    least_squares,
    log_shares,
    mean_shares,
    multinomial,
    predictions,
    value_metrics,
)
from femtune.comparison.regression_baseline import check_regression
from femtune.comparison.table import notes, rows, save, table
from femtune.config import Train
from femtune.data.tasks.frames import Frame
from femtune.data.worlds import WORLDS, make_splits
from femtune.errors import ConfigError, DataError, NothingKept, RunError
from femtune.evaluation.scored_answers import read_scored
from femtune.mstep.config import Training
from femtune.resolve import read_inputs
from femtune.runs.draws import read_draws
from femtune.types import Problem

ALL = ("majority", "votes", "direct", "answer-only", "regression")
SETTINGS = Train(
    task="judge",
    raters="named",
    scale="1,5",
    max_new_tokens=48,
    iterations=2,
    bound_draws=0,
    training=Training(num_train_epochs=3, learning_rate=1e-3, per_device_train_batch_size=5),
)


def rating(name: str, answer: str) -> Problem:
    frame = Frame(form="rating", scale=tuple("12345"), item=name)
    return Problem(name, f"Rate {name}.", answer, {"frame": frame.column()})


# --- which, and their settings


def test_by_default_those_that_suit_the_task() -> None:
    assert chosen(None, SETTINGS) == ALL
    assert chosen(None, Train(task="choice")) == ("majority", "votes", "direct", "answer-only")
    assert "direct" not in chosen(None, replace(SETTINGS, engine="openai"))
    assert "direct" not in chosen(None, replace(SETTINGS, answer_format="regex:Score: (.+)"))
    assert chosen(None, Train(task="math")) == ("votes", "answer-only")
    assert chosen(None, replace(SETTINGS, eval_share=0.0)) == ()  # nothing to measure them on
    assert chosen(("none",), SETTINGS) == chosen((), SETTINGS) == ()
    assert chosen(("regression", "votes"), SETTINGS) == ("votes", "regression")


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (("vote",), SETTINGS, "Did you mean votes"),
        (("none", "votes"), SETTINGS, "goes with no other"),
        (("regression",), Train(task="math"), "does not suit task math"),
        (("votes",), replace(SETTINGS, eval_every=0), "held-out problems"),
        (("direct",), replace(SETTINGS, answer_format="regex:Score: (.+)"), "format with a cue"),
    ],
)
def test_what_does_not_suit_is_refused(names: tuple[str, ...], settings: Train, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen(names, settings)


def test_majority_runs_once_and_the_others_for_each_seed() -> None:
    made = jobs(("pps",), 2, replace(SETTINGS, seed=5), Path("out"), ALL, draws=3)
    assert [job.output_dir.name for job in made] == [
        "majority",
        *("votes-seed5", "votes-seed6", "direct", "answer-only-seed5", "answer-only-seed6"),
        *("regression-seed5", "regression-seed6", "pps-seed5", "pps-seed6"),
    ]
    assert [job.is_baseline for job in made] == [True] * 8 + [False] * 2
    assert all(job.settings.seed == job.seed for job in made)
    assert [getattr(job.settings, "draws", None) for job in made[2:9:2]] == [3, 1, 3, None]
    with pytest.raises(ConfigError, match="baseline_draws must be at least 1"):
        jobs(("pps",), 1, SETTINGS, Path("out"), ALL, draws=0)


# --- majority, votes


def test_majority_says_the_most_frequent_answer_to_all(tmp_path: Path) -> None:
    assert most_frequent([rating("a", "3"), rating("b", "4"), rating("c", "4")]) == "4"
    assert most_frequent([rating("a", "3"), rating("b", "4")]) == "3"  # of equals the first
    problems = [rating(name, answer) for name, answer in zip("abcd", "4425", strict=True)]
    asked = read_inputs(problems, replace(SETTINGS, task="table", reward="ordinal(1,5)"))
    metrics = judged(problems, answered(problems, ["4"] * 4, asked))
    assert metrics["accuracy"] == 2 / 4
    assert metrics["mae"] == pytest.approx((0 + 0 + 2 + 1) / 4)
    assert metrics["spearman"] is None
    assert metrics["undefined"]["spearman"] == "all predictions are the same"
    assert metrics["tokens_per_draw"] == 0


def test_accuracy_of_votes_is_the_votes() -> None:
    metrics = {"accuracy": 0.5, "accuracy_ci": [0, 1], "majority_accuracy": 0.75}
    made = by_vote(metrics | {"majority_accuracy_ci": [0.5, 1]})
    assert (made["accuracy"], made["accuracy_ci"]) == (0.75, [0.5, 1])
    assert (made["draw_accuracy"], made["draw_accuracy_ci"]) == (0.5, [0, 1])
    assert by_vote({"accuracy": 0.5}) == {"accuracy": 0.5}  # of one draw


# --- regression


def test_shares_by_hand() -> None:
    counts = np.array([[3.0, 1.0], [0.0, 0.0]])
    assert mean_shares(counts).tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert np.exp(log_shares(counts)) == pytest.approx(np.array([[3.5 / 5, 1.5 / 5], [0.5, 0.5]]))


def random_case() -> tuple[Any, Any, list[str], Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)) * [1, 10] + 5
    y = x @ [1.0, -0.2] + rng.normal(size=30)
    return x, y, [f"item {n // 2}" for n in range(30)], rng.normal(size=(4, 2)) + 5


def test_least_squares_is_sklearns_ridge_at_the_best_penalty() -> None:
    x, y, groups, x_test = random_case()
    found = least_squares(x, y, groups, x_test)
    scaler = StandardScaler().fit(x)
    z, z_test = scaler.transform(x), scaler.transform(x_test)
    fits = [Ridge(alpha).fit(z, y).predict(z_test) for alpha in PENALTIES]
    assert min(np.abs(found - fit).max() for fit in fits) < 1e-8


def test_least_squares_without_noise_is_the_line_itself() -> None:
    # y = 2 x + 1; the penalty 0.01 of 6 standardised items takes 0.01 / 6 off the slope
    x = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    found = least_squares(x, 2 * x[:, 0] + 1, list("abcdef"), np.array([[3.5], [10.0]]))
    assert found == pytest.approx([8.0, 8 + 2 * 6.5 / (1 + 0.01 / 6)])


def test_multinomial_is_sklearns_at_the_best_penalty_and_knows_only_what_it_saw() -> None:
    x, y, groups, x_test = random_case()
    truth = np.where(y > np.median(y), 3, 1)  # of four answers, two are never given
    found = multinomial(x, truth, groups, x_test, 4)
    scaler = StandardScaler().fit(x)
    z, z_test = scaler.transform(x), scaler.transform(x_test)
    fits = [
        LogisticRegression(C=1 / penalty, max_iter=1000).fit(z, truth).predict_proba(z_test)
        for penalty in PENALTIES
    ]
    assert min(np.abs(found[:, [1, 3]] - fit).max() for fit in fits) < 1e-6
    assert not found[:, [0, 2]].any()


def test_a_fold_with_one_answer_is_no_obstacle() -> None:
    x = np.arange(4.0)[:, None]
    found = multinomial(x, np.array([0, 1, 1, 1]), list("abcd"), x, 2)
    assert found.sum(axis=1) == pytest.approx([1] * 4)


def test_predictions_of_each_kind() -> None:
    # votes say 1 where the rater says 5, and the reverse: a regression turns them round
    counts = np.array([[4.0, 0, 0, 0, 0], [0, 0, 0, 0, 4.0]] * 10)
    truth = np.array([4, 0] * 10)
    seen = Features(counts, np.zeros((20, 3)))
    groups = [str(n) for n in range(20)]
    found = predictions(False, "12345", seen, truth, groups, Features(counts[:2], np.zeros((2, 3))))
    assert [*found] == ["ls score", "ls+embedding", "mn score", "mn+embedding"]
    for answers, values in found.values():
        assert answers == ["5", "1"]
        assert values is not None
        assert values == pytest.approx([5, 1], abs=0.1)
    two = Features(counts[:, [0, 4]], seen.embedding)
    pairs = predictions(True, "AB", two, truth // 4, groups, two)
    assert [*pairs] == ["logistic score", "logistic+embedding"]


def test_measures_of_real_numbers_by_hand() -> None:
    metrics = value_metrics(np.array([1.0, 3, 5]), np.array([1.5, 2.5, 5]), [""] * 3)
    assert metrics["mae"] == pytest.approx(1 / 3)
    assert metrics["rmse"] == pytest.approx(math.sqrt(0.5 / 3))
    assert metrics["spearman"] == metrics["kendall"] == 1
    same = value_metrics(np.array([1.0, 3, 5]), np.full(3, 2.0), [""] * 3)
    assert same["pearson"] is None
    assert same["undefined"]["pearson"] == "all predictions are the same"


def test_both_orders_of_the_pairs_that_are_trained_on() -> None:
    train, test = make_splits(WORLDS["tldr"], 4, 4)
    everything = [*test, *train]
    pairs = {problem.columns["frame"]["pair"] for problem in test[:2]}
    made = both_orders(test[:1], everything)  # test has both orders
    assert len(made) == 2 and {problem.columns["frame"]["pair"] for problem in made} == pairs
    assert both_orders([rating("a", "3")], everything) == [rating("a", "3")]


def test_a_regression_needs_two_answers_and_two_items() -> None:
    with pytest.raises(DataError, match="all 2 training answers are 3"):
        check_regression([rating("a", "3"), rating("b", "3")])
    with pytest.raises(DataError, match="of one item"):
        check_regression([rating("a", "3"), rating("a", "4")])
    with pytest.raises(DataError, match="ratings or pairs"):
        check_regression([Problem("a", "1 + 1", "2")])


def test_an_embedding_is_the_mean_over_the_completion_alone(tmp_path: Path) -> None:
    import torch

    from femtune.engines.hf.model import read_model

    model = read_model(tiny_model(tmp_path / "model"), "auto", "cpu", False)
    pairs = [([5, 6, 7], [8, 9]), ([5, 6], [10, 11, 12, 13]), ([5, 6, 7], [8, 9]), ([5], [])]
    found = embeddings(model, pairs)
    with torch.inference_mode():
        for row, (prompt, completion) in enumerate(pairs[:3]):
            output = model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
            alone = output.hidden_states[-1][0, len(prompt) :].mean(0).numpy()
            assert found[row] == pytest.approx(alone, abs=1e-5)
    assert not found[3].any()


# --- the table


def history(accuracy: float, **more: Any) -> list[dict[str, Any]]:
    return [{"iteration": 0, "evaluation": {"accuracy": accuracy, **more}}]


def test_baselines_are_rows_after_the_base_and_dashes_have_their_reasons(tmp_path: Path) -> None:
    todo = jobs(("star", "pps"), 2, SETTINGS, tmp_path, ("majority", "regression"))
    by_place = {job.output_dir.name: job for job in todo}
    kinds = {"ls score": {"accuracy": 0.4, "mae": 0.5}, "mn score": {"accuracy": 0.6}}
    e_step = {"generated_tokens": 900, "total_s": 2.0}
    regressed = {"iteration": 0, "e_step": e_step, "m_step": {"seconds": 1.0}, "evaluations": kinds}
    why = "iteration 1 kept no draw"
    scheme = {"e_step": e_step | {"kept_share": 0.5}, "m_step": {"seconds": 0.0}}
    after = {"iteration": 1, "evaluation": {"accuracy": 0.9, "spearman": 0.8}, **scheme}
    undefined = {"spearman": None, "undefined": {"spearman": "all predictions are the same"}}
    histories = {
        by_place["star-seed0"]: [{"nothing_kept": why}],
        by_place["star-seed1"]: [*history(0.2), after],
        by_place["pps-seed0"]: [*history(0.1), after],
        by_place["pps-seed1"]: [*history(0.2), after],
        by_place["majority"]: history(0.3, **undefined),
        by_place["regression-seed0"]: [regressed | {"evaluation": kinds["ls score"]}],
        by_place["regression-seed1"]: [regressed | {"evaluation": kinds["ls score"]}],
    }
    titles, cells = table(rows(histories))
    assert titles == ["", "accuracy", "Spearman", "MAE", "kept", "tokens drawn", "seconds"]
    assert [line[0] for line in cells] == ["base", "majority", "ls score", "mn score", "star", "pps"]
    assert cells[0][1] == "0.150 ±0.635"  # 12.706 * 0.1 / 2; seed 0's is from pps
    assert cells[1] == ["majority", "0.300", *["–"] * 5]
    assert cells[2][3:] == ["0.50 ±0.00", "–", "900 ±0", "3"]
    assert cells[4] == ["star", *["–"] * 6]
    assert notes(histories) == [
        f"star, seed 0, has no numbers: {why}",
        "Spearman is undefined for majority: all predictions are the same.",
    ]
    stored = json.loads(save(tmp_path, histories).read_text())
    assert stored["notes"] == notes(histories)
    of_regressions = [run for run in stored["runs"] if run["scheme"] in kinds]
    assert [(run["scheme"], run["seed"], run["accuracy"]) for run in of_regressions] == [
        *(("ls score", 0, 0.4), ("mn score", 0, 0.6)),
        *(("ls score", 1, 0.4), ("mn score", 1, 0.6)),
    ]
    assert {"scheme": "star", "seed": 0, "nothing_kept": why, "base": {}} in stored["runs"]


def test_a_run_that_kept_nothing_does_not_end_the_others() -> None:
    from concurrent.futures import Future

    def future(result: Any) -> Future[Any]:
        made: Future[Any] = Future()
        if isinstance(result, Exception):
            made.set_exception(result)
        else:
            made.set_result(result)
        return made

    star, pps = jobs(("star", "pps"), 1, SETTINGS, Path("out"))
    (majority,) = jobs((), 1, SETTINGS, Path("out"), ("majority",))
    nothing = NothingKept("nothing")
    found = _histories({star: future(nothing), pps: future(history(0.1))})
    assert found == {star: [{"nothing_kept": "nothing"}], pps: history(0.1)}
    with pytest.raises(NothingKept, match="star, seed 0: nothing"):  # of all schemes
        _histories({majority: future(history(0.1)), star: future(nothing), pps: future(nothing)})
    with pytest.raises(RunError, match="pps, seed 0: no"):
        _histories({star: future(nothing), pps: future(RunError("no"))})


# --- end to end


def test_answer_only_takes_the_steps_of_a_scheme_that_keeps_all(tmp_path: Path) -> None:
    problems = [rating(f"p{n}", "12345"[n % 5]) for n in range(13)]
    settings = replace(SETTINGS, task="table", reward="ordinal(1,5)", eval_share=0.0)
    held = tmp_path / "eval.jsonl"
    held.write_text('{"id": "x", "prompt": "Rate x.", "answer": "3"}\n')
    model = str(tiny_model(tmp_path / "model", max_position_embeddings=512))
    own = baseline_settings("answer-only", replace(settings, eval_data=str(held)), 1)
    (metrics,) = run_baseline(problems, model, own, tmp_path / "run")
    assert metrics["m_step"]["num_steps"] == 2 * 3 * math.ceil(13 / 5)  # iterations, epochs, batches
    assert "accuracy" in metrics["evaluation"]
    assert "sound_steps" not in metrics["evaluation"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in pq.read_table(tmp_path / "run/iteration-001/examples.parquet").to_pylist():
        *text, end = row["completion_tokens"]
        answer = next(problem.answer for problem in problems if problem.id == row["problem_id"])
        assert tokenizer.decode(text) == f"Answer: {answer}"
        assert end == tokenizer.eos_token_id
        assert "Answer: 3" not in tokenizer.decode(
            row["prompt_tokens"]
        )  # only the completion is trained on


def test_each_baseline_is_stored_and_not_done_again(tmp_path: Path) -> None:
    train, test = (str(path) for path in write_world("rubric", tmp_path / "data", 16, 8))
    settings = replace(SETTINGS, eval_data=test)
    todo = jobs((), 1, settings, tmp_path, ALL, draws=2)
    first = {job.scheme: run(train, job) for job in todo}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert {job.scheme: run(train, job) for job in todo} == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == files
    for (metrics,) in first.values():
        assert 0 <= metrics["evaluation"]["accuracy"] <= 1
        assert metrics["evaluation"]["num_problems"] == 8
    (regressed,) = first["regression"]
    assert {*regressed["evaluations"]} == {
        *("ls score", "ls+embedding", "mn score", "mn+embedding"),
    }
    for metrics in regressed["evaluations"].values():
        assert metrics["num_draws"] == 8 * 2  # the base's
        assert {"mae", "spearman", "kappa", "within_one"} <= {*metrics}
    assert regressed["e_step"]["num_draws"] == 16 * 2
    assert first["votes"][0]["evaluation"]["num_draws"] == 8 * 2
    folder = tmp_path / "votes-seed0" / "iteration-000" / "eval"
    assert sum(len(draws) for draws, _ in read_draws(folder)) == 8 * 2
    (direct,) = first["direct"]
    assert [*direct["evaluations"]] == ["direct", "expected-score"]
    assert {"ece", "brier", "log_likelihood"} <= direct["evaluations"]["direct"].keys()
    assert {"mae", "spearman"} <= direct["evaluations"]["expected-score"].keys()
    assert direct["evaluation"]["tokens_per_draw"] == 0
    assert len(read_scored(tmp_path / "direct" / "iteration-000" / "direct_answers")) == 8
    # a regression is the same again from the stored draws
    place = tmp_path / "regression-seed0" / "iteration-000"
    (place / "metrics.json").unlink()
    (place / "features.npz").unlink()
    (again,) = run(train, todo[-1])
    assert again["evaluations"] == regressed["evaluations"]
    with pytest.raises(RunError, match="draws: 3"):
        other = jobs((), 1, settings, tmp_path, ("votes",), draws=3)[0]
        run(train, other)


def run(data: str, job: Job) -> list[dict[str, Any]]:
    assert isinstance(job.settings, Baseline)
    return run_baseline(data, "seedling", job.settings, job.output_dir)


def test_pairs_are_regressed_in_both_orders(tmp_path: Path) -> None:
    train, test = (str(path) for path in write_world("tldr", tmp_path / "data", 8, 4))
    settings = replace(SETTINGS, task="summarize", scale=None, max_new_tokens=96, eval_data=test)
    *_, regression = jobs((), 1, settings, tmp_path, ALL, draws=2)
    (metrics,) = run(train, regression)
    assert [*metrics["evaluations"]] == ["logistic score", "logistic+embedding"]
    assert metrics["e_step"]["num_draws"] == 2 * 8 * 2  # both orders
    assert metrics["evaluation"]["num_draws"] == 2 * 4 * 2
    assert "position_consistency" in metrics["evaluation"]
    direct = jobs((), 1, settings, tmp_path, ("direct",))[0]
    assert [*run(train, direct)[0]["evaluations"]] == ["direct"]  # pairs have no expected score
    majority = jobs((), 1, settings, tmp_path, ("majority",))[0]
    assert run(train, majority)[0]["evaluation"]["accuracy"] == 0.5  # each pair in both orders


@pytest.mark.slow
def test_a_comparison_with_a_baseline(tmp_path: Path) -> None:
    train, test = (str(path) for path in write_world("rubric", tmp_path / "data", 8, 4))
    settings = replace(SETTINGS, eval_data=test, iterations=1, training=Training(num_train_epochs=1))
    todo = jobs(("pps",), 1, settings, tmp_path, ("majority",))
    histories = compare(train, "seedling", todo, workers=1)
    assert [row.name for row in rows(histories)] == ["base", "majority", "pps"]
    other = [replace(todo[0], settings=replace(todo[0].settings, scale="1,6")), todo[1]]
    with pytest.raises((ConfigError, DataError, RunError)):
        compare(train, "seedling", other)
