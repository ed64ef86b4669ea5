"""The probability of every answer of a closed set, after one rationale: pi(y | x, z).

    prompt x   rationale z   cue "\\nAnswer:"   " 1"  " 2"  " 3"  " 4"      one pass scores all of them

A rating, a letter or a preference is one of a few answers, so one pass over prompt, rationale and cue
gives the whole distribution, where sampling gives one answer at a time.

Log-probabilities are in nats, of the answer as the format writes it ("canonical"), by the model at
temperature 1. They are not normalized: what is missing to 1 is written in another way, or is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from femtune.data.tasks.frames import scale_of
from femtune.errors import ConfigError, EngineError
from femtune.estep.forced_answers import FORCED_TOKENS, Endings
from femtune.estep.scheduler import Sampler
from femtune.types import Asked, Completion, Draw, EngineBase, Problem, Tokens


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """Log-probability of each answer of a closed set after one prefix, in nats; not normalized."""

    answers: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def likeliest(self) -> str:
        """The answer of the highest probability, the first of equals."""
        return self.answers[int(np.argmax(self.logprobs))]

    def of(self, answer: str) -> float:
        """Nats of one answer. Raises KeyError for an answer outside the set."""
        if answer not in self.answers:
            raise KeyError(answer)
        return self.logprobs[self.answers.index(answer)]

    def shares(self) -> dict[str, float]:
        """Each answer's share of the mass: probabilities that sum to 1.

        >>> round(AnswerLogprobs(("A", "B"), (math.log(0.6), math.log(0.2))).shares()["A"], 9)
        0.75
        """
        top = max(self.logprobs)
        weights = [math.exp(each - top) for each in self.logprobs]
        total = math.fsum(weights)
        return {a: weight / total for a, weight in zip(self.answers, weights, strict=True)}


def closed_set(problem: Problem) -> tuple[str, ...]:
    """The answers that a problem can have, as they are written; () where any text may be one."""
    scale = scale_of(problem)
    return tuple(scale.answers) if scale else ()


@dataclass(frozen=True)
class Writing:
    """Return the tokens of each answer after the cue.

    `ways[i]` are the continuations that all write answer i: one, or one for each way of closing it.
    """

    answers: tuple[str, ...]
    ways: tuple[tuple[Tokens, ...], ...]


def written(
    answers: Sequence[str], sampler: Sampler, *, closed: bool = False, spaced: bool = False
) -> Writing:
    """Return how answers are written after the format's cue; `spaced`: after the cue and a space.

    `closed`: with what closes them, the end token or a line break for formats of a line, the brace or
    tag for others. So it is also where one answer begins with another, as 10 does with 1. Raises
    ConfigError for a format without a cue.
    """
    assert sampler.cut is not None
    form, encode = sampler.cut.format, sampler.tokenizer.encode_text
    if not form.cue:
        raise ConfigError(
            f"answer_format {form.spec}: the probabilities of answers need a format with a cue. Choose "
            "line, boxed, hash, tag, bracket or json:KEY."
        )
    cue = encode(form.cue)
    found: list[Tokens] = []
    for answer in answers:
        if spaced:
            found.append(tuple(encode(form.written(answer).lstrip())))
            continue
        whole = encode(form.cue + form.written(answer))
        # where tokens join over the border, what follows the cue is encoded by itself
        is_whole = whole[: len(cue)] == cue
        found.append(tuple(whole[len(cue) :] if is_whole else encode(form.written(answer))))
    if not closed and not _begins_another(found):
        return Writing(tuple(answers), tuple((each,) for each in found))
    endings: list[Tokens] = [(sampler.tokenizer.end_token_id,), tuple(encode("\n"))]
    if form.closing:
        endings = [tuple(encode(form.closing))]
    return Writing(tuple(answers), tuple(tuple((*each, *end) for end in endings) for each in found))


def _begins_another(found: Sequence[Tokens]) -> bool:
    return any(a == b[: len(a)] for a, b in permutations(found, 2))


def endings_of(sampler: Sampler) -> Endings:
    """Return how completions of a sampler end; it keeps the cue's tokens."""
    assert sampler.cut is not None
    return Endings(sampler.tokenizer, sampler.cut, "ended", sampler.context)


