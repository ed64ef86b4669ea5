"""A search for a prompt by another library: the base's answers under any prompt, within a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from femtune.comparison.example_baselines import greedy
from femtune.errors import ConfigError, FemtuneError
from femtune.estep.scheduler import Sampler
from femtune.loop import Steps
from femtune.selection.answers import DevelopmentAnswers, Selection, halves
from femtune.selection.limits import num_to_choose_by
from femtune.selection.step import fits_context, longest_of, tokenizer_of, with_examples
from femtune.types import Completion, Demos, Draw, Problem, Sampling, Score

REFLECTION_TOKENS = 512  # of an instruction that is written


@dataclass(kw_only=True)
class PromptSearch:
    """The training problems of a search in two parts, and the base's answers within its budget."""

    steps: Steps
    limits: Selection
    train: Sequence[Problem] = field(
        init=False
    )  # whose answers are worked examples, or are reflected on
    choosing: Sequence[Problem] = field(init=False)  # by which prompts are compared
    error: FemtuneError | None = None  # the libraries log errors and go on; a run must not
    exhausted: bool = False  # True after a request that the budget did not pay for

    def __post_init__(self) -> None:
        problems, seed = self.steps.problems, self.steps.sampler.seed
        num = num_to_choose_by(self.limits.requests, len(problems))
        if not num:
            raise ConfigError(f"a search of prompts needs 2 training problems, got {len(problems)}.")
        self.choosing, self.train = (part[:num] for part in halves(problems, seed))
        self._plain = replace(greedy(self.steps, ()), force="never")
        self._longest = longest_of([*problems, *self.steps.eval_problems])
        self.answers = DevelopmentAnswers(
            *(self.steps.run, 1, (), self._plain, self.limits),
            serve=lambda: _serve(self.steps),
            on_draws=self.steps.progress.draws,
        )

    def left(self) -> int:
        """Return how many requests the budget still pays for."""
        return self.limits.requests - self.answers.spent.requests

    def answer(self, problems: Sequence[Problem], demos: Demos = ()) -> list[Draw] | None:
        """Return answers with worked examples; None if they have no room or the budget ends."""
        prompts = with_examples(self._plain.prompts, demos, tokenizer_of(self.steps))
        return self._ask(problems, demos, replace(self._plain, prompts=prompts.with_demos(())))

    def answer_instructed(self, problems: Sequence[Problem], instruction: str) -> list[Draw] | None:
        """Return answers under an instruction; None if it leaves no room or the budget ends."""
        prompts = replace(self._plain.prompts, instruction=instruction)
        name = hashlib.blake2b(instruction.encode(), digest_size=8).hexdigest()
        own = [replace(each, id=f"{name} {each.id}") for each in problems]  # answers are known by id
        return self._ask(own, (), replace(self._plain, prompts=prompts))

    def write(self, prompt: str) -> str:
        """Return the base's text after any prompt, as it stands; "" if there is no room or budget."""
        name = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
        prompts = replace(self._plain.prompts, instruction="", system_prompt=None)
        sampling = Sampling(REFLECTION_TOKENS, 0.0)
        sampler = replace(self._plain, prompts=prompts, sampling=sampling, grade=_ungraded, cut=None)
        draws = self._ask([Problem(f"written {name}", prompt, "")], (), sampler, reads_all=True)
        return draws[0].completion.text if draws else ""

    def _ask(
        self, problems: Sequence[Problem], demos: Demos, sampler: Sampler, reads_all: bool = False
    ) -> list[Draw] | None:
        longest = problems[0] if reads_all else self._longest
        if not fits_context(longest, sampler, tokenizer_of(self.steps))(demos):
            return None
        self.answers.sampler = sampler
        try:
            if not self.answers.ask([demos], problems):
                self.exhausted = True
                return None
        except FemtuneError as error:
            self.error = error
            raise
        return self.answers.draws(demos, problems)


def _serve(steps: Steps) -> None:
    """Load the base, as for draws that are not stored: nothing is stored under this name."""
    steps.place(1, "selection/base", steps.problems, steps.base)


def _ungraded(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    *,
    hinted: Sequence[bool],
    accept_at: Sequence[float],
) -> list[Score]:
    """Return empty scores, as a text that is no answer is not graded."""
    return [Score(0.0, "") for _ in completions]
