"""The tokens of a rung, counted from what its run stored, so that a kill changes no count.

generated   tokens that the model wrote
prompt      tokens read before something is written or scored: a prompt counts for each completion
scored      tokens that are given, and passed through the model for their probability or hidden state
trained     tokens of an M-step, prompts included, over all epochs

A cache of prompts makes the same prompts cheaper; servers bill them as they are counted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from femtune.errors import ConfigError
from femtune.metric_types import History
from femtune.runs.draws import drawn, read_draws
from femtune.sampler import SamplerBuilder
from femtune.types import Problem

DRAWN = (
    "draws",
    "selection",
    "dev",
    "eval",
    "eval_demos",
    "bound",
)  # folders of draws in an iteration's
TRAINING = 3  # passes of a trained token: forward, and backward twice as much


@dataclass(frozen=True)
class Tokens:
    """Counts of tokens by kind."""

    generated: int = 0
    prompt: int = 0
    scored: int = 0
    trained: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def passes(self) -> int:
        """Return tokens passed through the model, trained ones three times: the order of rungs.

        >>> Tokens(generated=10, prompt=100, trained=5).passes
        125
        """
        return self.generated + self.prompt + self.scored + TRAINING * self.trained


NO_TOKENS = Tokens()


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens of each kind, in any currency; None: not known."""

    prompt: float | None = None
    generated: float | None = None
    trained: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "generated", "trained"):
            if (price := getattr(self, name)) is not None and not 0 <= price < float("inf"):
                raise ConfigError(f"price_{name} must be at least 0, got {price}.")

    @property
    def known(self) -> bool:
        return any(price is not None for price in (self.prompt, self.generated, self.trained))

    def money(self, tokens: Tokens) -> float | None:
        """Return what tokens cost, scored ones as prompts; None if a kind among them has no price.

        >>> Prices(prompt=1.0, generated=4.0).money(Tokens(generated=500_000, prompt=1_000_000))
        3.0
        >>> Prices(prompt=1.0).money(Tokens(generated=1)) is None
        True
        """
        bill = (
            (tokens.prompt + tokens.scored, self.prompt),
            (tokens.generated, self.generated),
            (tokens.trained, self.trained),
        )
        if not self.known or any(number and price is None for number, price in bill):
            return None
        return sum(number * (price or 0.0) for number, price in bill) / 1e6


class PromptLengths:
    """Lengths of rendered prompts in tokens, each counted once."""

    def __init__(self, builder: SamplerBuilder, *groups: Sequence[Problem]) -> None:
        self.builder = builder
        self.problems = {problem.id: problem for group in groups for problem in group}
        self._known: dict[tuple[str, str, bool], int] = {}

    def of(self, problem_id: str, kind: str = "plain", demos: bool = False) -> int:
        """Return the tokens of a problem's prompt of a kind, with or without worked examples."""
        key = problem_id, kind, demos
        if key not in self._known:
            prompts = self.builder.prompts
            shown = prompts.with_demos(self.builder.demos) if demos else prompts
            messages = shown.render(kind, self.problems[problem_id])
            self._known[key] = len(self.builder.tokenizer.encode_prompt(messages))
        return self._known[key]

    def drawn(self, folder: Path) -> Tokens:
        """Return the tokens of stored draws: what was written, and the prompts of each."""
        generated = prompt = 0
        for draws, _ in read_draws(folder):
            for draw in draws:
                generated += draw.completion.num_tokens
                served = draw.completion.served
                if served is not None:  # its server alone counts tokens, where it does
                    prompt += served.prompt_tokens or 0
                    continue
                prompt += self.of(draw.key.problem_id, draw.prompt_kind, bool(draw.demos))
        return Tokens(generated=generated, prompt=prompt)

    def reread(self, folder: Path) -> Tokens:
        """Return the tokens of a pass over stored draws: each prompt, and each completion as scored."""
        drawn = self.drawn(folder)
        return Tokens(prompt=drawn.prompt, scored=drawn.generated)


def generated_tokens(ladder: Path) -> int:
    """Return the tokens of all draws that the runs of a ladder stored, unfinished runs included."""
    return sum(
        draw.completion.num_tokens
        for kind in DRAWN
        for folder in ladder.glob(f"*/iteration-*/{kind}")
        # the development part of chosen examples was drawn when they were
        if kind != "dev" or not (folder.parent / "selection").is_dir()
        for chunk in drawn(folder)
        for draw in chunk
    )


def answer_tokens(builder: SamplerBuilder, answers: Mapping[str, Sequence[str]]) -> int:
    """Return the tokens of all possible answers of each problem, as the format writes them."""
    form, lengths = builder.prompts.format, dict[str, int]()
    for answer in {each for own in answers.values() for each in own}:
        lengths[answer] = len(builder.tokenizer.encode_text(form.written(answer)))
    return sum(lengths[each] for own in answers.values() for each in own)


def trained(history: History) -> int:
    """Return the trained tokens of all M-steps of a run."""
    return sum(each["m_step"].get("trained_tokens", 0) for each in history if "m_step" in each)


def learning_tokens(run: Path, history: History, lengths: PromptLengths) -> Tokens:
    """Return the tokens of a run's E-steps and M-steps, and of the choice of its best iteration.

    Of scoring, completions alone are counted.
    """
    found = Tokens(trained=trained(history))
    for each in history:
        folder = run / f"iteration-{each['iteration']:03}"
        if "development" in each:
            found += lengths.drawn(folder / "dev")
        if "e_step" in each:
            found += lengths.drawn(folder / "draws")
            found += Tokens(scored=each["e_step"].get("scored_tokens", 0))
    return found
