"""The nouns, almost without behaviour: problem -> request -> completion -> score -> draw -> example.

A problem (x, y*) is asked under a prompt; the engine's completion holds rationale z and answer y;
the reward scores it; a draw is a completion with its score and provenance; an example is a draw as
the M-step sees it. Tokens are the ground truth everywhere: the tokens that were sampled are the
tokens that are trained on, text is only for rewards and readers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from femtune.errors import ConfigError
from femtune.mstep_schedule import MStepSchedule

Tokens = tuple[int, ...]
Asked = tuple[Sequence[int], Sequence[Tokens]]  # a prefix, and continuations to score after it

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Message]  # what the user's `prompt` column holds

# end token | its answer is closed | max_new_tokens | engine failed
FinishReason = Literal["stop", "answered", "length", "error"]

# Why a draw is not accepted; "" if it is. Closed, so that counts of each can be shown.
Reason = Literal["", "truncated", "parse_error", "hint_leak", "wrong", "reward_failed", "engine_failed"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question x and its correct answer y*; `columns` are the row's others, for the reward."""

    id: str
    prompt: Prompt
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)


class Ending(Protocol):
    """Where a completion's answer is closed: see truncation.Cut."""

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and including the one that closes an answer, or None."""
        ...

    def closes(self, tokens: Sequence[int]) -> bool:
        """True if the last of the tokens closes an answer, where none before it does."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the most likely token."""

    max_new_tokens: int = 512  # the prompt does not count
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    # where an engine may stop early; the driver cuts what engines write anyway, with equal results
    cut: Ending | None = field(default=None, compare=False, repr=False)

    @property
    def follows_model(self) -> bool:
        """True if draws follow the model's own law: temperature 1, without top_p and top_k."""
        return self.temperature == 1 and self.top_p >= 1 and not self.top_k


@dataclass(frozen=True, order=True, slots=True)
class DrawKey:
    """Names a draw for ever; its seed follows from it (see `draw_seed`)."""

    iteration: int  # from 1; 0 is the evaluation of the base model
    problem_id: str
    stage: int  # position in Scheme.asked
    index: int  # attempt within the stage, from 0


