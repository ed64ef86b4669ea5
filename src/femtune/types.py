"""The data types, with little behaviour: problem -> request -> completion -> score -> draw -> example.

A problem (x, y*) is asked under a prompt; the engine's completion holds rationale z and answer y;
the reward scores it; a draw is a completion with its score and provenance; an example is a draw as
the M-step sees it. Tokens are the ground truth: training uses exactly the sampled tokens, and text is
for rewards and readers. Only an engine that is `text_only` has none: messages in, text out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from femtune.errors import ConfigError
from femtune.metric_types import Served
from femtune.mstep_schedule import MStepSchedule

Tokens = tuple[int, ...]
Asked = tuple[Sequence[int], Sequence[Tokens]]  # a prefix, and continuations to score after it

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Message]  # the content of the user's `prompt` column

# end token | its answer is closed | max_new_tokens | engine failed
FinishReason = Literal["stop", "answered", "length", "error"]

# The reason why a draw is refused; "" if it is accepted. The set is closed, so that each can be counted.
Reason = Literal["", "truncated", "parse_error", "hint_leak", "wrong", "reward_failed", "engine_failed"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question x and its correct answer y*; `columns` are the row's other columns, for the reward."""

    id: str
    prompt: Prompt
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)


class Ending(Protocol):
    """A detector of the token that closes a completion's answer: see truncation.Cut."""

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and including the one that closes an answer, or None."""

    def closes(self, tokens: Sequence[int]) -> bool:
        """Return True if the last token closes an answer, given that none before it does."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling parameters. Temperature 0 takes the most likely token."""

    max_new_tokens: int = 512  # without the prompt
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    # where an engine may stop early; the driver truncates completions anyway, with equal results
    cut: Ending | None = field(default=None, compare=False, repr=False)
    _: KW_ONLY
    continued: bool = field(default=False, compare=False)  # soon scored or continued: may be kept

    @property
    def follows_model(self) -> bool:
        """Return True if draws follow the model's distribution: temperature 1, no top_p or top_k."""
        return self.temperature == 1 and self.top_p >= 1 and not self.top_k


@dataclass(frozen=True, order=True, slots=True)
class DrawKey:
    """The permanent name of a draw, which determines its seed (see `draw_seed`)."""

    iteration: int  # from 1; 0 is the evaluation of the base model
    problem_id: str
    stage: int  # position in Scheme.stages
    index: int  # attempt within the stage, from 0


