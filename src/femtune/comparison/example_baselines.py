"""Baselines that show worked examples which no accuracy chose: random ones, and similar ones.

    random-examples    random sets of the base's own right answers, each answer in turn; the mean over
                       four sets
    similar-examples   for each held-out problem the right answers to the problems most like it, by BM25
                       of their words; the most similar one last

Candidates are the kept draws of one E-step by `rejection:4`, as for `train --m-step examples`. Both have
the development part to draw from too, since they choose nothing by it.

    iteration-001/draws/      the E-step
    iteration-001/answers/    held-out answers, by set of examples; the index of a draw names its set
    iteration-001/eval/       the same, by problem
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from femtune._util.extras import check_extra
from femtune.comparison.baseline_draws import NO_TIME, Baseline
from femtune.data.prompts import prompt_text
from femtune.errors import NothingKept
from femtune.estep.scheduler import Lease, Sampler
from femtune.estep.together import work_off_together
from femtune.evaluation.evaluate import evaluation_metrics
from femtune.loop import Steps
from femtune.metric_types import EvaluationMetrics, IterationMetrics
from femtune.runs.draws import drawn, read_draws, write_draws
from femtune.schemes.filters import paper_filter
from femtune.schemes.named import AUTO_EXAMPLES
from femtune.selection.search import Pool
from femtune.selection.step import candidates, tokenizer_of, with_examples
from femtune.types import Demos, Problem, Sampling, Scheme, Stage

EXAMPLE_BASELINES = ("random-examples", "similar-examples")
SCHEME = AUTO_EXAMPLES
RANDOM_SETS = 4  # whose mean is the accuracy of random examples
TOGETHER = 128  # sets that are asked under at once: each holds its prompts in memory

Asked = tuple[Demos, Sequence[Problem]]


def check_examples(name: str) -> None:
    """Refuse a baseline whose library is missing. Raises ConfigError."""
    if name == "similar-examples":
        check_extra("baseline similar-examples", "bm25s")


def run_examples(steps: Steps, settings: Baseline) -> IterationMetrics:
    """Draw candidates, and answer the held-out problems with random or similar ones in the prompt.

    Raises NothingKept if no draw is kept.
    """
    e_step = steps.e_step(1)
    pool, _ = candidates(steps, 1, steps.config.scheme, ())
    if not pool.candidates:
        raise NothingKept("no kept draw can be a worked example: their answers were forced.")
    num, test = settings.num_examples, steps.eval_problems
    sets: list[Asked] = (
        [(each, test) for each in random_sets(pool, num, settings.seed)]
        if settings.scheme == "random-examples"
        else [
            (each, [problem]) for problem, each in zip(test, similar_sets(pool, num, test), strict=True)
        ]
    )
    return {
        "e_step": e_step,
        "evaluation": answer_held_out(steps, greedy(steps, pool.candidates), sets),
    }


def random_sets(pool: Pool, num: int, seed: int) -> list[Demos]:
    """Return sets of random candidates, each answer in turn."""
    rng = random.Random(f"random-examples {seed}")
    return [pool.some(num, rng) for _ in range(RANDOM_SETS)]


def similar_sets(pool: Pool, num: int, problems: Sequence[Problem]) -> Iterator[Demos]:
    """Yield for each problem the candidates most like it, the most similar one last.

    Similarity is BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework") of the words
    of the prompts, by the library bm25s. One candidate of each problem is shown, the shortest.
    """
    import bm25s

    shortest = sorted(pool.candidates, key=lambda demo: len(demo.completion), reverse=True)
    by_prompt = {prompt_text(demo.prompt): demo for demo in shortest}
    index = bm25s.BM25()
    index.index([words(prompt) for prompt in by_prompt], show_progress=False)
    demos = [*by_prompt.values()]
    for problem in problems:
        scores = index.get_scores(words(prompt_text(problem.prompt)))
        ranked = sorted(range(len(demos)), key=lambda place: (-scores[place], place))[:num]
        found = [demos[place] for place in reversed(ranked)]
        while found and not pool.fits(tuple(found)):
            del found[0]  # the least similar one
        yield tuple(found)


def words(text: str) -> list[str]:
    """Return the words of a text, in small letters.

    >>> words("What is 2 + 2?")
    ['what', 'is', '2', '2']
    """
    return re.findall(r"\w+", text.lower())


def answer_held_out(steps: Steps, sampler: Sampler, sets: Sequence[Asked]) -> EvaluationMetrics:
    """Draw an answer to each problem under its sets, store the draws by problem, and measure them."""
    _answer(steps, sampler, sets)
    by_id = {problem.id: problem for problem in steps.eval_problems}
    return evaluation_metrics(by_id, read_draws(steps.run.iteration(1) / "eval"))


def _answer(steps: Steps, sampler: Sampler, sets: Sequence[Asked]) -> None:
    run, stored = steps.run, steps.run.shard(1, "eval", 0)
    run.verify(stored)
    if stored.exists():
        return
    steps.progress.phase("evaluation", 1, sum(len(problems) for _, problems in sets))
    run.log("evaluation", iteration=1)
    for number, begin in enumerate(range(0, len(sets), TOGETHER)):
        place = run.shard(1, "answers", number)
        run.verify(place)
        if not place.exists():
            steps.place(1, "answers/base", steps.eval_problems, steps.base)  # loads the base
            some = enumerate(sets[begin : begin + TOGETHER])
            leases = [_lease(at, each, sampler) for at, each in some]
            work_off_together(leases, sampler, place, steps.progress.draws)
            run.record(place)
    draws = [draw for chunk in drawn(run.iteration(1) / "answers") for draw in chunk]
    order = {problem.id: place for place, problem in enumerate(steps.eval_problems)}
    draws.sort(key=lambda draw: (order[draw.key.problem_id], draw.key.index))
    write_draws(stored, draws, NO_TIME)
    run.record(stored)


def greedy(steps: Steps, demos: Demos) -> Sampler:
    """Return a sampler for greedy answers, whose prompts can show these worked examples."""
    shown = with_examples(steps.sampler.prompts, demos, tokenizer_of(steps))
    return replace(
        steps.sampler,
        prompts=shown.with_demos(()),
        sampling=Sampling(steps.sampler.sampling.max_new_tokens, 0.0),
        demos=(),
        force="never" if steps.config.force == "never" else "all",
    )


def _lease(number: int, asked: Asked, sampler: Sampler) -> Lease:
    demos, problems = asked
    scheme = Scheme("evaluate", (Stage("plain", ask="all"),), weigh=paper_filter)
    return Lease(number, problems, scheme, sampler.sampling, 1, demos=demos, force=sampler.force)
