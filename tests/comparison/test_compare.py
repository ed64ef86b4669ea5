"""The comparison: its numbers from hand-made histories, and two schemes by two seeds end to end."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from femtune.comparison.compare import Job, State, compare, jobs, state
from femtune.comparison.demo import changes, telling, write_world
from femtune.comparison.differences import stored_differences
from femtune.comparison.table import rows, save, table
from femtune.config import Train
from femtune.data.worlds import WORLDS, make_splits
from femtune.errors import ConfigError, NothingKept, RunError
from femtune.mstep.config import Training
from femtune.runs.run import stored_config
from femtune.schemes.named import AUTO, pps
from femtune.tools.stored_run import stored_scheme
from femtune.types import Completion, Draw, DrawKey, Score

SETTINGS = Train(
    task="judge",
    raters="named",
    scale="1,5",
    max_new_tokens=48,
    iterations=1,
    bound_draws=0,
    training=Training(num_train_epochs=1, learning_rate=1e-3),
)


def history(base: float, *iterations: tuple[float, float, int]) -> list[dict[str, Any]]:
    """From the base's accuracy, and (accuracy, kept share, tokens) of each iteration."""
    made: list[dict[str, Any]] = [{"iteration": 0, "evaluation": {"accuracy": base}}]
    for number, (accuracy, kept_share, tokens) in enumerate(iterations, 1):
        e_step = {"kept_share": kept_share, "generated_tokens": tokens, "total_s": 1.0}
        evaluation = {"accuracy": accuracy}
        m_step = {"seconds": 0.5}
        made.append({"iteration": number, "e_step": e_step, "m_step": m_step, "evaluation": evaluation})
    return made


def job(scheme: str, seed: int) -> Job:
    return Job(scheme, seed, Path(f"{scheme}-{seed}"), SETTINGS)


HISTORIES = {
    job("star", 0): history(0.2, (0.3, 0.5, 1000), (0.5, 0.7, 1400)),
    job("pps", 0): history(0.2, (0.4, 0.8, 500), (0.6, 0.6, 700)),
    job("star", 1): history(0.3, (0.4, 0.5, 1100), (0.7, 0.9, 1500)),
    job("pps", 1): history(0.3, (0.5, 0.8, 500), (0.6, 0.8, 900)),
}


def test_a_row_has_the_last_evaluation_and_the_sums_of_the_iterations() -> None:
    base, star, pps = rows(HISTORIES)
    assert [row.name for row in (base, star, pps)] == ["base", "star", "pps"]  # order of the jobs
    means = {name: mean for name, (mean, _) in star.values.items()}
    assert means == pytest.approx(
        {
            "accuracy": (0.5 + 0.7) / 2,
            "kept_share": ((0.5 + 0.7) / 2 + (0.5 + 0.9) / 2) / 2,  # over iterations, then seeds
            "generated_tokens": ((1000 + 1400) + (1100 + 1500)) / 2,
            "seconds": 2 * (1.0 + 0.5),
        }
    )
    assert base.values["accuracy"][0] == pytest.approx((0.2 + 0.3) / 2)
    assert [*base.values] == ["accuracy"]  # the base draws nothing


def test_the_bound_is_that_of_the_last_iteration_that_has_one() -> None:
    bounded = [history(0.2, (0.3, 0.5, 10), (0.4, 0.5, 10)) for _ in range(2)]
    for each, bounds in zip(bounded, ([-2.0, -1.5, -1.0], [-2.0, -1.5]), strict=True):
        for metrics, bound in zip(each, bounds, strict=False):
            metrics["posterior"] = {"bound": bound}
    base, star = rows({job("star", seed): own for seed, own in enumerate(bounded)})
    assert star.values["bound"][0] == pytest.approx(-1.25) and base.values["bound"][0] == -2
    titles, cells = table([base, star])
    assert cells[0][titles.index("bound")] == "-2.00 ±0.00"


def test_a_row_with_a_development_part_is_that_of_the_best_iteration(tmp_path: Path) -> None:
    made = history(0.2, (0.5, 0.5, 10), (0.3, 0.5, 20))
    for each, accuracy in zip(made[1:], (0.6, 0.4), strict=True):
        each["development"] = {"accuracy": accuracy, "num_problems": 40}
    values = rows({job("star", 0): made})[1].values
    assert (values["accuracy"][0], values["generated_tokens"][0]) == (0.5, 30)  # tokens of all
    [stored] = json.loads(save(tmp_path, {job("star", 0): made}).read_text())["runs"]
    assert (stored["best_iteration"], stored["accuracy"]) == (1, 0.5)
    assert (stored["last_iteration"], stored["last_accuracy"]) == (2, 0.3)