def draw_seed(run_seed: int, key: DrawKey) -> int:
    """Return the seed of one draw: 63 bits of a hash, as engines take signed seeds.

    >>> draw_seed(0, DrawKey(1, "a", 0, 0)) == draw_seed(0, DrawKey(1, "a", 0, 0))
    True
    >>> draw_seed(0, DrawKey(1, "a", 0, 0)) == draw_seed(0, DrawKey(1, "a", 0, 1))
    False
    """
    name = f"{run_seed}\x00{key.iteration}\x00{key.problem_id}\x00{key.stage}\x00{key.index}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one completion from an engine."""

    key: DrawKey
    tokens: tuple[int, ...]  # the rendered prompt, the model's input; () for a `text_only` engine
    seed: int  # 0 <= seed < 2**63
    # for a forced answer: the last of `tokens`, which are part of the completion's text
    cue: tuple[int, ...] = ()
    max_new_tokens: int | None = None  # if fewer than Sampling's
    _: KW_ONLY
    messages: tuple[Message, ...] = ()  # the prompt of a `text_only` engine
    # of its forced answer: rationale and cue to continue, in the place of the last two messages
    prefill: str = ""

    def most_tokens(self, sampling: Sampling) -> int:
        """Return the maximum number of tokens to generate."""
        return min(self.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's completion of a prompt.

    `logprob` is the log-probability of the tokens in nats, by the model at temperature 1 without top_p
    and top_k. `drawn_logprob` is the one at the temperature that was sampled with. Either is nan if
    unknown. For a forced answer, `logprob` is nan until it is scored.
    """

    # as sampled, up to and including the one that ends it or closes the answer; () if `text_only`
    tokens: tuple[int, ...]
    text: str  # decoded, without special tokens
    finish_reason: FinishReason
    logprob: float
    _: KW_ONLY
    error: str = ""  # the engine's message if finish_reason is "error"
    drawn_logprob: float = math.nan
    num_forced: int = 0  # trailing tokens that were forced: the cue and the answer after it
    # per-token log-probabilities, from engines that do not stop at a closed answer; not stored
    token_logprobs: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    served: Served | None = None  # what a `text_only` engine's server says of it

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens; of text, the server's count, 0 where it gives none."""
        return (self.served.completion_tokens or 0) if self.served else len(self.tokens)

    @property
    def sampled(self) -> Tokens | str:
        """Return the tokens, or the text of a `text_only` engine: equal for equal completions."""
        return self.text if self.served else self.tokens


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion's text, split into rationale and answer; `error` is empty if that succeeded."""

    rationale: str
    answer: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a reward for a completion."""

    reward: float  # 0 to 1
    answer: str  # y as parsed; "" without an answer
    reason: Reason = ""  # why it is refused
    detail: str = ""  # an explanation of the reason, for readers
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
    # log-probabilities by theta_{k-1}: log pi(z, y | x) under the plain prompt, log q(z, y | x, y*)
    # under the hinted one; None if the scheme does not need them: see scoring.py
    log_pi: float | None = None
    log_q: float | None = None
    demos: str = ""  # digest of the worked examples in its prompt; "" for none
    temperature: float = 1.0  # sampling temperature
    # log-probability of drawing it, over all ways to it if answers may be forced; see scoring.py
    log_drawn: float | None = None
    # log-probabilities by theta_{k-1}, plain prompt, closing included; see answer_scoring.py
    log_answer: float | None = None  # log pi(y* | x, z), after this draw's rationale
    log_direct: float | None = None  # log pi(y* | x), without a rationale
    is_likeliest: bool | None = None  # True if no other answer is likelier after the rationale
    # log pi(z | x) - log q(z) of rationale and cue, q being what drew them; 0 for a plain draw
    log_ratio: float | None = None
    right: Draw | None = field(default=None, repr=False)  # the same rationale with y* as its answer

    @property
    def bare_prompt(self) -> str:
        """Return the kind of prompt that `completion.logprob` is given; "" with worked examples."""
        return "" if self.demos or self.completion.num_forced else self.prompt_kind

    @property
    def accepted(self) -> bool:
        """Return True if it passed the filter: ended, parsed, no leak, reward >= accept_at."""
        return self.score.reason == ""


@dataclass(frozen=True, slots=True)
class Example:
    """A draw as the M-step sees it: weight x log pi(z, y given x), under the plain prompt."""

    draw: Draw
    weight: float = 1.0


# A rule maps one problem's draws (remembered ones, then the iteration's, in order of their keys) and the
# examples made of them so far to new examples. It is pure. It is a small frozen dataclass of plain
# values, so that a run can store it: see schemes/serialization.py. Its attribute `needs`, a frozenset of
# `Need`, declares what it requires of draws; without it, a rule requires nothing.
Rule = Callable[[Sequence[Draw], Sequence[Example]], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Ask every problem, or every one still unsolved, up to `draws` times under one prompt."""

    prompt_kind: Literal["plain", "hinted"]
    draws: int = 1
    ask: Literal["unsolved", "all"] = "unsolved"

    def __post_init__(self) -> None:
        if self.prompt_kind not in ("plain", "hinted") or self.draws < 1:
            raise ConfigError(f"{self}: the prompt must be plain or hinted, and draws at least 1.")


# Information that a rule may need about draws, or conditions on their sampling.
Need = Literal[
    "log_pi",  # log pi of each accepted draw
    "fixed_budget",  # every problem has the same number of draws in every iteration
    "untruncated",  # no top_p or top_k excludes tokens
    "temperature_1",  # draws follow their model's distribution
    "plain_prompts",  # no worked examples in the prompts, and no forced answers
    "answers",  # the probability of y* after each draw's rationale, whatever its answer
    "ratio",  # pi / q of rationale and cue of these
    "gain",  # how much the rationale of each accepted draw adds to the probability of y*
]
# needs for which the engine scores draws
SCORED: frozenset[Need] = frozenset({"log_pi", "answers", "ratio", "gain"})


def needs_of(rule: Rule | None) -> frozenset[Need]:
    """Return the needs of a rule, empty if it declares none. Raises ConfigError."""
    needs: frozenset[Need] = getattr(rule, "needs", frozenset())
    if not isinstance(needs, frozenset) or needs - frozenset(get_args(Need)):
        raise ConfigError(
            f"Rule {type(rule).__name__} has needs {needs!r}. Give a frozenset of some of "
            f"{', '.join(get_args(Need))}."
        )
    return needs


@dataclass(frozen=True, slots=True)
class Scheme:
    """A scheme: the stages that draw rationales, the weight of each draw, and the draws to remember."""

    name: str
    stages: tuple[Stage, ...]
    _: KW_ONLY
    weigh: Rule
    # a draw is accepted if its reward is at least this value, or that of this function
    accept_at: float | Callable[[Request], float] = 1.0
    # the rule that selects draws to remember for the next iteration; None: no draws
    remember: Rule | None = None
    # iterations between draws for the same problem: each asks a share of the problems
    every: int = 1
    m_steps: MStepSchedule = field(default_factory=MStepSchedule)  # M-steps that restart

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"Scheme {self.name}: every must be >= 1, got {self.every}.")
        if self.every != 1 and self.remember is None:
            raise ConfigError(f"Scheme {self.name} remembers no draws, and every needs that: add chain.")
        if self.remember is not None and self.needs & SCORED:
            raise ConfigError(
                f"Scheme {self.name}: its rules need log-probabilities, which are known of new draws "
                "alone, and it remembers draws of earlier iterations. Leave out one of the two."
            )
        if "fixed_budget" in self.needs and (self.every != 1 or self.is_adaptive):
            what = "every leaves some out" if self.every != 1 else "a stage asks the unsolved alone"
            raise ConfigError(
                f"Scheme {self.name}: its weights are of draws that every problem gets in every "
                f'iteration, and {what}. Choose stages of ask="all", such as those of pps(4).'
            )

    @property
    def is_adaptive(self) -> bool:
        """True if the number of draws for a problem depends on their outcomes."""
        return any(
            stage.ask == "unsolved" and (stage.draws > 1 or number > 0)
            for number, stage in enumerate(self.stages)
        )

    @property
    def needs(self) -> frozenset[Need]:
        """Return the needs of its rules."""
        return needs_of(self.weigh) | needs_of(self.remember)