def draw_seed(run_seed: int, key: DrawKey) -> int:
    """The seed of one draw: 63 bits of a hash, as engines take signed seeds.

    >>> draw_seed(0, DrawKey(1, "a", 0, 0)) == draw_seed(0, DrawKey(1, "a", 0, 0))
    True
    >>> draw_seed(0, DrawKey(1, "a", 0, 0)) == draw_seed(0, DrawKey(1, "a", 0, 1))
    False
    """
    name = f"{run_seed}\x00{key.iteration}\x00{key.problem_id}\x00{key.stage}\x00{key.index}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Request:
    """One completion asked of an engine."""

    key: DrawKey
    tokens: tuple[int, ...]  # the rendered prompt, as the model is fed
    seed: int  # 0 <= seed < 2**63
    # of a forced answer: the last of `tokens`, which are part of the completion's text
    cue: tuple[int, ...] = ()
    max_new_tokens: int | None = None  # if fewer than Sampling's

    def most_tokens(self, sampling: Sampling) -> int:
        """Return how many tokens may be written for it."""
        return min(self.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine wrote after a prompt.

    `logprob` is the log-probability of the tokens in nats, by the model at temperature 1 without top_p
    and top_k; `drawn_logprob` that of drawing them so, at the temperature that was sampled with. Either
    is nan where it is not known. Of a forced answer the former is nan until it is scored.
    """

    # as sampled, up to and including the end token or the token that closes the answer
    tokens: tuple[int, ...]
    text: str  # decoded, without special tokens
    finish_reason: FinishReason
    logprob: float
    _: KW_ONLY
    error: str = ""  # what the engine said, where finish_reason is "error"
    drawn_logprob: float = math.nan
    num_forced: int = 0  # last tokens that were not free: the cue and the answer after it
    # nats of each token at temperature 1, by engines that do not stop at a closed answer; not stored
    token_logprobs: tuple[float, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion's text, split; `error` says why it could not be, else it is empty."""

    rationale: str
    answer: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward made of a completion."""

    reward: float  # 0 to 1
    answer: str  # y as parsed; "" where there is none
    reason: Reason = ""  # why it is not accepted
    detail: str = ""  # the reason at length, for readers
    rationale: str = ""  # z as parsed


@dataclass(frozen=True, slots=True)
class Draw:
    """One completion with its provenance, as it is stored."""

    key: DrawKey
    prompt_kind: str  # name of the prompt it was drawn under: "plain" or "hinted"
    seed: int
    completion: Completion
    score: Score
    _: KW_ONLY
    # nats of the completion by theta_{k-1}: log pi(z, y | x) under the plain prompt, log q(z, y | x, y*)
    # under the hinted one; None where the scheme does not need them: see scoring.py
    log_pi: float | None = None
    log_q: float | None = None
    demos: str = ""  # digest of the worked examples that stood in its prompt; "" for none
    temperature: float = 1.0  # that it was sampled at
    # nats of drawing it by all ways that lead to it, where an answer may be forced; see scoring.py
    log_drawn: float | None = None
    # nats by theta_{k-1} under the plain prompt, closing included; see answer_scoring.py
    log_answer: float | None = None  # log pi(y* | x, z), after this draw's rationale
    log_direct: float | None = None  # log pi(y* | x), without a rationale
    is_likeliest: bool | None = None  # True if no other answer is likelier after the rationale
    # log pi(z | x) - log q(z) of rationale and cue, q being what drew them; 0 for a plain draw
    log_ratio: float | None = None
    right: Draw | None = field(default=None, repr=False)  # the same rationale with y* as its answer

    @property
    def bare_prompt(self) -> str:
        """The prompt whose log-probability `completion.logprob` is of; "" if it had worked examples."""
        return "" if self.demos or self.completion.num_forced else self.prompt_kind

    @property
    def on_policy(self) -> bool:
        """True if it follows pi(z, y | x): plain, at temperature 1, without examples, not forced."""
        return self.bare_prompt == "plain" and self.temperature == 1

    @property
    def accepted(self) -> bool:
        """Whether it passed the filter: ended, parsed, no leak, reward >= accept_at."""
        return self.score.reason == ""


@dataclass(frozen=True, slots=True)
class Example:
    """A draw as the M-step sees it: weight x log pi(z, y given x), under the plain prompt.

    Those of the wake phase are under the hinted one, and say so.
    """

    draw: Draw
    weight: float = 1.0
    prompt_kind: Literal["plain", "hinted"] = "plain"  # that it is trained under


# A rule maps one problem's draws (those that are remembered, then the iteration's, in order of their
# keys) and the examples made of them so far to new examples. Pure. It is a small frozen dataclass of
# plain values, so that a run can store it: see schemes/serialization.py. What it must know of the draws
# stands in its attribute `needs`, a frozenset of `Need`; without one it needs nothing.
Rule = Callable[[Sequence[Draw], Sequence[Example]], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Ask every problem, or every one still unsolved, up to `draws` times under one prompt."""

    prompt_kind: Literal["plain", "hinted"]
    draws: int = 1
    ask: Literal["unsolved", "all"] = "unsolved"

    def __post_init__(self) -> None:
        if self.prompt_kind not in ("plain", "hinted") or self.draws < 1:
            raise ConfigError(f"{self}: the prompt is plain or hinted, and draws are at least 1.")


# What a rule may need to know of draws, or how they must have been drawn:
# log_pi, log_q      log pi or log q of each accepted draw
# fixed_budget       every problem is asked alike in every iteration
# untruncated        no top_p or top_k leaves tokens out
# temperature_1      draws follow their model's own law
# current_model      that model is theta_{k-1}
# plain_prompts      no worked examples stand in the prompts, and no answer is forced
# answers            the probability of y* after each draw's rationale, whatever its answer
# ratio              pi / q of rationale and cue of these
# gain               how much the rationale of each accepted draw adds to the probability of y*
Need = Literal[
    "log_pi",
    "log_q",
    "fixed_budget",
    "untruncated",
    "temperature_1",
    "current_model",
    "plain_prompts",
    "answers",
    "ratio",
    "gain",
]
# those for which the engine scores draws
SCORED: frozenset[Need] = frozenset({"log_pi", "log_q", "answers", "ratio", "gain"})


def needs_of(rule: Rule | None) -> frozenset[Need]:
    """Return what a rule must know of draws, nothing if it does not say. Raises ConfigError."""
    needs: frozenset[Need] = getattr(rule, "needs", frozenset())
    if not isinstance(needs, frozenset) or needs - frozenset(get_args(Need)):
        raise ConfigError(
            f"Rule {type(rule).__name__} has needs {needs!r}. Give a frozenset of some of "
            f"{', '.join(get_args(Need))}."
        )
    return needs


@dataclass(frozen=True, slots=True)
class Scheme:
    """Where rationales come from (stages), what each draw counts for, and what is remembered of them."""

    name: str
    stages: tuple[Stage, ...]
    _: KW_ONLY
    weigh: Rule
    # a draw is accepted where its reward is at least this, or what this says for it
    accept_at: float | Callable[[Request], float] = 1.0
    # what is asked of a problem of which no draw is remembered, in place of `stages`
    first: tuple[Stage, ...] = ()
    # whose draws are kept in mind for the next iteration, beside its own; None: nothing is
    remember: Rule | None = None
    proposal: Literal["current", "base"] = "current"  # whose draws: of theta_{k-1}, or of the base
    # nats: a problem whose bound on log p(y* | x) no draw can raise by more is not asked
    min_gain: float = 0.0
    # iterations from one that asks a problem to the next: a share of the problems in each
    every: int = 1
    m_steps: MStepSchedule = field(default_factory=MStepSchedule)  # M-steps that restart

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"Scheme {self.name}: every must be >= 1, got {self.every}.")
        some = self.min_gain or self.every != 1  # of the problems or iterations
        if some and self.remember is None:
            raise ConfigError(
                f"Scheme {self.name} remembers no draws, and min_gain and every need that: add memo or "
                "chain."
            )
        if "fixed_budget" in self.needs and (some or self.is_adaptive):
            what = "min_gain or every leaves some out" if some else "a stage asks the unsolved alone"
            raise ConfigError(
                f"Scheme {self.name}: its weights are of draws that every problem gets in every "
                f'iteration, and {what}. Choose stages of ask="all", such as those of pps(4).'
            )
        if "current_model" in self.needs and self.proposal == "base":
            raise ConfigError(
                f"Scheme {self.name}: chains, control variates and expected rewards are of draws from "
                "theta_{k-1}, and these are the base's. Drop base, or choose importance or memo."
            )

    @property
    def is_adaptive(self) -> bool:
        """True if the number of draws for a problem depends on their outcomes."""
        return any(
            stage.ask == "unsolved" and (stage.draws > 1 or number > 0)
            for stages in (self.first, self.stages)
            for number, stage in enumerate(stages)
        )

    @property
    def asked(self) -> tuple[Stage, ...]:
        """All stages by the number that draws name: those of `first`, then `stages`."""
        return (*self.first, *self.stages)

    @property
    def needs(self) -> frozenset[Need]:
        """What its rules must know of draws, and its choice of problems."""
        found = needs_of(self.weigh) | needs_of(self.remember)
        return found | {"log_pi"} if self.min_gain else found


