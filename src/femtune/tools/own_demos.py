"""Worked examples from the model itself, chosen among the kept draws of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from femtune.errors import RunError
from femtune.runs.draws import read_draws
from femtune.tools.stored_run import open_stored
from femtune.types import Demo, Demos, Draw, Problem


def own_demos(root: Path, number: int = 4, iteration: int | None = None) -> Demos:
    """Choose worked examples from the kept draws of a run's iteration, by default the last one.

    They have right answers, are short, and differ in their answers. Raises RunError if the run has no
    draws, or kept none.
    """
    stored = open_stored(root, iteration)
    draws = (draw for chunk, _ in read_draws(stored.draws) for draw in chunk)
    chosen = choose(draws, number)
    if not chosen:
        raise RunError(f"{root} kept no draw in iteration {stored.iteration}: choose another one.")
    return tuple(_demo(draw, stored.problems[draw.key.problem_id]) for draw in chosen)


def choose(draws: Iterable[Draw], number: int) -> list[Draw]:
    """Return at most `number` kept draws, one for each problem: answers in turn, short ones first.

    Plain draws precede hinted ones, which may follow the hint and not the problem.
    """
    kept: dict[str, Draw] = {}
    for draw in draws:
        if draw.accepted and not draw.completion.num_forced:
            best = kept.get(draw.key.problem_id)
            if best is None or _cost(draw) < _cost(best):
                kept[draw.key.problem_id] = draw
    seen: dict[str, int] = {}
    ranked = []
    for draw in sorted(kept.values(), key=_cost):
        turn = seen[draw.score.answer] = seen.get(draw.score.answer, -1) + 1
        ranked.append((turn, _cost(draw), draw))
    return [draw for _, _, draw in sorted(ranked, key=lambda each: each[:2])[:number]]


def _cost(draw: Draw) -> tuple[bool, int, str]:
    return draw.prompt_kind == "hinted", draw.completion.num_tokens, draw.key.problem_id


def _demo(draw: Draw, problem: Problem) -> Demo:
    return Demo(problem.prompt, problem.answer, draw.completion.text.strip())
