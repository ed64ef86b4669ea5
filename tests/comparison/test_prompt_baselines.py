"""Baselines by the searches of DSPy and GEPA, which are skipped where these are not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from femtune.comparison.baseline_draws import Baseline
from femtune.comparison.baselines import chosen
from femtune.comparison.gepa_search import feedback
from femtune.comparison.prompt_baselines import run_prompt_search
from femtune.config import Train
from femtune.errors import ConfigError
from femtune.reporting.terminal import Quiet
from femtune.schemes.named import rejection
from femtune.types import Completion, Draw, DrawKey, Problem, Score

from ..selection.test_choice import TEST, Learner, steps

NEEDS = {"dspy-examples": "dspy", "gepa-instruction": "gepa"}
GOOD = "Be clear, and clear again."


class Rewriter(Learner):
    """Writes clear answers, each of which helps as an example, and a good instruction where asked."""

    def reply(self, prompt: str, seed: int) -> str:
        if "write a new instruction" in prompt:
            return f"```\n{GOOD}\n```"
        return super().reply(prompt, 1)


@pytest.mark.parametrize("name", NEEDS)
def test_a_search_finds_a_better_prompt_within_its_budget(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[name], reason="needs femtune[compare-prompts]")
    settings = Baseline(scheme=name, num_examples=2, selection_requests=120)
    plan: dict[str, Any] = {"selection": None, "scheme": rejection(4)}
    made = steps(tmp_path / "run", engine := Rewriter(), Quiet(), **plan)
    metrics = run_prompt_search(made, settings)
    assert metrics["m_step"]["num_requests"] == len(engine.asked) - len(TEST) <= 120
    assert metrics["evaluation"]["accuracy"] > 0.6  # 0.3 without examples or a clear instruction
    # a search that was killed before its result was stored pays for nothing twice
    (tmp_path / "run/iteration-001/prompt.json").unlink()
    again = steps(tmp_path / "run", engine := Rewriter(), Quiet(), **plan)
    resumed = run_prompt_search(again, settings)
    assert engine.asked == [] and resumed["evaluation"] == metrics["evaluation"]
    assert resumed["m_step"]["num_requests"] == metrics["m_step"]["num_requests"]


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("femtune._util.extras.find_spec", lambda name: None)
    settings = Train(task="judge", eval_data="held-out.jsonl")
    with pytest.raises(ConfigError, match=rf"{name} needs {NEEDS[name]}: .*femtune\[compare-prompts\]"):
        chosen([name], settings)


def test_feedback_says_what_was_answered_and_what_is_correct() -> None:
    def draw(score: Score) -> Draw:
        return Draw(DrawKey(1, "p", 0, 0), "plain", 0, Completion((), "", "stop", 0.0), score)

    problem = Problem("p", "2 + 2?", "4")
    assert feedback(problem, draw(Score(1.0, "4"))) == "The answer 4 is correct."
    wrong = feedback(problem, draw(Score(0.0, "5", "wrong")))
    assert wrong == "The answer 5 is wrong. The correct answer is 4."
    assert "truncated" in feedback(problem, draw(Score(0.0, "", "truncated")))
    assert "could be read" in feedback(problem, draw(Score(0.0, "", "parse_error")))
    assert "too long" in feedback(problem, None)
