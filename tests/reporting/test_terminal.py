"""How a run is shown: what each way of showing prints, and that none gets in the way of another."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

import femtune.reporting.terminal as progress
from femtune.cli.output import show_metrics
from femtune.comparison.compare import Job, State
from femtune.comparison.live_table import Watch
from femtune.config import Train
from femtune.evaluation.item_scores import describe_difference
from femtune.evaluation.paired import paired_difference
from femtune.reporting.terminal import (
    Bars,
    JsonLines,
    Lines,
    Quiet,
    Screen,
    Show,
    plain_table,
    showing,
    sparkline,
    summary,
)
from femtune.types import Completion, Draw, DrawKey, Reason, Score

BASE: dict[str, Any] = {"iteration": 0, "evaluation": {"accuracy": 0.25, "accuracy_ci": [0.125, 0.375]}}
FIRST: dict[str, Any] = {
    "iteration": 1,
    "e_step": {"num_kept": 30, "num_problems": 40, "generated_tokens": 12345, "total_s": 1.5},
    "m_step": {"seconds": 2.0},
    "evaluation": {"accuracy": 0.5, "mae": 0.75, "sound_steps": 0.875},
}


KEPT = "Start at 3.\nIt is \x1b[31mkind: so 4.\nAnswer: 4"


def told(show: Show) -> None:
    """All that a run tells."""
    with showing(show) as teller:
        teller.phase("evaluation", 0, 8)
        teller.measured(0, BASE)
        teller.phase("E-step", 1, 40)
        teller.draws([draw("a"), draw("b", reason="wrong")])
        teller.phase("M-step", 1, 0)
        teller.step(1, 2, 0.5)
        teller.measured(1, FIRST)


def draw(problem_id: str, index: int = 0, reason: Reason = "") -> Draw:
    key = DrawKey(1, problem_id, 0, index)
    return Draw(key, "plain", 0, Completion((1, 2), KEPT, "stop", 0.0), Score(1.0, "1", reason))


def test_a_line_an_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    told("lines")
    assert capsys.readouterr().out.splitlines() == [
        "base         accuracy 0.250 (0.125 to 0.375)",
        "iteration 1  kept 30/40 problems  12,345 tokens  3.5 s  accuracy 0.500  MAE 0.75  "
        "sound steps 0.875",  # 3.5 s: both steps
    ]


def test_the_bound_is_shown_with_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    posterior = {"bound": -1.234, "total_s": 2.06}
    with showing("lines") as teller:
        teller.measured(0, BASE | {"posterior": posterior})
    assert capsys.readouterr().out.endswith(" (0.125 to 0.375)  bound -1.23 nats (2.1 s)\n")
    spent = summary([BASE | {"posterior": posterior}, FIRST | {"posterior": posterior}])[-1]
    assert spent.endswith("2.0 s of training, 4.1 s for the bound (--bound-draws 0: none)")


def test_draws_without_an_answer_and_worked_examples_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    forced = {"answered": 1.0, "forced_share": 0.75, "truncated_share": 0.5}
    base = {**BASE, "evaluation": BASE["evaluation"] | forced}
    base["evaluation_demos"] = {"accuracy": 0.375, "answered": 0.9, "truncated_share": 0.0}
    first = FIRST | {"e_step": FIRST["e_step"] | {"answered": 0.4, "truncated_share": 0.0625}}
    with showing("lines") as teller:
        teller.measured(0, base)
        teller.measured(1, first)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "base         accuracy 0.250 (0.125 to 0.375)  answered 100%  forced 75%  truncated 50%  "
        "with worked examples: accuracy 0.375  answered 90%"
    )
    assert "30/40 problems  answered 40%  truncated 6%  12,345 tokens" in lines[1]
    assert summary([base, first])[0].startswith("accuracy 0.250 (0.375 with worked examples) -> 0.500 (")


def test_metrics_with_worked_examples_stand_in_a_second_column(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"num_problems": 40, "accuracy": 0.025, "accuracy_ci": [0.0, 0.1], "answered": 0.5}
    shown = {"accuracy": 0.125, "accuracy_ci": [0.05, 0.225], "answered": 1.0}
    show_metrics(metrics | {f"{name}_with_examples": value for name, value in shown.items()}, "lines")
    assert capsys.readouterr().out.splitlines() == [
        f"{'':22}{'without examples':28}with examples",
        f"{'num_problems':22}40",
        f"{'accuracy':22}{'0.025  0.000 to 0.100':28}0.125  0.050 to 0.225",
        f"{'answered':22}{'0.500':28}1.000",
    ]
    show_metrics(metrics, "lines")
    assert capsys.readouterr().out.splitlines()[1] == f"{'accuracy':22}0.025  0.000 to 0.100"


def test_groups_and_missing_values_are_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {"plain": {"wrong": 41, "kept": 19}, "hinted": {"kept": 36}}
    show_metrics({"solved_by": {"1": 160, "2": 30}, "reasons": reasons, "mae": None}, "lines")
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["solved_by", "1: 160, 2: 30"],
        ["reasons", "plain: wrong 41, kept 19; hinted: kept 36"],
        ["mae", "none"],
    ]


def test_json_lines_are_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    told("json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [BASE, FIRST]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told("quiet")
    assert capsys.readouterr() == ("", "")


def test_auto_is_bars_in_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[tuple[Show, bool], type[Quiet]] = {
        ("auto", True): Bars,
        ("auto", False): Lines,
        ("lines", True): Lines,
        ("json", True): JsonLines,
        ("quiet", True): Quiet,
    }
    for (show, terminal), kind in kinds.items():
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        monkeypatch.setattr(progress, "console", lambda console=console: console)
        with showing(show) as teller:
            assert type(teller) is kind


def test_bars_count_problems_once_and_reasons_by_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    monkeypatch.setattr(progress, "console", lambda: console)
    with showing("auto") as teller:
        assert isinstance(teller, Bars)
        task = teller._bars.tasks[0]
        teller.phase("E-step", 3, 40)
        teller.draws(
            [draw("a", 0, "wrong"), draw("a", 1, "wrong"), draw("a", 2), draw("b", 0, "parse_error")]
        )
        assert (task.description, task.completed, task.total) == ("iteration 3 E-step", 2, 40)
        share, rate, *reasons = task.fields["note"].split(", ")
        assert (share, reasons) == ("50% kept", ["parse error 1", "wrong 2"])
        assert rate.endswith(" tokens/s") and float(rate.split()[0].replace(",", "")) > 0
        assert teller._bars.said == KEPT
        teller.phase("evaluation", 3, 8)
        assert (task.completed, task.total, task.fields["note"]) == (0, 8, "")
        teller.draws([draw("a")])
        assert task.fields["note"].startswith("100% right, ")  # nothing is kept of an evaluation
        assert teller._bars.said == ""
        teller.phase("M-step", 3, 0)
        teller.step(1, 2, 0.5)
        assert (task.completed, task.total) == (1, 2)
        assert task.fields["note"] == "loss 0.500 nats a token"
        teller.measured(1, FIRST)  # its line stays above the bar
    assert "30/40" in screen.getvalue() and "12,345" in screen.getvalue()


def test_the_last_kept_rationale_is_a_line_that_can_not_act() -> None:
    console = Console(file=(screen := io.StringIO()), width=40, force_terminal=False)
    bars = Screen(console=console)
    bars.said = KEPT
    [_, line] = bars.get_renderables()
    console.print(Group(line))
    assert screen.getvalue() == "Start at 3. It is ␛[31mkind: so 4. Answ…\n"


def test_a_run_is_summed_up_against_its_base() -> None:
    second = FIRST | {"iteration": 2, "evaluation": {"accuracy": 0.4, "accuracy_ci": [0.2, 0.6]}}
    by = [{"development": {"accuracy": a, "num_problems": 40}} for a in (0.7, 0.6)]
    difference = paired_difference([1] * 20 + [0] * 20, [1] * 5 + [0] * 35)
    assert summary([BASE, FIRST | by[0], second | by[1]], difference) == [
        "accuracy 0.250 -> 0.500 (0.500 to 0.500) by iteration 1 of 2, the best on 40 development "
        "problems",
        "the last iteration, 2: accuracy 0.400",
        f"less the base on the same problems: {describe_difference(difference)}",
        "kept 75% of problems at first, 75% at last  ▇▇",
        "24,690 tokens drawn in 3.0 s (8,230 a second), 4.0 s of training",
    ]
    assert summary([BASE, second])[0].endswith("by iteration 2 of 2")
    same = paired_difference([1, 0], [1, 0])
    assert summary([BASE, second], same)[1].endswith("p = 1.000: not told apart from the base")
    assert summary([{"iteration": 0}]) == []


def test_what_is_remembered_is_told_beside_what_was_kept_of_the_asked() -> None:
    """In an iteration that asks nothing, nothing is kept, and it covers what it did."""
    covered = [
        FIRST | {"iteration": number, "e_step": FIRST["e_step"] | {"covered_share": share} | asked}
        for number, share, asked in (
            (1, 0.75, {}),
            (2, 0.75, {"num_problems": 0, "num_kept": 0, "kept_share": None}),
        )
    ]
    assert "kept 30/40 problems  75% covered" in progress.iteration_line(covered[0]).plain
    assert "covered 75% of problems at first, 75% at last  ▇▇" in summary(covered)
    bare = [FIRST, FIRST | {"e_step": FIRST["e_step"] | {"num_problems": 0, "num_kept": 0}}]
    assert "kept 75% of problems at first, 75% at last  ▇" in summary(bare)


@given(st.lists(st.floats(0, 1), max_size=9))
def test_a_sparkline_has_a_bar_a_share_and_higher_ones_for_more(shares: list[float]) -> None:
    bars = sparkline(shares)
    assert len(bars) == len(shares)
    assert [ord(bar) for bar in sparkline(sorted(shares))] == sorted(map(ord, bars))


def test_runs_watched_without_a_terminal_are_told_once_an_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job("pps", 1, Path("x"), Train())
    with Watch("lines") as watch:
        for accuracy in ((), (0.25,), (0.25,), (0.25, 0.5)):
            watch({job: State(len(accuracy), "E-step", accuracy)})
    assert capsys.readouterr().out.splitlines() == [
        "pps seed 1 base: accuracy 0.250",
        "pps seed 1 evaluation 1: accuracy 0.500",
    ]


def test_runs_watched_in_a_terminal_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda: console)
    job = Job("rejection(4)", 0, Path("x"), Train(iterations=5))
    with Watch("auto") as watch:
        watch({job: State(2, "M-step", (0.0, 0.5))})
    for shown in ("rejection(4)", "2/5", "M-step", "▁▅", "0.500"):
        assert shown in screen.getvalue()


def test_text_of_a_table_is_not_read_as_markup() -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(plain_table(["", "a"], [["[red]", "[/]"]]))
    assert console.file.getvalue().splitlines()[1].split() == ["[red]", "[/]"]  # type: ignore[attr-defined]  # the file is a StringIO


def test_a_pipe_is_wide_enough_for_a_table_unless_columns_says_otherwise() -> None:
    code = "from femtune.reporting.terminal import console; print(console().width)"
    widths = []
    for columns in ({}, {"COLUMNS": "70"}):
        env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | columns
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        widths.append(int(done.stdout))
    assert widths == [120, 70]