def test_half_widths_are_students_over_seeds() -> None:
    _, star, pps = rows(HISTORIES)
    # two seeds: s = |a - b| / sqrt 2, so t s / sqrt 2 = t |a - b| / 2, t = 12.706 at one degree
    assert star.values["accuracy"][1] == pytest.approx(12.706 * (0.7 - 0.5) / 2)
    assert pps.values["accuracy"][1] == 0
    three = {job("pps", seed): history(0.2, (0.1 * seed, 1.0, 1)) for seed in range(3)}
    # 0, 0.1, 0.2: s = 0.1, t = 4.303 at two degrees
    assert rows(three)[1].values["accuracy"][1] == pytest.approx(4.303 * 0.1 / math.sqrt(3))


def test_one_seed_has_no_interval() -> None:
    one = {key: value for key, value in HISTORIES.items() if key.seed == 0}
    titles, cells = table(rows(one))
    assert titles == ["", "accuracy", "kept", "tokens drawn", "seconds"]
    assert cells == [
        ["base", "0.200", "–", "–", "–"],
        ["star", "0.500", "0.600", "2,400", "3"],
        ["pps", "0.600", "0.700", "1,200", "3"],
    ]


def test_cells_have_their_half_width_where_there_are_seeds() -> None:
    _, cells = table(rows(HISTORIES))
    # accuracy of star: 0.6 ± 12.706 * 0.1 = 1.2706, as wide as two seeds that differ so make it
    assert cells[1][1] == "0.600 ±1.271"
    assert cells[1][3] == "2,500 ±1,271"  # 12.706 * (2600 - 2400) / 2


def test_a_measure_that_a_seed_lacks_is_left_out() -> None:
    histories = {key: [*value] for key, value in HISTORIES.items()}
    last = histories[job("star", 0)][-1]
    histories[job("star", 0)][-1] = last | {"evaluation": last["evaluation"] | {"mae": 0.5}}
    assert "mae" not in rows(histories)[1].values


def test_runs_without_evaluation_have_the_rest() -> None:
    bare = {
        job("pps", 0): [{k: v for k, v in h.items() if k != "evaluation"} for h in history(0, (0, 1, 9))]
    }
    assert table(rows(bare)) == (
        ["", "kept", "tokens drawn", "seconds"],
        [["base", "–", "–", "–"], ["pps", "1.000", "9", "2"]],  # 1.5 s
    )


def test_kept_shares_are_of_iterations_that_asked() -> None:
    made = history(0.2, (0.5, 0.5, 10), (0.5, 0.5, 0))
    for each, kept, covered in zip(made[1:], (0.5, None), (0.5, 0.75), strict=True):
        each["e_step"] |= {"kept_share": kept, "covered_share": covered}
    values = rows({job("rejection(2)+chain+every(2)", 0): made})[1].values
    assert (values["kept_share"][0], values["covered_share"][0]) == (0.5, 0.625)


def test_the_table_is_stored_with_each_runs_numbers(tmp_path: Path) -> None:
    stored = json.loads(save(tmp_path, HISTORIES).read_text())
    assert stored["table"]["star"]["accuracy"] == pytest.approx(0.6)
    assert [(run["scheme"], run["seed"], run["accuracy"]) for run in stored["runs"]] == [
        *(("star", 0, 0.5), ("pps", 0, 0.6)),
        *(("star", 1, 0.7), ("pps", 1, 0.6)),
    ]
    assert stored["runs"][2]["base"] == {"accuracy": 0.3}


def test_a_job_is_a_scheme_and_a_seed_with_a_folder_of_its_own() -> None:
    made = jobs(("rejection:4", "pps"), 2, replace(SETTINGS, seed=5), Path("out"))
    assert [(one.scheme, one.seed, one.output_dir.name) for one in made] == [
        *(("rejection(4)", 5, "rejection-4-seed5"), ("pps", 5, "pps-seed5")),
        *(("rejection(4)", 6, "rejection-4-seed6"), ("pps", 6, "pps-seed6")),
    ]
    assert all(one.settings.seed == one.seed for one in made)
    [auto] = jobs(("auto",), 1, SETTINGS, Path("out"))
    assert auto.settings.scheme == AUTO  # what it stands for is stored
    assert re.fullmatch(r"[\w.-]+-seed0", auto.output_dir.name)
    for schemes, seeds in ((("pps",), 0), (("ppo",), 1), (("star", "star"), 1)):
        with pytest.raises(ConfigError):
            jobs(schemes, seeds, SETTINGS, Path("out"))


def test_where_a_run_is_follows_from_its_log(tmp_path: Path) -> None:
    assert state(tmp_path) == State()  # nothing yet
    log = tmp_path / "log.jsonl"
    log.touch()
    assert state(tmp_path) == State(0, "loading")
    events = [
        ({"event": "evaluation", "iteration": 0}, State(0, "evaluation")),
        ({"event": "iteration", "iteration": 0, "evaluation": {"accuracy": 0.5}}, State(0, "", (0.5,))),
        ({"event": "E-step", "iteration": 1}, State(1, "E-step", (0.5,))),
        ({"event": "iteration", "iteration": 1}, State(1, "", (0.5,))),  # not evaluated
    ]
    for event, expected in events:
        with log.open("a") as file:
            file.write(json.dumps(event) + "\n")
        assert state(tmp_path) == expected
    log.write_text(log.read_text() + '{"event": "E-st')
    assert state(tmp_path) == expected


