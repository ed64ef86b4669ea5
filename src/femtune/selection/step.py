"""The M-step that chooses worked examples: kept draws in, a model folder of examples out.

    iteration-002/model/femtune.json      the prompts, the examples, and the base by its hash
    iteration-002/model/examples.jsonl    the examples, as `--demos` reads them
    iteration-002/model/m_step.json       what was chosen by which numbers, and what it cost

theta_k is the base with the k-th set of examples in its prompts. The M-step of weights maximizes the
likelihood of the kept draws; this one the accuracy on problems that it may look at, over sets of kept
draws. The new set must be more right than the current one on development problems that chose nothing, by
a one-sided paired test at 5%; else the current one stays.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from femtune._util.atomic_files import replacing
from femtune.data.chat_tokenizer import fit_prompts
from femtune.data.demos import read_demos, save_demos
from femtune.data.prompts import Prompts, prompt_text
from femtune.data.tasks.labels import label_of
from femtune.errors import ModelError, RunError
from femtune.estep.forced_answers import FORCED_TOKENS, Force
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import ScoredDraws
from femtune.evaluation.evaluate import group_of
from femtune.evaluation.paired import PairedDifference, paired_difference
from femtune.metric_types import MStepMetrics
from femtune.model_info import ModelInfo, write_info
from femtune.runs.draws import by_problem, drawn, write_draws
from femtune.runs.run import Run
from femtune.schemes.filters import weigh
from femtune.selection.answers import DevelopmentAnswers, Selection
from femtune.selection.search import Found, Pool, search
from femtune.types import Demo, Demos, Draw, Problem, Sampling, Scheme, Tokenizer

log = logging.getLogger("femtune")

FILE = "examples.jsonl"  # in a model's folder
ALPHA = 0.05  # of the one-sided test by which a new set must be better


class Progress(Protocol):
    """The receiver of progress: what this M-step has of `loop.Progress`."""

    def draws(self, draws: Sequence[Draw], /) -> None:
        """Report graded draws."""


class Asked(Protocol):
    """The settings of an evaluation: what this M-step has of `loop.Evaluation`."""

    @property
    def temperature(self) -> float: ...


class Settings(Protocol):
    """The settings of a run: what this M-step has of `loop.LoopConfig`."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def selection(self) -> Selection | None: ...
    @property
    def demos(self) -> Demos: ...
    @property
    def force(self) -> str: ...
    @property
    def evaluation(self) -> Asked: ...


class ExampleRun(Protocol):
    """A run whose M-steps choose examples: what `loop.Steps` has of it."""

    @property
    def config(self) -> Settings: ...

    @property
    def run(self) -> Run: ...
    @property
    def base(self) -> Path: ...
    @property
    def problems(self) -> Sequence[Problem]: ...
    @property
    def dev_problems(self) -> Sequence[Problem]: ...
    @property
    def eval_problems(self) -> Sequence[Problem]: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def info(self) -> ModelInfo | None: ...
    def place(
        self, iteration: int, kind: str, problems: Sequence[Problem], weights: Path, /
    ) -> Callable[[int], Path]: ...


@dataclass(frozen=True)
class Choice:
    """The examples after an M-step, and why."""

    demos: Demos
    replaced: bool
    why: str
    found: Found | None = None
    difference: PairedDifference | None = None  # of the winner less the current, on problems to confirm


def examples_of(steps: ExampleRun, iteration: int) -> Demos:
    """Return the examples of theta_k; for k = 0 those that the run began with. Raises RunError."""
    if not iteration:
        return steps.config.demos or steps.sampler.prompts.demos
    return read_examples(steps.run, iteration)


def read_examples(run: Run, iteration: int) -> Demos:
    """Return the examples that the M-step of an iteration has left in the prompts. Raises RunError."""
    model = run.iteration(iteration) / "model"
    if not (model / FILE).exists():
        raise RunError(f"{model / FILE} is missing: put it back, or start in another --output-dir.")
    run.verify(model)
    return read_demos(model / FILE)


def sampler_of(steps: ExampleRun, iteration: int) -> Sampler:
    """Return the sampler of theta_k: with its examples in the prompts, if M-steps choose them."""
    if not iteration or steps.config.selection is None:
        return steps.sampler
    return replace(steps.sampler, prompts=_shown(steps, examples_of(steps, iteration)))


def _shown(steps: ExampleRun, demos: Demos) -> Prompts:
    return with_examples(steps.sampler.prompts, demos, tokenizer_of(steps))


def tokenizer_of(steps: ExampleRun) -> Tokenizer | None:
    """Return the tokenizer of prompts, None where a server takes messages."""
    return None if steps.sampler.text_only else steps.tokenizer


def _serve(steps: ExampleRun, iteration: int) -> None:
    """Load the base, as for draws that are not stored: nothing is stored under this name."""
    steps.place(iteration, "selection/base", steps.dev_problems, steps.base)