def prefix_of(
    completion: Completion, sampler: Sampler, endings: Endings | None = None
) -> tuple[Tokens, bool]:
    """Return rationale and cue of a completion, and True if they were sampled as they stand.

    Else the cue is put after the rationale: where the answer is in another form ("The answer is 4."), or
    missing. `endings` are those of `endings_of`, for many completions of a sampler.
    """
    endings = endings or endings_of(sampler)
    if ways := endings.forced_ways(completion, sampler.sampling):
        before, cue, _ = ways[-1]
        return (*before, *cue), True
    if (num := _num_sampled(completion, endings.cue_after(""), sampler)) is not None:
        return completion.tokens[:num], True
    return endings.cued(completion), False


def _end_of(cue: Tokens, tokens: Tokens) -> int:
    """Return where the last such run of tokens ends; without one, more than there are tokens.

    >>> _end_of((1, 2), (5, 1, 2, 7)), _end_of((1, 2), (5, 1))
    (3, 3)
    """
    ends = range(len(tokens), len(cue) - 1, -1)
    return next((end for end in ends if tokens[end - len(cue) : end] == cue), len(tokens) + 1)


def _num_sampled(completion: Completion, cue: Tokens, sampler: Sampler) -> int | None:
    """Return how many sampled tokens end with the cue of the answer, where that is a token's end.

    Tokenizers may join the cue with what is before it or with the space after it: one token may be
    ".\\nAnswer: ". The cue encoded by itself is then not what the model writes.
    """
    assert sampler.cut is not None
    form, decode = sampler.cut.format, sampler.tokenizer.decode
    if not form.read(sampler.cut.opening + completion.text).answer:
        return None
    places = range(max(0, len(completion.tokens) - FORCED_TOKENS) + 1, len(completion.tokens))
    if completion.text.count(form.cue) == 1:  # usually its own tokens, which are found without decoding
        num = _end_of(cue, completion.tokens)
        if num in places and decode(completion.tokens[:num]).endswith(form.cue):
            return num
    found = None
    for num in reversed(places):
        if decode(completion.tokens[:num]).removesuffix(" ").endswith(form.cue):
            found = num
        elif found is not None:
            break
    return found


def is_spaced(prefix: Tokens, sampler: Sampler) -> bool:
    """Return whether a prefix ends with the cue and a space, joined in one token."""
    assert sampler.cut is not None
    return sampler.tokenizer.decode(prefix[-len(sampler.cut.format.cue) - 1 :]).endswith(
        sampler.cut.format.cue + " "
    )


def answer_logprobs(
    draws: Sequence[Draw],
    problems: Mapping[str, Problem],
    sampler: Sampler,
    *,
    closed: bool = False,
    answers: Callable[[Problem], tuple[str, ...]] = closed_set,
) -> list[AnswerLogprobs | None]:
    """Score every answer after each draw's rationale, under the plain prompt.

    `sampler.demos` stand in the prompts. `answers` gives the answers that a problem can have, or some of
    an open set. None for a draw without tokens, or without answers. Raises EngineError where the
    engine can't score.
    """
    prefixes: list[Tokens | None] = []
    prompts: dict[str, Tokens] = {}
    asked = [problems[draw.key.problem_id] for draw in draws]
    of_problem = {problem.id: answers(problem) for problem in asked}
    endings = endings_of(sampler)
    for draw, problem in zip(draws, asked, strict=True):
        if not draw.completion.tokens or not of_problem[problem.id]:
            prefixes.append(None)
            continue
        if problem.id not in prompts:
            prompts[problem.id] = prompt_tokens("plain", problem, sampler)
        prefixes.append((*prompts[problem.id], *prefix_of(draw.completion, sampler, endings)[0]))
    return logprobs_of_answers(prefixes, [of_problem[each.id] for each in asked], sampler, closed)