# r(answer, y*): pure, from problems and parsed completions to rewards in [0, 1]; None abstains.
Reward = Callable[[Sequence[Problem], Sequence[Completion], Sequence[Parsed]], Sequence[float | None]]


class Tokenizer(Protocol):
    """Text to prompt tokens and back: see data.chat_tokenizer, and engines/fake.py for bytes."""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return a model's input tokens for a prompt, template and BOS included."""

    @property
    def end_token_id(self) -> int:
        """Return the token that ends a completion."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text within a completion, without special tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return completion tokens as text, without special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """State what an engine can do; the default is everything but the last two."""

    seeds: bool = True  # the same seed draws the same tokens
    logprobs: bool = True  # it returns log-probabilities of what it samples
    raw_logprobs: bool = True  # those are the model's own at any temperature, top_p and top_k
    token_ids: bool = True  # it returns the sampled tokens, not only their text
    scores: bool = True  # it can score a given completion
    adapters: bool = True  # it can load trained weights while it runs: a server at least LoRA adapters
    scores_between: int = 0  # completions after which it scores cheaply while `generate` waits
    text_only: bool = False  # it takes messages and returns text, without tokens or a tokenizer


class EngineBase(Protocol):
    """Serves a model's weights and scores completions by them: one engine, or a pool of several."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do. A pool waits until one of its engines has started."""
        ...

    def load(self, weights: Path) -> None:
        """Serve these weights from now on. Raises ModelError if they cannot be read or served."""
        ...

    def release(self) -> None:
        """Free the device's memory until the next `load`: the M-step needs it."""
        ...

    def close(self) -> None:
        """Close the engine's processes and connections; it is not used again."""
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
        answer means "none now": the engine continues with its requests, and stops when it has none.
        Yielded completions are graded before it resumes, so a retry is in the next `pull`.
        """
        ...


class Engine(EngineBase, Generates, Protocol):
    """Generates completions for token prompts, scores given ones, loads new weights."""


Balance = Literal["none", "data", "uniform"]
CalibrationKind = Literal["temperature", "isotonic"]

# The source of a distribution: counts of answers, or the mean of their probabilities after rationales.
CalibrationOf = Literal["votes", "probabilities"]
Aggregate = Literal["auto", "votes", "probabilities"]

# How a killed run resumes an unfinished chunk: "draws" keeps its graded draws, and the rest are the same
# up to rounding, in other batches. "chunks" repeats the chunk in the same batches, bit for bit.
Resume = Literal["draws", "chunks"]


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example."""

    prompt: Prompt  # x, without the instruction
    answer: str  # y*
    completion: str  # rationale and answer in the answer format, as a model should write them


Demos = tuple[Demo, ...]
