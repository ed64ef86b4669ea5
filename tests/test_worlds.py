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

from femtune.errors import ConfigError
from femtune.prompts import Prompts
from femtune.types import Problem
from femtune.worlds import WORLDS, make_splits, rubric, sums

worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def graded(problem: Problem, completion: str) -> tuple[list[bool], str]:
    parsed = Prompts().parse(completion)
    assert parsed.problem == ""
    world = WORLDS[problem.columns["world"]]
    return world.check(problem, parsed.rationale, parsed.answer), parsed.answer


@worlds
def test_own_rationales_are_sound_and_lead_to_the_truth(world):
    for problem in world.make(300, seed=1):
        sound, answer = graded(problem, world.solve(problem))
        assert all(sound)
        assert answer == problem.answer == problem.columns["truth"]


@worlds
def test_own_rationales_leak_no_hint(world):
    for problem in world.make(50, seed=1):
        parsed = Prompts().parse(world.solve(problem))
        assert Prompts().leak(problem, parsed.rationale) == ""


@worlds
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_other_number_makes_a_step_unsound(world, seed, data):
    (problem,) = world.make(1, seed=seed)
    completion = world.solve(problem)
    place = data.draw(st.sampled_from(list(re.finditer(r"\d+", completion))))
    other = data.draw(st.integers(0, 20).map(str).filter(lambda n: n != place.group()))
    corrupted = f"{completion[: place.start()]}{other}{completion[place.end() :]}"
    sound, _ = graded(problem, corrupted)
    assert not all(sound)


@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_other_polarity_makes_a_step_unsound(seed, data):
    (problem,) = rubric.make(1, seed=seed)
    completion = rubric.solve(problem)
    # the sign alone, the claim alone, or both: "It is clear: plus" to "It is unclear: minus"
    flips = {"plus": "minus", "minus": "plus"}
    opposite = {claim: rubric.CLAIMS[name, -sign] for (name, sign), claim in rubric.CLAIMS.items()}
    lines = completion.splitlines()
    place = data.draw(st.integers(1, len(lines) - 2))
    claim, _, rest = lines[place].partition(": ")
    sign, _, rest = rest.partition(" ")
    what = data.draw(st.sampled_from(["claim", "sign", "both"]))
    claim = claim if what == "sign" else opposite[claim]
    sign = sign if what == "claim" else flips[sign]
    lines[place] = f"{claim}: {sign} {rest}"
    sound, _ = graded(problem, "\n".join(lines))
    assert not sound[place - 1]


def test_another_raters_weights_are_sound_steps():
    generous = dict.fromkeys(rubric.CLAIMS, 2)
    for problem in rubric.make(100, seed=2):
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
    lines = [*world.solve(problem).splitlines(), "", "Start at 3.", "9" * 5000, "²: plus ², so ²."]
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
    assert len({problem.id for problem in problems}) == 500
    assert len({problem.prompt for problem in problems}) == 500
    for problem in problems:
        assert json.loads(json.dumps(problem.columns)) == problem.columns


@worlds
def test_splits_share_no_prompt_and_test_labels_are_true(world):
    train, test = make_splits(world, 300, 200, seed=7, noise=0.5)
    assert (len(train), len(test)) == (300, 200)
    assert not {problem.prompt for problem in train} & {problem.prompt for problem in test}
    assert all(problem.answer == problem.columns["truth"] for problem in test)
    assert any(problem.answer != problem.columns["truth"] for problem in train)


@worlds
def test_noise_is_the_share_of_wrong_labels(world):
    problems = world.make(4000, seed=8, noise=0.2, difficulty=(3, 5))
    wrong = sum(problem.answer != problem.columns["truth"] for problem in problems)
    # standard deviation (4000 x 0.2 x 0.8)^0.5 = 25.3; 5 of them: a false alarm in 1.7 million
    assert abs(wrong - 800) < 127


def test_noise_leaves_ratings_on_the_scale():
    answers = {problem.answer for problem in rubric.make(300, seed=9, noise=1.0)}
    assert answers == {"1", "2", "3", "4", "5"}


def test_ratings_are_spread():
    counts = Counter(problem.answer for problem in rubric.make(2000, seed=10))
    assert sorted(counts) == ["1", "2", "3", "4", "5"]
    assert min(counts.values()) > 0.08 * 2000
    assert max(counts.values()) < 0.4 * 2000


def test_a_response_holds_between_low_and_high_points_of_different_criteria():
    sizes = Counter()
    for problem in rubric.make(300, seed=11, difficulty=(2, 4)):
        names = [name for name, _ in problem.columns["evidence"]]
        assert len(set(names)) == len(names)
        assert problem.prompt.count("\n- ") == len(names)
        sizes[len(names)] += 1
    assert sorted(sizes) == [2, 3, 4]


def test_every_sentence_is_evidence_for_one_point():
    sentences = [sentence for group in rubric.SENTENCES.values() for sentence in group]
    assert len(set(sentences)) == len(sentences)
    assert set(rubric.SENTENCES) == set(rubric.CLAIMS) == set(rubric.RATER)
    assert set(rubric.RATER.values()) <= set(rubric.WEIGHTS)


@given(a=st.integers(0, 10**12), b=st.integers(0, 10**12))
def test_sums_are_right_for_any_digits(a, b):
    problem = Problem("p", f"What is {a} + {b}?", str(a + b), {"world": "sums", "terms": [a, b]})
    sound, answer = graded(problem, sums.solve(problem))
    assert all(sound)
    assert answer == str(a + b)


@given(seed=st.integers(0, 10**6), digits=st.integers(1, 6))
def test_terms_have_the_digits_asked_for(seed, digits):
    for problem in sums.make(5, seed=seed, difficulty=(digits, digits)):
        assert all(len(str(term)) == digits for term in problem.columns["terms"])


@given(rng=st.randoms(use_true_random=False), place=st.integers(0, 3), slip=st.sampled_from([-1, 1]))
def test_a_slip_is_the_one_unsound_step(rng, place, slip):
    a, b = rng.randrange(2000, 5000), rng.randrange(2000, 5000)  # digit sums that can go down by 1
    problem = Problem("p", "", str(a + b), {"world": "sums", "terms": [a, b]})
    sound, _ = graded(problem, sums.write_completion(problem, {place: slip}))
    digits = int(str(a)[3 - place]) + int(str(b)[3 - place])
    if digits + slip >= 0:
        assert sound == [step != place for step in range(5)]


def test_too_few_prompts_and_odd_numbers_are_refused():
    with pytest.raises(ConfigError, match="raise difficulty"):
        sums.make(200, difficulty=(1, 1))
    for wrong in ((0, 3), (4, 3), (3, 6)):
        with pytest.raises(ConfigError, match="difficulty"):
            rubric.make(1, difficulty=wrong)
    for world in WORLDS.values():
        with pytest.raises(ConfigError, match="noise"):
            world.make(1, noise=1.5)


def test_worlds_import_without_torch():
    code = "import sys, femtune.worlds; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draw_points_is_even():
    rng = random.Random(0)
    counts = Counter(point for _ in range(5000) for point in rubric.draw_points(rng, 5, 5))
    # each point in half of 5,000: standard deviation 35; 5 of them: a false alarm in 1.7 million
    assert all(abs(counts[point] - 2500) < 177 for point in rubric.CLAIMS)