def direct_logprobs(
    problems: Sequence[Problem],
    sampler: Sampler,
    *,
    closed: bool = False,
    answers: Callable[[Problem], tuple[str, ...]] = closed_set,
) -> list[AnswerLogprobs | None]:
    """Score every answer right after the prompt and the cue: pi(y | x), without a rationale.

    None for a problem without answers. Raises EngineError where the engine can't score.
    """
    assert sampler.cut is not None
    cue = Endings(sampler.tokenizer, sampler.cut).cue_after("")
    prefixes = [(*prompt_tokens("plain", p, sampler), *cue) if answers(p) else None for p in problems]
    return logprobs_of_answers(prefixes, [answers(problem) for problem in problems], sampler, closed)


def prompt_tokens(name: str, problem: Problem, sampler: Sampler) -> Tokens:
    """Return the prompt of that name, with the worked examples of `sampler.demos`."""
    shown = sampler.prompts.with_demos(sampler.demos) if sampler.demos else sampler.prompts
    return tuple(sampler.tokenizer.encode_prompt(shown.render(name, problem)))


def logprobs_of_answers(
    prefixes: Sequence[Tokens | None],
    answers: Sequence[tuple[str, ...]],
    sampler: Sampler,
    closed: bool,
) -> list[AnswerLogprobs | None]:
    """Score answers after each prefix, of prompt, rationale and cue; None for no prefix.

    Raises EngineError where the engine can't score.
    """
    writings: dict[tuple[tuple[str, ...], bool], Writing] = {}
    asked: list[Asked] = []
    of: list[Writing | None] = []
    for prefix, names in zip(prefixes, answers, strict=True):
        if prefix is None:
            of.append(None)
            continue
        key = names, is_spaced(prefix, sampler)
        if key not in writings:
            writings[key] = written(names, sampler, closed=closed, spaced=key[1])
        of.append(writings[key])
        asked.append((prefix, [way for ways in writings[key].ways for way in ways]))
    logprobs = iter(score_after(sampler.engine, asked))
    return [None if each is None else _summed(each, next(logprobs)) for each in of]


def _summed(writing: Writing, logprobs: Sequence[float]) -> AnswerLogprobs:
    """Add up the ways of writing each answer."""
    if any(math.isnan(each) for each in logprobs):
        raise EngineError("the engine gives no log-probability for an answer: see what it wrote before.")
    left = iter(logprobs)
    sums = [float(np.logaddexp.reduce([next(left) for _ in ways])) for ways in writing.ways]
    return AnswerLogprobs(writing.answers, tuple(sums))


def score_after(engine: EngineBase, asked: Sequence[Asked]) -> list[tuple[float, ...]]:
    """Nats of each continuation after its prefix. Raises EngineError where the engine can't score."""
    return [tuple(each) for each in engine.logprobs_after(asked)] if asked else []


def with_answer(
    completion: Completion, answer: str, sampler: Sampler, before: Tokens | None = None
) -> Completion:
    """Return a completion whose answer is this one, in canonical form with the end token.

    `before` is its rationale and cue, by default those of `prefix_of`. Its log-probabilities are not
    known then.
    """
    if before is None:
        before, _ = prefix_of(completion, sampler)
    [[way, *_]] = written([answer], sampler, closed=True, spaced=is_spaced(before, sampler)).ways
    end = sampler.tokenizer.end_token_id
    tokens = (*before, *way) if way[-1] == end else (*before, *way, end)
    return replace(
        completion,
        tokens=tokens,
        text=sampler.tokenizer.decode(tokens),
        finish_reason="stop",
        logprob=math.nan,
        drawn_logprob=math.nan,
        num_forced=0,
        token_logprobs=None,
    )