def with_examples(prompts: Prompts, demos: Demos, tokenizer: Tokenizer | None) -> Prompts:
    """Return prompts with these examples, in a form that the chat template shows in full.

    No tokenizer is there where a server takes messages: it has the template.
    """
    shown = prompts.with_demos(demos)
    return shown if tokenizer is None else fit_prompts(shown, tokenizer)


def choose_examples(steps: ExampleRun, iteration: int) -> MStepMetrics:
    """Choose the examples of theta_k among the kept draws of its E-step, and store them as its model.

    The answers to the development part are stored too, so that its evaluation asks for nothing. Raises
    what the engine raises; what was paid for is stored.
    """
    run, folder = steps.run, steps.run.iteration(iteration) / "model"
    run.verify(folder)
    if not folder.exists():
        begun = time.perf_counter()
        scheme, limits = steps.config.scheme, steps.config.selection
        assert limits is not None  # else the M-step is one of weights
        current = examples_of(steps, iteration - 1)
        force: Force = "never" if steps.config.force == "never" else "all"
        pool, left_out = candidates(steps, iteration, scheme, current)
        sampler = replace(
            steps.sampler,
            prompts=_shown(steps, pool.candidates).with_demos(()),
            sampling=Sampling(steps.sampler.sampling.max_new_tokens, 0.0),
            demos=(),
            force=force,
        )
        answers = DevelopmentAnswers(
            *(run, iteration, steps.dev_problems, sampler, limits),
            serve=lambda: _serve(steps, iteration),
            on_draws=steps.progress.draws,
        )
        _announce(pool, left_out, limits, answers)
        choice = choose(pool, current, limits, answers, f"{sampler.seed} {iteration}")
        log.info("M-step: %s.", choice.why)
        _store_development(steps, iteration, choice.demos, answers)
        if not choice.replaced:
            _store_unchanged(steps, iteration)
        metrics = _metrics(choice, pool, answers, time.perf_counter() - begun)
        with replacing(folder) as part:
            part.mkdir()
            save_demos(part / FILE, choice.demos)
            (part / "m_step.json").write_text(json.dumps(metrics, indent=2) + "\n")
            if steps.info is not None:
                own = tuple(asdict(demo) for demo in choice.demos)
                write_info(part, replace(steps.info, m_step="examples", demos=own))
        run.record(folder)
    stored: MStepMetrics = json.loads((folder / "m_step.json").read_text())
    return stored


def choose(
    pool: Pool, current: Demos, limits: Selection, answers: DevelopmentAnswers, seed: str
) -> Choice:
    """Search for a set of examples, and keep the current one unless the winner is better than it."""
    if not pool.candidates:
        return Choice(current, False, "no kept draw can be an example: the current examples stay")
    everything = [*answers.comparing, *answers.confirming]
    if not answers.ask([current], everything, reserved=len(answers.confirming)):
        return Choice(current, False, "the budget pays for no comparison: the current examples stay")
    answers.reserved = len(answers.confirming)
    found = search(pool, current, limits.num_examples, answers, seed)
    answers.reserved = 0
    if found.demos == current:
        why = f"none of {found.num_sets} sets is more right: the current examples stay"
        return Choice(current, False, why, found)
    if not answers.ask([found.demos], answers.confirming):  # their prompts are longer than any before
        why = "the budget does not pay for confirming the best set: the current examples stay"
        return Choice(current, False, why, found)
    gain = paired_difference(
        answers.are_right(found.demos, answers.confirming),
        answers.are_right(current, answers.confirming),
        [group_of(problem) for problem in answers.confirming],
    )
    said = f"on {gain.num_items} problems that chose nothing, {100 * gain.difference:+.1f} points"
    if gain.difference > 0 and gain.p_value < 2 * ALPHA:  # the p-value is two-sided
        best = f"the best of {found.num_sets} sets replaces the current examples"
        return Choice(found.demos, True, f"{best}: {said}", found, gain)
    best = f"the best of {found.num_sets} sets is not better by more than chance"
    return Choice(current, False, f"{best} ({said}): the current examples stay", found, gain)


# --- candidates


def candidates(
    steps: ExampleRun, iteration: int, scheme: Scheme, current: Demos
) -> tuple[Pool, dict[str, int]]:
    """Return the candidates, kept draws and current examples; and what was left out, by reason."""
    sampler = steps.sampler
    problems = [label_of(each, iteration, sampler.seed) for each in steps.problems]
    by_id = {problem.id: problem for problem in problems}
    left_out: Counter[str] = Counter()
    made: dict[Any, Demo] = {}
    for draws in ScoredDraws(steps.run, iteration, problems, scheme, sampler_of(steps, iteration - 1)):
        for problem_id, own in by_problem(draws):
            for example in weigh(scheme.weigh, own):
                if example.weight <= 0:
                    left_out["trained away from"] += 1
                elif example.draw.completion.num_forced:
                    left_out["answers that were forced"] += 1
                else:
                    problem, text = by_id[problem_id], example.draw.completion.text.strip()
                    made.setdefault((problem_id, text), Demo(problem.prompt, problem.answer, text))
    found = [*made.values()]
    found += [demo for demo in current if demo not in found]
    shown = _in_one_form(found, sampler.prompts, tokenizer_of(steps))
    if len(shown) < len(found):
        left_out["not shown in full by the chat template"] += len(found) - len(shown)
    longest = longest_of([*steps.problems, *steps.dev_problems, *steps.eval_problems])
    return Pool(tuple(shown), fits_context(longest, sampler, tokenizer_of(steps))), dict(left_out)


