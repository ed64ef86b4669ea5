"""The worlds know the truth: their own rationales are sound, and any slip in one is found."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.prompts import Prompts
from femtune.data.tasks.frames import frame
from femtune.data.tasks.judge import turned
from femtune.data.tasks.load import read_task, trained_on
from femtune.data.worlds import WORLDS, make_rows, make_splits, quiz, rubric, sums, tally, tldr
from femtune.errors import ConfigError
from femtune.types import Problem

worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
CLAIMS = {
    "rubric": rubric.CLAIMS,
    "raters": rubric.CLAIMS,
    "tldr": tldr.CLAIMS,
    "tldr-axis": tldr.CLAIMS,
}
judged = pytest.mark.parametrize("name", CLAIMS)


def truth(problem: Problem) -> str:
    """The answer without noise, of a pair in the order in which it is shown."""
    known = frame(problem)
    true = problem.columns["truth"]
    return turned(true) if known is not None and known.swapped else true


def graded(problem: Problem, completion: str) -> tuple[list[bool], str]:
    parsed = Prompts().parse(completion)
    assert parsed.error == ""
    world = WORLDS[problem.columns["world"]]
    return world.check(problem, parsed.rationale, parsed.answer), parsed.answer


@worlds
def test_own_rationales_are_sound_and_lead_to_the_truth(world):
    for problem in make_splits(world, 1, 300, seed=1)[1]:  # of pairs both orders
        sound, answer = graded(problem, world.solve(problem))
        assert all(sound)
        assert answer == problem.answer == truth(problem)


@worlds
def test_own_rationales_leak_no_hint(world):
    prompts = world.prompts()
    for problem in world.make(50, seed=1):
        parsed = prompts.parse(world.solve(problem))
        assert prompts.leak(problem, parsed.rationale) == ""


@pytest.mark.parametrize("world", [world for world in WORLDS.values() if world.name != "quiz"])
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_other_number_makes_a_step_unsound(world, seed, data):
    (problem,) = world.make(1, seed=seed)
    completion = world.solve(problem)
    place = data.draw(st.sampled_from(list(re.finditer(r"\d+", completion))))
    other = data.draw(st.integers(0, 20).map(str).filter(lambda n: n != place.group()))
    corrupted = f"{completion[: place.start()]}{other}{completion[place.end() :]}"
    sound, _ = graded(problem, corrupted)
    assert not all(sound)


@judged
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_other_claim_or_sign_makes_a_step_unsound(name, seed, data):
    (problem,) = WORLDS[name].make(1, seed=seed)
    lines = WORLDS[name].solve(problem).splitlines()
    claims = CLAIMS[name].values()
    steps = [place for place, line in enumerate(lines) if line.partition(":")[0] in claims]
    step = data.draw(st.integers(0, len(steps) - 1))
    claim, _, rest = lines[steps[step]].partition(": ")
    sign, _, rest = rest.partition(" ")
    # the sign alone, the claim alone, or both: "It is clear: plus" to "It is unclear: minus"
    what = data.draw(st.sampled_from(["claim", "sign", "both"]))
    if what != "sign":
        claim = data.draw(st.sampled_from([other for other in claims if other != claim]))
    if what != "claim":
        sign = {"plus": "minus", "minus": "plus"}[sign]
    lines[steps[step]] = f"{claim}: {sign} {rest}"
    sound, _ = graded(problem, "\n".join(lines))
    assert len(sound) == len(steps) + 1
    assert not sound[step]


@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_other_kind_makes_a_line_of_the_quiz_unsound(seed, data):
    (problem,) = WORLDS["quiz"].make(1, seed=seed)
    *lines, last = WORLDS["quiz"].solve(problem).splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    letter, kind = lines[place].split(" tells ")
    others = [f"{name}." for name in quiz.NAMES.values() if f"{name}." != kind]
    lines[place] = f"{letter} tells {data.draw(st.sampled_from(others))}"
    sound, answer = graded(problem, "\n".join([*lines, last]))
    asked = answer == letter  # then the answer follows from no line any more
    assert sound == [number != place for number in range(len(lines))] + [not asked]


def test_another_raters_weights_are_sound_steps():
    generous = dict.fromkeys(rubric.CLAIMS, 2)
    for problem in WORLDS["rubric"].make(100, seed=2):
        points = [(name, sign) for name, sign in problem.columns["evidence"]]
        completion = rubric.write_completion([(p, p[1], generous[p]) for p in points])
        sound, _ = graded(problem, completion)
        assert all(sound)


@worlds
def test_missing_and_surplus_steps_are_unsound(world):
    for problem in world.make(100, seed=3):
        rationale, answer = world.solve(problem).split("\nAnswer: ")
        lines = rationale.splitlines()
        steps = len(world.check(problem, rationale, answer)) - 1
        shorter = world.check(problem, "\n".join(lines[:-1]), answer)
        assert len(shorter) == steps + 1
        assert not shorter[-2]
        longer = world.check(problem, "\n".join([*lines, lines[-1]]), answer)
        assert len(longer) == steps + 2
        assert not longer[-2]
        assert not any(world.check(problem, "", answer))


@worlds
@given(rationale=st.text(), answer=st.text())
def test_check_never_raises(world, rationale, answer):
    (problem,) = world.make(1, seed=0)
    assert not all(world.check(problem, rationale, answer))


@worlds
@given(data=st.data())
def test_check_never_raises_on_shuffled_lines(world, data):
    (problem,) = world.make(1, seed=0)
    odd = ["", "Start at 3.", "9" * 5000, "²: plus ², so ²."]
    lines = [*world.solve(problem).splitlines(), *odd]
    text = "\n".join(data.draw(st.lists(st.sampled_from(lines))))
    sound = world.check(problem, text, problem.answer)
    assert all(isinstance(step, bool) for step in sound)


@worlds
def test_same_seed_same_problems(world):
    assert world.make(50, seed=4, noise=0.3) == world.make(50, seed=4, noise=0.3)
    assert world.make(50, seed=4) != world.make(50, seed=5)


@worlds
def test_ids_and_prompts_are_unique_and_rows_are_json(world):
    problems = world.make(500, seed=6)
    assert len(problems) == 500
    assert len({problem.id for problem in problems}) == 500
    assert len({problem.prompt for problem in problems}) == 500
    for problem in problems:
        assert json.loads(json.dumps(problem.columns)) == problem.columns


@worlds
def test_a_file_of_a_worlds_rows_gives_its_problems(world, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = world.rows(30, seed=6)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read_task(file, world.task, world.options)
    assert trained_on(made.problems) == world.make(30, seed=6)
    assert made.prompts == world.prompts()
    assert made.report.num_skipped == 0


@worlds
def test_splits_share_no_item_and_test_labels_are_true(world):
    train, test = make_splits(world, 301, 200, seed=7, noise=0.5)
    both = 2 if world.name == "tldr" else 1  # in the test set pairs stand in both orders
    assert (len(train), len(test)) == (301, 200 * both)
    sides = [
        {(frame(problem).item or problem.prompt) for problem in problems} for problems in (train, test)
    ]
    assert not sides[0] & sides[1]
    assert all(problem.answer == truth(problem) for problem in test)
    assert any(problem.answer != truth(problem) for problem in train)


@worlds
def test_noise_changes_labels_and_nothing_else(world):
    noisy, true = (world.make(50, seed=7, noise=noise) for noise in (1.0, 0.0))
    for one, other in zip(noisy, true, strict=True):
        assert (one.id, one.prompt, one.columns) == (other.id, other.prompt, other.columns)
        assert one.answer != other.answer == truth(other)


@worlds
def test_noise_is_the_share_of_wrong_labels(world):
    problems = world.make(4000, seed=8, noise=0.2, difficulty=(3, 4))
    wrong = sum(problem.answer != truth(problem) for problem in problems)
    # 4,000 coins of 0.2: standard deviation 25.3; 5 of them: a false alarm in 1.7 million
    assert abs(wrong - 800) < 127


@pytest.mark.parametrize(
    ("name", "answers"),
    [("rubric", "12345"), ("raters", "12345"), ("tldr-axis", "1234567"), ("tldr", "AB")],
)
def test_noise_leaves_answers_on_the_scale(name, answers):
    problems = WORLDS[name].make(300, seed=9, noise=1.0)
    assert {problem.answer for problem in problems} == {*answers}


def test_ratings_are_spread():
    counts = Counter(problem.answer for problem in WORLDS["rubric"].make(2000, seed=10))
    assert sorted(counts) == ["1", "2", "3", "4", "5"]
    assert min(counts.values()) > 0.08 * 2000
    assert max(counts.values()) < 0.4 * 2000
    # a fair coin 2,000 times: standard deviation 22.4; 5 of them: a false alarm in 1.7 million
    counts = Counter(problem.answer for problem in WORLDS["tldr"].make(2000, seed=10))
    assert abs(counts["A"] - 1000) < 112


def test_one_who_counts_every_point_alike_agrees_as_often_as_is_said():
    """Standard deviations of 2,000 coins are 0.011 and 0.010: 5 of them are less than 0.06."""
    agreed = 0
    for problem in WORLDS["rubric"].make(2000, seed=10):
        points = [(name, sign) for name, sign in problem.columns["evidence"]]
        alike = rubric.write_completion([(p, p[1], 1) for p in points])
        agreed += graded(problem, alike)[1] == problem.answer
    assert abs(agreed / 2000 - 0.4) < 0.06
    agreed = 0.0
    for row in tldr.comparisons(2000, seed=10):
        a, b = (sum(sign for _, sign in part) for part in row["evidence"])
        agreed += 0.5 if a == b else float((b > a) == row["choice"])
    assert abs(agreed / 2000 - 0.75) < 0.06


def test_a_response_holds_between_low_and_high_points_of_different_criteria():
    sizes = Counter()
    for problem in WORLDS["rubric"].make(300, seed=11, difficulty=(2, 4)):
        names = [name for name, _ in problem.columns["evidence"]]
        assert len(set(names)) == len(names)
        assert problem.prompt.count("\n- ") == len(names)
        sizes[len(names)] += 1
    assert sorted(sizes) == [2, 3, 4]


def test_every_rater_rates_every_response_by_weights_of_their_own():
    rows = WORLDS["raters"].rows(300, seed=11)
    by_response = [rows[start : start + 3] for start in range(0, 300, 3)]
    differ = 0
    for group in by_response:
        assert [row["rater"] for row in group] == [*rubric.RATERS]
        assert len({(row["prompt"], row["response"]) for row in group}) == 1
        differ += len({row["score"] for row in group}) > 1
    assert 20 < differ < 80  # of 100


def test_every_sentence_is_evidence_for_one_point():
    sentences = [sentence for group in rubric.SENTENCES.values() for sentence in group]
    assert len(set(sentences)) == len(sentences)
    assert set(rubric.SENTENCES) == set(rubric.CLAIMS)
    for weights in (*rubric.RATERS.values(), tldr.HUMAN):
        assert set(weights.values()) <= set(tally.WEIGHTS)
    assert all(weights.keys() == rubric.CLAIMS.keys() for weights in rubric.RATERS.values())
    assert tldr.HUMAN.keys() == tldr.CLAIMS.keys()
    facts = [sentence for group in quiz.SENTENCES.values() for sentence in group]
    assert len(set(facts)) == len(facts)


def test_a_summary_tells_facts_of_its_post_and_faults_that_are_not_in_it():
    for row in tldr.comparisons(200, seed=12, difficulty=(1, 4)):
        post = row["info"]["post"].splitlines()
        texts = [one["text"].splitlines() for one in row["summaries"]]
        assert texts[0] != texts[1]
        assert len(texts[0]) == len(texts[1])  # so that length tells nothing
        for told, points in zip(texts, row["evidence"], strict=True):
            assert [sentence in post for sentence in told] == [sign > 0 for _, sign in points]
            assert all(s in quiz.SENTENCES[kind] for s, (kind, _) in zip(told, points, strict=True))


def test_where_two_tallies_are_the_same_either_answer_follows():
    step = (("cause", 1), 1, 2)
    evidence = [[["cause", 1]], [["cause", 1]]]
    problem = Problem("p", "", "A", {"world": "tldr", "evidence": evidence})
    for tie in "AB":
        completion = tldr.write_completion([[step], [step]], tie=tie)
        assert graded(problem, completion) == ([True, True, True], tie)
    other = tldr.write_completion([[(step[0], 1, 1)], [step]])
    assert graded(problem, other) == ([True, True, True], "B")


@given(a=st.integers(0, 10**12), b=st.integers(0, 10**12))
def test_sums_are_right_for_any_digits(a, b):
    problem = Problem("p", f"What is {a} + {b}?", str(a + b), {"world": "sums", "evidence": [a, b]})
    sound, answer = graded(problem, sums.solve(problem))
    assert all(sound)
    assert answer == str(a + b)


@given(seed=st.integers(0, 10**6), digits=st.integers(1, 6))
def test_terms_have_the_digits_asked_for(seed, digits):
    for row in sums.rows(5, seed=seed, difficulty=(digits, digits)):
        assert all(len(str(term)) == digits for term in row["evidence"])


@given(rng=st.randoms(use_true_random=False), place=st.integers(0, 3), slip=st.sampled_from([-1, 1]))
def test_a_slip_is_the_one_unsound_step(rng, place, slip):
    a, b = rng.randrange(2000, 5000), rng.randrange(2000, 5000)  # digit sums that can go down by 1
    problem = Problem("p", "", str(a + b), {"world": "sums", "evidence": [a, b]})
    sound, _ = graded(problem, sums.write_completion(problem, {place: slip}))
    digits = int(str(a)[3 - place]) + int(str(b)[3 - place])
    carry = (a % 10**place + b % 10**place) // 10**place
    if digits + slip >= 0 and digits + carry + slip <= 19:  # the largest sum of a place
        assert sound == [step != place for step in range(5)]


def test_a_slip_of_a_judge_is_the_one_unsound_step():
    for problem in WORLDS["rubric"].make(100, seed=13, difficulty=(3, 3)):
        points = [(name, sign) for name, sign in problem.columns["evidence"]]
        for place in range(3):
            text = rubric.write_completion([(p, p[1], 1) for p in points], {place: 1})
            assert graded(problem, text)[0] == [step != place for step in range(4)]


def test_too_few_prompts_and_odd_numbers_are_refused():
    with pytest.raises(ConfigError, match="raise difficulty"):
        sums.rows(200, difficulty=(1, 1))
    with pytest.raises(ConfigError, match="raise difficulty"):
        rubric.rows(1441, difficulty=(1, 1))  # 48 questions, 10 points in 3 sentences
    for rows in (rubric.rows, tldr.comparisons, tldr.axis, quiz.rows):
        for wrong in ((0, 3), (4, 3), (3, 6)):
            with pytest.raises(ConfigError, match="difficulty"):
                rows(1, difficulty=wrong)
    for world in WORLDS.values():
        with pytest.raises(ConfigError, match="noise"):
            world.make(1, noise=1.5)


@pytest.mark.parametrize("num_train", [1, 2, 3, 4])
def test_a_response_of_several_raters_is_on_one_side(num_train):
    train, test = make_rows(WORLDS["raters"], num_train, 4)
    assert (len(train), len(test)) == (num_train, 4)
    assert test[0]["rater"] == "Robin"
    assert not {row["response"] for row in train} & {row["response"] for row in test}


def test_worlds_import_without_torch():
    code = "import sys, femtune.data.worlds; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draw_points_is_even():
    rng = random.Random(0)
    counts = Counter(point for _ in range(5000) for point in rubric.draw_points(rng, 5, 5))
    # each point in half of 5,000: standard deviation 35; 5 of them: a false alarm in 1.7 million
    assert all(abs(counts[point] - 2500) < 177 for point in rubric.CLAIMS)
