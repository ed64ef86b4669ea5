"""GEPA over the instruction of femtune's prompt (Agrawal et al. 2025, arXiv 2507.19457).

The search is GEPA's: a model reads answers and what was wrong with them, and rewrites the instruction;
a new one is kept if it is better on them. Prompt, parser and reward are those of the run, and the base
is the reflecting model too. A small base writes no useful instruction: then the first one stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from femtune.comparison.prompt_search import PromptSearch
from femtune.data.prompts import Prompts, prompt_text
from femtune.evaluation.evaluate import is_right
from femtune.types import Draw, Problem

log = logging.getLogger("femtune")

PART = "instruction"  # the one text that is searched for
MINIBATCH = 3  # answers that are reflected on: GEPA's default


def search_instruction(search: PromptSearch, prompts: Prompts, seed: int) -> tuple[str, int]:
    """Return the instruction that GEPA's search chooses, and the number of instructions it kept."""
    import gepa

    # of one iteration: old and new answers to a minibatch, the reflection, and the new one's full score
    dearest = 2 * MINIBATCH + 1 + len(search.choosing)

    def stops(state: Any) -> bool:
        return search.error is not None or search.exhausted or search.left() < dearest

    log.info(
        "GEPA rewrites the instruction by %d problems, with at most %d requests.",
        *(len(search.choosing), search.left()),
    )
    found = gepa.optimize(
        {PART: prompts.instruction},
        trainset=[*search.train],
        valset=[*search.choosing],
        adapter=Adapter(search),
        reflection_lm=lambda prompt: search.write(prompt),
        reflection_minibatch_size=MINIBATCH,
        stop_callbacks=stops,
        max_metric_calls=search.left(),  # known answers too: without it, what is repeated never ends
        logger=_Logger(),
        seed=seed,
    )
    return found.best_candidate[PART], found.num_candidates


class Adapter:
    """Evaluates instructions for GEPA: a GEPAAdapter over femtune's prompt, parser and reward."""

    propose_new_texts = None  # GEPA's own proposal

    def __init__(self, search: PromptSearch) -> None:
        self.search = search

    def evaluate(
        self, batch: list[Problem], candidate: dict[str, str], capture_traces: bool = False
    ) -> Any:
        """Return the answers under a candidate's instruction, with 1 for each right one."""
        from gepa.core.adapter import EvaluationBatch

        draws = self.search.answer_instructed(batch, candidate[PART])
        outputs: Sequence[Draw | None] = draws if draws is not None else [None] * len(batch)
        scores = [float(draw is not None and is_right(draw)) for draw in outputs]
        traces = [*zip(batch, outputs, strict=True)]
        return EvaluationBatch([*outputs], scores, traces if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return what the reflecting model reads: each problem, its answer, and feedback in words."""
        records = [
            {
                "Inputs": prompt_text(problem.prompt),
                "Generated Outputs": draw.completion.text if draw else "",
                "Feedback": feedback(problem, draw),
            }
            for problem, draw in eval_batch.trajectories
        ]
        return {PART: records}


def feedback(problem: Problem, draw: Draw | None) -> str:
    """Say in words what was answered, and what is correct."""
    correct = f"The correct answer is {problem.answer}."
    if draw is None:
        return f"This was not answered: the prompt was too long. {correct}"
    if is_right(draw):
        return f"The answer {draw.score.answer} is correct."
    if draw.score.reason == "truncated":
        return f"The response was truncated before it gave an answer: it was too long. {correct}"
    if draw.score.reason == "wrong":
        return f"The answer {draw.score.answer} is wrong. {correct}"
    why = f" ({draw.score.detail})" if draw.score.detail else ""
    return f"No answer could be read from the response{why}. {correct}"


class _Logger:
    """Passes GEPA's messages to femtune's log, at the level of debugging."""

    def log(self, message: str) -> None:
        log.debug("GEPA: %s", message)