# r(answer, y*): pure, from problems and parsed completions to rewards in [0, 1]; None abstains.
Reward = Callable[[Sequence[Problem], Sequence[Completion], Sequence[Parsed]], Sequence[float | None]]


class Tokenizer(Protocol):
    """Text to prompt tokens and back: see prompts.ChatTokenizer, and engines/fake.py for bytes."""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens a model is fed before it writes, template and BOS included."""
        ...

    @property
    def end_token_id(self) -> int:
        """The token that ends a completion."""
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Tokens of a text within a completion, without special tokens."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Completion tokens as text, special tokens left out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """State what an engine can do; the default is everything."""

    seeds: bool = True  # the same seed draws the same tokens
    logprobs: bool = True  # it returns log-probabilities of what it samples
    raw_logprobs: bool = True  # those are the model's own at any temperature, top_p and top_k
    token_ids: bool = True  # it returns the sampled tokens, not only their text
    scores: bool = True  # it can score a given completion
    adapters: bool = True  # it can load trained weights while it runs: a server at least LoRA adapters


class EngineBase(Protocol):
    """Serves a model's weights and scores completions by them: one engine, or a pool of several."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do. A pool waits until one of its engines has started."""
        ...

    def load(self, weights: Path) -> None:
        """Serve these weights from now on. Raises ModelError where they can't be read or served."""
        ...

    def release(self) -> None:
        """Free the device's memory until the next `load`: the M-step needs it."""
        ...

    def close(self) -> None:
        """End what it has started (processes, connections); it is not used again."""
        ...

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Return the log-probability of each completion given its prompt: the sum over its tokens.

        Raises EngineError where the engine can't score.
        """
        ...

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Return the log-probability of each continuation after its prefix: the sum over its tokens.

        Equal to `logprob` of all pairs of a prefix and one of its continuations, but for rounding. An
        engine that can, passes each prefix through the model once; for others see `engines/pairs.py`.
        Raises EngineError where the engine can't score.
        """
        ...


@runtime_checkable
class Generates(Protocol):
    """Generates completions for token prompts: what an engine does, and a pool leaves to its own.

    A completion ends at one of the model's end tokens, which it then holds, or at `max_new_tokens`.
    """

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete requests, in any order, those that end together as one batch.

        Calls `pull(n)` whenever it has room for n >= 1 more requests and gets at most n. An empty
        answer means "none now": the engine goes on with those it has, and is done when it has none.
        What it has yielded is graded before it is resumed, so a retry is in the next `pull`.
        """
        ...


class Engine(EngineBase, Generates, Protocol):
    """Generates completions for token prompts, scores given ones, loads new weights."""


Balance = Literal["none", "data", "uniform"]
CalibrationKind = Literal["temperature", "isotonic"]
# What a distribution is made from: the count of answers, or the mean of the probabilities that the model
# gives each answer after each rationale.
CalibrationOf = Literal["votes", "probabilities"]
Aggregate = Literal["auto", "votes", "probabilities"]

# What a killed run goes on from in the chunk that was open: its draws that were graded, or none of them.
# The latter draws it anew in the same batches, bit for bit; the former the rest in other batches, which
# gives the same tokens up to rounding.
Resume = Literal["draws", "chunks"]


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example."""

    prompt: Prompt  # x, without the instruction
    answer: str  # y*
    completion: str  # rationale and answer in the answer format, as a model should write them


Demos = tuple[Demo, ...]
