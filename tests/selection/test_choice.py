"""The M-step that chooses examples, in a whole run on a model whose need of them is known."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.problems import GROUP
from femtune.data.truncation import Cut
from femtune.engines.fake import ByteTokenizer, FakeEngine
from femtune.errors import RunError
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.runs.run import Run
from femtune.schemes.named import rejection
from femtune.selection.answers import DevelopmentAnswers, Selection, halves
from femtune.selection.search import Pool
from femtune.selection.step import choose, read_examples, with_examples
from femtune.types import Demo, Problem, Sampling

from ..oracle import PROMPTS, sampler

ITEMS = [f"Item {number:02}" for number in range(100)]
PROBLEMS = [Problem(item, item, random.Random(item).choice("xy")) for item in ITEMS]
TRAIN, DEV, TEST = PROBLEMS[:40], PROBLEMS[40:70], PROBLEMS[70:]
HARDNESS = dict(zip(ITEMS, random.Random(1).sample(range(100), 100), strict=True))
BY_PROMPT = {problem.prompt: problem for problem in PROBLEMS}
LIMITS = Selection(num_examples=2, requests=180)


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@dataclass
class Fuse(Quiet):
    """Ends the run at event number `left` from now."""

    left: float = float("inf")

    def burn(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def phase(self, name: str, iteration: int, total: int) -> None:
        self.burn()

    def draws(self, draws: Any) -> None:
        self.burn()


class Learner(FakeEngine):
    """Right on 30 of 100 items, and on 30 more for each clear example in the prompt.

    Half of what it samples is clear, by the seed; what it writes greedily is vague.
    """

    def __init__(self, help_of_each: int = 30) -> None:
        super().__init__(self.reply, room=3)
        self.help_of_each = help_of_each

    def reply(self, prompt: str, seed: int) -> str:
        problem = BY_PROMPT[re.findall(r"Item \d\d", prompt)[-1]]
        is_right = HARDNESS[problem.id] < 30 + self.help_of_each * prompt.count("clear")
        answer = problem.answer if is_right else {"x": "y", "y": "x"}[problem.answer]
        return f"{'clear' if seed % 2 else 'vague'} reason\nAnswer: {answer}"


def steps(root: Path, engine: FakeEngine, progress: Quiet, **changes: Any) -> Steps:
    """A run of one iteration, as a new process would begin or resume it."""
    plan = LoopConfig(
        scheme=rejection(2),
        training=Training(),
        evaluation=Evaluation(),
        iterations=1,
        selection=LIMITS,
        force="never",
    )
    base = root.parent / "base"
    for folder in (base, root):
        folder.mkdir(exist_ok=True)
    return Steps(
        run=Run(root),
        base=base,
        problems=TRAIN,
        eval_problems=TEST,
        dev_problems=DEV,
        config=replace(plan, **changes),
        sampler=replace(sampler(engine, seed=7, chunk_size=8), sampling=Sampling(64)),
        tokenizer=ByteTokenizer(),
        progress=progress,
    )


@dataclass(frozen=True)
class Whole:
    root: Path
    history: list[dict[str, Any]]
    asked: list[Any] = field(repr=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole") / "run"
    made = steps(root, engine := Learner(), Quiet(), iterations=2)
    return Whole(root, made.iterate(), engine.asked)


def test_the_set_that_helps_is_chosen_and_stands_in_the_prompts(whole: Whole) -> None:
    m_step = whole.history[1]["m_step"]
    chosen = read_examples(Run(whole.root), 1)
    assert m_step["replaced"] and m_step["num_examples"] == len(chosen) == 2
    # 90 of 100 are right with two clear examples, 30 without any
    assert all(demo.completion.startswith("clear") for demo in chosen)
    for part, problems in (("evaluation", TEST), ("development", DEV)):
        right = sum(HARDNESS[problem.id] < 90 for problem in problems)
        assert whole.history[1][part]["accuracy"] == pytest.approx(right / len(problems))
    assert {demo.answer for demo in chosen} == {"x", "y"}


def test_the_budget_is_kept_and_the_development_part_is_asked_by_the_search_alone(whole: Whole) -> None:
    for iteration in (1, 2):
        own = [r for r in whole.asked if r.key.iteration == iteration]
        of_dev = [r for r in own if r.key.problem_id in {problem.id for problem in DEV}]
        m_step = whole.history[iteration]["m_step"]
        assert len(of_dev) == m_step["num_requests"] <= LIMITS.requests
        assert m_step["prompt_tokens"] == sum(len(r.tokens) for r in of_dev)


def test_no_prompt_of_the_development_part_is_asked_twice(whole: Whole) -> None:
    asked = [r.tokens for r in whole.asked if r.key.problem_id in {problem.id for problem in DEV}]
    assert max(Counter(asked).values()) == 1  # the second iteration's current set is the first's choice


def test_the_next_e_step_draws_under_the_examples_without_the_problems_own(whole: Whole) -> None:
    chosen = read_examples(Run(whole.root), 1)
    texts = {demo.prompt: demo.completion for demo in chosen}
    drawn = [r for r in whole.asked if r.key.iteration == 2 and BY_PROMPT[r.key.problem_id] in TRAIN]
    assert {r.key.problem_id for r in drawn} == {problem.id for problem in TRAIN}
    for request in drawn:
        shown = ByteTokenizer().decode(request.tokens)
        others = [prompt for prompt in texts if prompt != request.key.problem_id]
        assert [prompt for prompt in texts if f"{prompt}\n\n{texts[prompt]}" in shown] == others


@pytest.mark.parametrize("left", [*range(0, 14, 2), *range(20, 100, 9)])
def test_a_run_that_is_killed_chooses_the_same_and_pays_for_nothing_twice(
    left: int, tmp_path: Path, whole: Whole
) -> None:
    root, first = tmp_path / "run", Learner()
    with pytest.raises(Killed):
        steps(root, first, Fuse(left=left)).iterate()
    steps(root, second := Learner(), Quiet()).iterate()
    for name in ("examples.jsonl", "femtune.json"):
        one, other = (each / "iteration-001" / "model" / name for each in (root, whole.root))
        assert one.exists() == other.exists() and (
            not one.exists() or one.read_bytes() == other.read_bytes()
        )
    alone = [(r.key.problem_id, r.tokens, r.seed) for r in whole.asked if r.key.iteration < 2]
    asked = [(r.key.problem_id, r.tokens, r.seed) for r in (*first.asked, *second.asked)]
    # what was in the engine's three places when it was killed is asked again
    assert {*asked} == {*alone} and len(asked) <= len(alone) + 3


def test_examples_that_do_not_help_are_not_taken_and_nothing_is_measured_again(tmp_path: Path) -> None:
    made = steps(tmp_path / "run", engine := Learner(help_of_each=0), Quiet())
    history = made.iterate()
    m_step = history[1]["m_step"]
    assert not m_step["replaced"] and m_step["num_examples"] == 0
    assert "the current examples stay" in m_step["why"]
    assert history[1]["evaluation"]["accuracy"] == history[0]["evaluation"]["accuracy"]
    of_test = [r for r in engine.asked if r.key.problem_id in {problem.id for problem in TEST}]
    assert len(of_test) == len(TEST)


def test_examples_that_the_run_began_with_stay_where_they_are_better(tmp_path: Path) -> None:
    own = (Demo("Item 98", "x", "clear clear reason\nAnswer: x"),)
    history = steps(tmp_path / "run", Learner(), Quiet(), demos=own).iterate()
    chosen = read_examples(Run(tmp_path / "run"), 1)
    assert history[1]["m_step"]["num_examples"] == len(chosen)
    if not history[1]["m_step"]["replaced"]:
        assert chosen == own
    assert history[1]["evaluation"]["accuracy"] >= history[0]["evaluation_demos"]["accuracy"]


def test_a_missing_model_is_refused_rather_than_read_as_no_examples(tmp_path: Path) -> None:
    root = tmp_path / "run"
    steps(root, Learner(), Quiet()).iterate()
    (root / "iteration-001" / "model" / "examples.jsonl").unlink()
    with pytest.raises(RunError, match=r"examples\.jsonl is missing"):
        read_examples(Run(root), 1)


# --- answers and their budget


def answers(root: Path, engine: FakeEngine, limits: Selection, **changes: Any) -> DevelopmentAnswers:
    root.mkdir(exist_ok=True)
    made = replace(sampler(engine, seed=7), sampling=Sampling(64, 0.0))
    return DevelopmentAnswers(Run(root), 1, DEV, replace(made, **changes), limits)


@settings(max_examples=15)
@given(st.integers(0, 3000), st.integers(10, 200))
def test_no_budget_of_tokens_or_requests_is_exceeded(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, requests: int
) -> None:
    limits = Selection(2, requests, 10 * tokens)
    engine = Learner()
    found = answers(tmp_path_factory.mktemp("run"), engine, limits)
    pool = Pool(tuple(Demo(p.prompt, p.answer, f"clear\nAnswer: {p.answer}") for p in TRAIN[:6]))
    choose(pool, (), limits, found, "0")
    prompts = sum(len(request.tokens) for request in engine.asked)
    written = sum(len(draw.completion.tokens) for draw in found._known.values())
    assert len(engine.asked) == found.spent.requests <= requests
    assert prompts + written == found.spent.tokens <= 10 * tokens


def test_a_forced_answer_counts_twice(tmp_path: Path) -> None:
    class Silent(Learner):
        def reply(self, prompt: str, seed: int) -> str:
            return "x" if prompt.endswith("Answer:") else "no answer"

    cut = Cut(PROMPTS.format, ByteTokenizer())
    found = answers(tmp_path / "run", engine := Silent(), Selection(2, 100), force="all", cut=cut)
    assert found.ask([()], DEV[:5])
    assert found.spent.requests == len(engine.asked) == 10


def test_what_a_process_asked_before_is_counted_as_it_was(tmp_path: Path) -> None:
    first = answers(tmp_path / "run", Learner(), Selection(2, 100))
    assert first.ask([()], DEV[:5]) and first.ask([()], DEV)
    second = answers(tmp_path / "run", engine := Learner(), Selection(2, 100))
    assert second.ask([()], DEV[:5]) and second.spent.requests == 5
    assert second.ask([()], DEV) and second.spent == first.spent and engine.asked == []


def test_the_halves_part_no_group_and_are_the_same_in_any_order() -> None:
    grouped = [replace(p, columns={GROUP: f"post {n // 3}"}) for n, p in enumerate(PROBLEMS)]
    comparing, confirming = halves(grouped, 0)
    assert abs(len(comparing) - len(confirming)) <= 3
    assert {p.columns[GROUP] for p in comparing}.isdisjoint({p.columns[GROUP] for p in confirming})
    assert halves(grouped[::-1], 0) != halves(grouped, 1)
    assert [{p.id for p in side} for side in halves(grouped[::-1], 0)] == [
        {p.id for p in side} for side in (comparing, confirming)
    ]


def test_an_example_is_not_shown_to_its_own_problem() -> None:
    own = Demo("Item 03", "x", "clear reason\nAnswer: x")
    other = Demo("Item 04", "y", "vague reason\nAnswer: y")
    prompts = with_examples(sampler(Learner()).prompts, (own, other), ByteTokenizer())
    shown = [message["content"] for message in prompts.plain(BY_PROMPT["Item 03"])]
    assert shown == ["Item 04", other.completion, "Item 03"]
