"""Trials of a model by a scripted engine: what is counted, warned of, advised and shown."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from femtune.config import Train
from femtune.data.prompts import Prompts
from femtune.data.truncation import Cut
from femtune.data.worlds import WORLDS, make_splits
from femtune.engines.fake import FakeEngine
from femtune.estep.scheduler import Sampler
from femtune.rewards.builtin import as_reward, score
from femtune.sampler import SamplerBuilder
from femtune.tools.check import examine
from femtune.tools.check_data import Finding
from femtune.tools.check_model import Tried, advise, copied_shares, draw_trials, fitting_tokens
from femtune.tools.check_report import (
    example_draw,
    fitted,
    label_table,
    pasted,
    table,
    verdict,
    written_lines,
)
from femtune.tools.unanswered import form_of, repeats_itself
from femtune.types import Completion, Demo, Draw, DrawKey, FinishReason, Problem, Reason, Sampling, Score

RATED, _ = make_splits(WORLDS["rubric"], 40, 10, seed=0)
SUMS = [Problem(f"s{n}", f"What is {n} + 100?", str(n + 100)) for n in range(40)]
SETTINGS = Train(max_new_tokens=200)
DEMOS = (
    Demo("What is 2 + 2?", "4", "Two and two.\nAnswer: 4"),
    Demo("What is 3 + 4?", "7", "Three and four.\nAnswer: 7"),
)

Write = Callable[[str, int], str]


@pytest.fixture(scope="module")
def builder() -> SamplerBuilder:
    return examine(RATED, "seedling", replace(SETTINGS, max_new_tokens=48)).builder


def tried(
    builder: SamplerBuilder,
    write: Write,
    problems: list[Problem] = SUMS,
    settings: Train = SETTINGS,
    draws: int = 32,
    reward: str = "exact",
) -> Tried:
    """Trials and advice where a function is the model."""
    engine = FakeEngine(write)
    prompts = Prompts()
    grade = as_reward(reward)
    builder = replace(builder, prompts=prompts, reward=grade, settings=settings)
    sampler = Sampler(
        engine,
        engine.tokenizer,
        prompts,
        partial(score, prompts=prompts, reward=grade),
        Sampling(settings.max_new_tokens, settings.temperature),
        cut=Cut(prompts.format, engine.tokenizer),
        force="all",  # which a check never does
    )
    found = draw_trials(sampler, builder, problems, settings, draws)
    return advise(found, builder, problems, settings)


def solve(prompt: str, seed: int) -> str:
    """The right sum of the problem that comes last."""
    number = int(prompt.rpartition("What is ")[2].partition(" ")[0])
    return f"A hundred more.\nAnswer: {number + 100}"


def warned(found: Tried) -> dict[str, str]:
    return {finding.what: finding.warning for finding in found.findings if finding.warning}


def test_a_model_that_solves_all_needs_no_change(builder: SamplerBuilder) -> None:
    found = tried(builder, solve)
    assert table(found)[1] == [
        [name, "32", "100%", "0%", "100%", "28", "28"] for name in ("plain", "hinted")
    ]
    assert (warned(found), found.changes) == ({}, {"max-new-tokens": "64"})  # 28 * 1.25, at least 64
    assert pasted(found) == "--max-new-tokens 64"
    assert verdict(found.findings) == "Ready."
    assert [*written_lines(found.trials[0], SUMS)] == []


def test_problems_are_spread_and_asked_several_times_where_they_are_few(builder: SamplerBuilder) -> None:
    names = {draw.key.problem_id for draw in tried(builder, solve, draws=8).draws}
    assert names == {f"s{n}" for n in range(0, 40, 5)}
    few = tried(builder, solve, SUMS[:3], draws=8)
    assert [len(trial.draws) for trial in few.trials] == [6, 6]
    assert few.trials[0].draws[0].key.iteration == 0


def test_unanswered_draws_are_warned_of_and_grouped_by_form(builder: SamplerBuilder) -> None:
    def write(prompt: str, seed: int) -> str:
        return 'It is {"sum": 4}.' if seed % 2 else "The sum of 日本 is\n1. a\n2. b\n"

    found = tried(builder, write)
    assert {"answered", "right"} <= warned(found).keys()
    assert not any(draw.completion.num_forced for draw in found.draws)
    lines = [line.plain for line in written_lines(found.trials[0], SUMS)]
    assert lines[0] == "No usable answer in 32 of 32 draws (plain):"
    counts = {line[7:40].strip(): int(line[:5]) for line in lines[1:]}
    assert counts.keys() == {"a JSON object", "a list"} and sum(counts.values()) == 32
    assert all(cell_len(line) <= 80 for line in lines)
    assert "answer-format" not in found.changes
    assert verdict(found.findings).startswith("Not ready: 1 error, ")
    assert [finding.found for finding in found.findings if finding.error] == [
        "none of 64 draws that the scheme makes"  # half of them at the other temperature
    ]
    assert example_draw(found, SUMS[0]) is None


def test_a_form_that_most_draws_have_is_advised_also_where_it_is_read(builder: SamplerBuilder) -> None:
    def write(prompt: str, seed: int) -> str:
        return "We add. It is \\boxed{4}." if seed % 8 else "We add.\nAnswer: 4"

    found = tried(builder, write)
    assert found.first.answered == 1
    assert found.changes["answer-format"] == "boxed"


def test_a_cooler_temperature_is_advised_only_where_it_was_measured_to_be_better(
    builder: SamplerBuilder,
) -> None:
    def hot(prompt: str, seed: int) -> str:
        return "Hm."

    worse = tried(builder, hot)
    assert [trial.temperature for trial in worse.trials] == [1.0, 0.7, 1.0]
    assert "temperature" not in worse.changes
    calls = iter(range(1000))
    better = tried(builder, lambda prompt, seed: solve(prompt, seed) if next(calls) >= 32 else "Hm.")
    assert better.trials[1].right == 1 and better.changes["temperature"] == "0.7"
    assert "--temperature 0.7" in pasted(better)
    calls = iter(range(1000))
    law = replace(SETTINGS, scheme="rejection:4+hard")  # its weights are of draws at temperature 1
    weighed = tried(
        builder, lambda prompt, seed: solve(prompt, seed) if next(calls) >= 32 else "Hm.", settings=law
    )
    assert weighed.trials[1].right == 1 and "temperature" not in weighed.changes
    cool = tried(builder, hot, settings=replace(SETTINGS, temperature=0.7))
    assert [trial.temperature for trial in cool.trials] == [0.7, 0.7]


def test_examples_lead_the_advice_and_copying_is_warned_of(builder: SamplerBuilder) -> None:
    with_demos = replace(builder, demos=DEMOS)

    def copy(prompt: str, seed: int) -> str:
        if "Two and two." not in prompt:
            return "Hm."
        return "Four.\nAnswer: 4" if seed % 2 else solve(prompt, seed)

    found = tried(with_demos, copy)
    assert [trial.name for trial in found.trials] == ["plain", "plain, examples", "hinted, examples"]
    assert found.first.name == "plain, examples" and found.first.answered == 1
    drawn, given = copied_shares(found.first, SUMS)
    fours = sum(draw.score.answer == "4" for draw in found.first.draws) / 32
    assert (drawn, given) == (fours, 0) and fours > 0.2
    assert "copies" in warned(found)["examples"] and "answered" not in warned(found)
    fine = tried(with_demos, solve)
    assert "examples" not in warned(fine) and "demos" not in fine.changes
    rated = [replace(problem, answer="47"[n % 2]) for n, problem in enumerate(SUMS)]
    assert "examples" not in warned(tried(with_demos, copy, rated))  # all of the data's answers are
    never = tried(with_demos, copy, settings=replace(SETTINGS, demo_iterations=0))
    assert never.first.name == "plain"
    spoiled = tried(with_demos, lambda prompt, seed: "" if "Two and" in prompt else solve(prompt, seed))
    assert spoiled.changes["demos"] == "none"


def test_hints_are_advised_where_they_alone_lead_to_answers(builder: SamplerBuilder) -> None:
    def hinted(prompt: str, seed: int) -> str:
        return solve(prompt, seed) if "correct answer" in prompt else "It is so.\nAnswer: 1"

    assert tried(builder, hinted).changes["scheme"] == "star"
    assert "scheme" not in tried(builder, hinted, settings=replace(SETTINGS, scheme="pps")).changes
    leaky = tried(builder, lambda prompt, seed: f"I was told the answer.\n{solve(prompt, seed)}")
    assert "hint" in warned(leaky)


def test_labels_of_data_and_draws_stand_side_by_side(builder: SamplerBuilder) -> None:
    found = tried(builder, lambda prompt, seed: "So.\nAnswer: 4", RATED)
    made = label_table(found, RATED)
    assert made is not None
    head, rows = made
    assert head[:3] == ("label", "data", "plain") and [row[0] for row in rows] == [*"12345"]
    assert [row[2] for row in rows] == ["0%", "0%", "0%", "100%", "0%"]
    for label, share, *_ in rows:
        assert share == f"{sum(p.answer == label for p in RATED) / len(RATED):.0%}"
    assert label_table(tried(builder, solve), SUMS) is None
    off = tried(builder, lambda prompt, seed: "So.\nAnswer: 9", RATED)
    assert "an answer off the scale" in [*written_lines(off.trials[0], RATED)][1].plain
    assert label_table(off, RATED) is not None


# --- lengths


def made(num_tokens: int, finish: FinishReason = "stop", text: str = "") -> Draw:
    completion = Completion((0,) * num_tokens, text, finish, 0.0)
    reason: Reason = "truncated" if finish == "length" else "parse_error"
    return Draw(DrawKey(0, "a", 0, 0), "plain", 0, completion, Score(0.0, "", reason))


@pytest.mark.parametrize(
    ("lengths", "num_cut", "thinks", "enough"),
    [
        ([30] * 32, 0, False, 64),
        ([100] * 32, 0, False, 128),
        ([30] * 20, 12, False, None),  # those that end are far shorter than those that do not
        ([150] * 20, 12, False, 400),
        ([], 32, False, 400),
        ([], 32, True, 2048),
        ([150] * 20, 12, True, 2048),
        ([150] * 32, 0, True, 192),
    ],
)
def test_the_length_that_fits(
    lengths: list[int], num_cut: int, thinks: bool, enough: int | None
) -> None:
    draws = [*map(made, lengths), *(made(200, "length", f"{n} and so on") for n in range(num_cut))]
    assert fitting_tokens(draws, 200, 4000, thinks=thinks) == enough
    room = fitting_tokens(draws, 200, 50, thinks=thinks)
    assert room == (None if enough is None else 50)


def test_what_repeats_itself_is_not_given_more_tokens(builder: SamplerBuilder) -> None:
    loop = "The number of apples is five, so the " * 20
    assert repeats_itself(loop) and not repeats_itself("Each of them is different. " + "abc" * 3)
    assert fitting_tokens([made(200, "length", loop)] * 8, 200, 4000) is None
    found = tried(builder, lambda prompt, seed: loop)
    assert "would not help" in warned(found)["max_new_tokens"] and "max-new-tokens" not in found.changes
    long = tried(builder, lambda prompt, seed: random.Random(seed).randbytes(200).hex())
    assert warned(long)["max_new_tokens"].startswith("Raise --max-new-tokens to ")


# --- what was written


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"So it is \boxed{4}.", r"\boxed{...}"),
        ("#### 5", "#### ..."),
        ("<answer>5</answer> or so", "<answer>"),
        ("[[4]] it is", "[[...]]"),
        ('{"score": 4}', "a JSON object"),
        ("The answer is 5 for sure.", 'a sentence, "The answer is ..."'),
        ("The rating of it would be 3.", 'a sentence, "The answer is ..."'),
        ("1. The response is 1.\n2. The rating: 1.", "a list"),
        ("42", "a number alone"),
        ("", "empty"),
        ("I do not know.", "other text"),
    ],
)
def test_forms_of_text_without_an_answer(text: str, form: str) -> None:
    assert form_of(made(5, text=text), None)[0] == form


def test_forms_that_the_reading_knows() -> None:
    def form(detail: str, text: str = "x y") -> str:
        draw = made(5, text=text)
        return form_of(replace(draw, score=replace(draw.score, detail=detail)), None)[0]

    assert form(Prompts().parse("Answer: 4\nAnswer: 5").error) == "two different answers"
    assert form(Prompts().parse("So.\nAnswer: ...").error) == "no value, or the placeholder"
    assert form(Prompts().parse("Answer: 5").error) == "an answer without reasons"
    assert form_of(made(9, "length", "<think>Hm, so"), None)[0] == "truncated while thinking"
    assert form_of(made(9, "length", "Hm, so"), None)[0] == "truncated"


@given(st.text(), st.integers(4, 60))
def test_a_text_fits_into_its_cells(text: str, width: int) -> None:
    assert cell_len(fitted(text, width)) <= width and "\n" not in fitted(text, width)


def test_the_verdict_counts_errors_and_warnings() -> None:
    bad, good, worst = Finding("a", "b", "c"), Finding("a", "b"), Finding("a", "b", error="c")
    assert verdict([good, good]) == "Ready."
    assert verdict([bad, good]) == "Ready, 1 warning."
    assert verdict([bad, bad]) == "Ready, 2 warnings."
    assert verdict([bad, worst, bad]) == "Not ready: 1 error, 2 warnings."


@pytest.mark.parametrize(("scheme", "is_kept"), [("rejection:4", False), ("star", True), ("pps", True)])
def test_only_draws_that_the_scheme_would_keep_are_shown_as_examples(
    scheme: str, is_kept: bool, builder: SamplerBuilder
) -> None:
    """The model is right where it is told the answer, and only there."""

    def told(prompt: str, seed: int) -> str:
        return solve(prompt, seed) if "correct answer is" in prompt else "No.\nAnswer: 0"

    found = tried(builder, told, settings=replace(SETTINGS, scheme=scheme))
    shown = example_draw(found, SUMS[0])
    assert (shown is not None) == is_kept
    assert shown is None or (shown.accepted and shown.prompt_kind == "hinted")
    assert verdict(found.findings).startswith("Ready" if is_kept else "Not ready: 1 error")


def test_other_thresholds_are_said_with_the_share_that_they_keep(builder: SamplerBuilder) -> None:
    """Half of the draws are right, half are one off."""

    def write(prompt: str, seed: int) -> str:
        number = int(solve(prompt, seed).rpartition(" ")[2])
        return f"So it is.\nAnswer: {number + seed % 2}"

    found = tried(builder, write, reward="ordinal(0,200)")
    [said] = [finding.found for finding in found.findings if finding.what == "accept_at"]
    right = sum(draw.score.reward == 1 for draw in found.first.draws) / 32
    assert said == f"draws kept: {right:.0%} at 1, 100% at 0.995 (plain)"
