"""BootstrapFewShotWithRandomSearch of DSPy over femtune's prompt.

Khattab et al. 2023, arXiv 2310.03714. The search is DSPy's: it bootstraps sets of right answers and
compares them. Its program has one predictor, which asks femtune's engine instead of a model of DSPy's:
prompt, parser and reward are those of the run. All answers are greedy, so the base answers a problem
once under a set, however often DSPy asks for it.
"""

from __future__ import annotations

import logging
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

from femtune.comparison.prompt_search import PromptSearch
from femtune.evaluation.evaluate import is_right
from femtune.types import Demo, Demos

log = logging.getLogger("femtune")

MOST_SETS = 16  # random ones: DSPy's default


def num_random_sets(requests: int, num_train: int, num_choosing: int) -> int:
    """Return how many random sets the budget pays for, beside no examples and the first right answers.

    >>> num_random_sets(600, 100, 100)
    3
    """
    return max(0, min(MOST_SETS, (requests - num_train) // num_choosing - 2))


def search_examples(search: PromptSearch, num_examples: int) -> tuple[Demos, int]:
    """Return the examples that DSPy's search chooses, and the number of programs it compared."""
    import dspy

    num_sets = num_random_sets(search.left(), len(search.train), len(search.choosing))
    log.info(
        "DSPy compares %d sets of examples by %d problems, with at most %d requests.",
        *(num_sets + 1, len(search.choosing), search.left()),
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=lambda example, prediction, trace=None: prediction.right,
            max_bootstrapped_demos=num_examples,
            max_labeled_demos=0,  # they are answers without a rationale
            num_candidate_programs=num_sets,
            num_threads=1,  # the answers come in batches
            max_errors=1,
        )
        program = optimizer.compile(
            _program(search),
            trainset=[dspy.Example(problem=each.id).with_inputs("problem") for each in search.train],
            valset=[dspy.Example(problem=each.id).with_inputs("problem") for each in search.choosing],
        )
    return _demos(program.predictors()[0], search), len(program.candidate_programs)


def _demos(predictor: Any, search: PromptSearch) -> Demos:
    """Return the worked examples of a predictor."""
    by_id = {problem.id: problem for problem in search.train}
    shown = [(by_id[each.problem], each.completion) for each in predictor.demos]
    return tuple(Demo(problem.prompt, problem.answer, text) for problem, text in shown)


def _program(search: PromptSearch) -> Any:
    """Return a program of DSPy's that answers a problem, named by its id, as femtune does."""
    import dspy

    chosen_by = {problem.id for problem in search.choosing}

    class Answer(dspy.Predict):  # type: ignore[misc]  # DSPy is not there when types are checked
        """Answers a problem under femtune's prompt with this predictor's examples."""

        def forward(self, **inputs: Any) -> Any:
            name = inputs["problem"]
            # a set answers its whole part: asked at once, so that it fills the engine's batches
            part = search.choosing if name in chosen_by else search.train
            draws = search.answer(part, _demos(self, search)) or []
            draw = next((each for each in draws if each.key.problem_id == name), None)
            text = draw.completion.text.strip() if draw else ""
            made = dspy.Prediction(completion=text, right=draw is not None and is_right(draw))
            if dspy.settings.trace is not None:
                dspy.settings.trace.append((self, inputs, made))
            return made

    class Program(dspy.Module):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            super().__init__()
            self.answer = Answer("problem -> completion")

        def forward(self, problem: str) -> Any:
            return self.answer(problem=problem)

    return Program()