def test_what_is_shown_changed_from_wrong_to_right_soundly_first() -> None:
    problems, _ = make_splits(WORLDS["rubric"], 4, 1)

    def draw(number: int, right: bool, sound: bool) -> Draw:
        problem = problems[number]
        solved = WORLDS["rubric"].solve(problem).rpartition("\n")[0]
        score = Score(
            right, problem.answer, "" if right else "wrong", rationale=solved if sound else "No."
        )
        return Draw(DrawKey(0, problem.id, 0, 0), "plain", 0, Completion((), "", "stop", 0.0), score)

    before = [draw(number, number == 0, True) for number in range(4)]
    after = [draw(0, True, True), draw(1, True, False), draw(2, False, True), draw(3, True, True)]
    chosen = telling(problems, before, after, num=2)
    assert chosen[0] == (problems[3], before[3], after[3])  # wrong before, right and sound after


def test_a_scheme_that_can_not_be_stored_is_refused_before_any_run(tmp_path: Path) -> None:
    lost = replace(pps(), weigh=lambda draws, examples: examples)
    with pytest.raises(ConfigError, match="<lambda> is no frozen dataclass"):
        jobs(("star", lost), 1, SETTINGS, tmp_path)
    with pytest.raises(ConfigError, match="scheme star is given twice"):
        jobs(("star", replace(pps(), name="star")), 1, SETTINGS, tmp_path)


# --- end to end; each worker's imports take seconds


@pytest.mark.slow
def test_two_schemes_by_two_seeds(tmp_path: Path) -> None:
    """One is named, the other an object with a name of its own."""
    train, test = (str(path) for path in write_world("rubric", tmp_path / "data", 16, 8))
    settings = replace(SETTINGS, eval_data=test)
    own = replace(pps(), name="mine")
    todo = jobs(("star", own), 2, settings, tmp_path)
    seen: list[dict[Job, State]] = []
    histories = compare(train, "seedling", todo, workers=2, watch=seen.append)
    assert [*histories] == todo
    for one, metrics in histories.items():
        assert [each["iteration"] for each in metrics] == [0, 1]
        assert seen[-1][one] == State(1, "", tuple(each["evaluation"]["accuracy"] for each in metrics))
    assert len([*changes(histories, num=2)]) == 2  # what the demo shows
    base, *schemes = rows(histories)
    assert [row.name for row in schemes] == ["star", "mine"]
    assert stored_scheme(stored_config(tmp_path / "mine-seed1"), tmp_path) == own
    assert base.values["accuracy"][1] == 0  # greedy, and the same problems for every seed
    assert all(row.values["kept_share"][0] > 0 for row in schemes)
    by_base = {each.row: each.found for each in stored_differences(histories) if each.to == "base"}
    assert [*by_base] == ["star", "mine"]
    for one in schemes:  # of 8 items, each the mean of two seeds
        difference = one.values["accuracy"][0] - base.values["accuracy"][0]
        assert by_base[one.name].difference == pytest.approx(difference)
        assert (by_base[one.name].num_items, by_base[one.name].num_groups) == (8, 8)
    # what is stored is not done again: the files stay as they are
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    other = replace(todo[3], settings=replace(todo[3].settings, accept_at=0.5))
    with pytest.raises(RunError, match="accept_at"):
        compare(train, "seedling", [*todo[:3], other])  # at once, without a worker
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == times


@pytest.mark.slow
def test_runs_that_all_keep_nothing_end_a_comparison_with_the_first_ones_reason(tmp_path: Path) -> None:
    train = str(write_world("rubric", tmp_path / "data", 8, 1)[0])
    settings = replace(SETTINGS, max_new_tokens=2, eval_share=0.0)  # all draws are cut off
    todo = jobs(("star", "pps"), 3, settings, tmp_path)
    with pytest.raises(NothingKept) as error:
        compare(train, "seedling", todo, workers=1)
    assert str(error.value).startswith("star, seed 0: iteration 1 kept no draw of 8 problems")
    assert "truncated" in str(error.value)


def test_a_damaged_log_tells_what_it_can(tmp_path: Path) -> None:
    lines = [
        b'{"event": "iteration", "iteration": 0, "evaluation": {"accuracy": 0.5}}',
        *(b"\xff\xfe", b"7", b'{"event": "iteration"}', b'{"event": 3, "iteration": "x"}'),
        b'{"event": "iteration", "iteration": 1, "evaluation": {"accuracy": null}}',
        b'{"event": "E-step", "iteration": 2}',
        b'{"event": "M-step", "ituration": 2}',  # a flipped bit
    ]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert state(tmp_path) == State(2, "E-step", (0.5,))