def _in_one_form(
    candidates: Sequence[Demo], prompts: Prompts, tokenizer: Tokenizer | None
) -> list[Demo]:
    """Return the candidates that the chat template shows in the form that most of them need."""
    by_form: dict[tuple[str, str], list[Demo]] = {}
    for demo in candidates:
        try:
            fitted = with_examples(prompts, (demo,), tokenizer)
        except ModelError:
            continue
        by_form.setdefault((fitted.system_as, fitted.demos_as), []).append(demo)
    return max(by_form.values(), key=len, default=[])


def longest_of(problems: Sequence[Problem]) -> Problem:
    """Return the problem with the longest prompt."""
    return max(problems, key=lambda problem: len(prompt_text(problem.prompt)))


def fits_context(
    problem: Problem, sampler: Sampler, tokenizer: Tokenizer | None
) -> Callable[[Demos], bool]:
    """Return whether a set of examples leaves room for the longest problem, its hint and its answer."""

    def fits(demos: Demos) -> bool:
        if sampler.context is None or tokenizer is None:
            return True
        shown = with_examples(sampler.prompts, demos, tokenizer)
        prompt = tokenizer.encode_prompt(shown.hinted(problem))
        return len(prompt) + sampler.sampling.max_new_tokens + FORCED_TOKENS <= sampler.context

    return fits


# --- what is stored and said


def _announce(
    pool: Pool, left_out: dict[str, int], limits: Selection, answers: DevelopmentAnswers
) -> None:
    """Log what is chosen from, by what, and what it may cost."""
    tokens = "" if limits.tokens is None else f" and {limits.tokens:,} tokens"
    log.info(
        "M-step: %d of %d candidates are chosen as examples, by %d development problems, with at most "
        "%d requests%s.",
        *(min(limits.num_examples, len(pool.candidates)), len(pool.candidates)),
        *(len(answers.comparing) + len(answers.confirming), limits.requests, tokens),
    )
    for why, num in left_out.items():
        log.info("M-step: %d kept draws are no candidates: %s.", num, why)


def _store_development(
    steps: ExampleRun, iteration: int, demos: Demos, answers: DevelopmentAnswers
) -> None:
    """Store the chosen set's answers to the development part, where its evaluation looks for them."""
    size = steps.sampler.chunk_size
    try:
        draws = answers.draws(demos, steps.dev_problems)
    except KeyError:  # the budget did not pay for all of them
        return
    for index, begin in enumerate(range(0, len(draws), size)):
        _store(steps.run, steps.run.shard(iteration, "dev", index), draws[begin : begin + size])


def _store_unchanged(steps: ExampleRun, iteration: int) -> None:
    """Store the last evaluation again, as the same prompts have the same greedy answers."""
    with_demos = iteration == 1 and steps.config.demos
    before = steps.run.iteration(iteration - 1) / ("eval_demos" if with_demos else "eval")
    if steps.config.evaluation.temperature or not before.is_dir():
        return
    steps.run.verify(before)
    for index, draws in enumerate(drawn(before)):
        _store(steps.run, steps.run.shard(iteration, "eval", index), draws)


def _store(run: Run, path: Path, draws: Sequence[Draw]) -> None:
    if not path.exists():
        write_draws(path, draws, {"engine_s": 0.0, "total_s": 0.0})
        run.record(path)


def _metrics(choice: Choice, pool: Pool, answers: DevelopmentAnswers, seconds: float) -> MStepMetrics:
    spent, found, gain = answers.spent, choice.found, choice.difference
    made: MStepMetrics = {
        "num_examples": len(choice.demos),
        "num_candidates": len(pool.candidates),
        "replaced": choice.replaced,
        "why": choice.why,
        "num_requests": spent.requests,
        "prompt_tokens": spent.prompt_tokens,
        "generated_tokens": spent.generated_tokens,
        "seconds": round(max(seconds, answers.seconds), 3),
    }
    if found is not None:
        made |= {"num_sets": found.num_sets, "num_swaps": found.num_swaps}
    if gain is not None:
        made |= {"gain": gain.difference, "gain_ci": [gain.low, gain.high], "gain_p_value": gain.p_value}
    return made
