"""How completions end, the same for every engine: cut at the closed answer, or forced to give one.

cut       the tokens after the one that closes the answer are dropped, and its log-probability is
          that of what is left
forced    a completion without an answer is asked once more, after the format's cue:
          pi(z without an answer | x) pi(y | x, z, cue)
drawn     the log-probability of drawing it so stands beside that of the model at temperature 1
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from femtune.data.truncation import Cut
from femtune.errors import ConfigError
from femtune.types import Completion, DrawKey, Request, Sampling, Tokenizer

FORCED_TOKENS = 32  # of a forced answer, at most; a rating or number needs a few

# Where an answer is forced: nowhere; after completions that ended by themselves, for E-steps, since what
# follows a truncated rationale is a guess; or after truncated ones too, for evaluation.
Force = Literal["never", "ended", "all"]

Finished = tuple[Request, Completion]
Split = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # rationale, cue, answer


@dataclass
class Endings:
    """Completions of requests, from what an engine wrote to what is graded."""

    tokenizer: Tokenizer
    cut: Cut | None
    force: Force = "never"
    context: int | None = None  # tokens of prompt and completion together, where it is known
    _held: dict[DrawKey, Finished] = field(default_factory=dict)  # that wait for their forced answer

    def settle(
        self, finished: Sequence[Finished], sampling: Sampling
    ) -> tuple[list[Finished], list[Request]]:
        """Return what is complete now, under its first request, and requests for forced answers."""
        ready: list[Finished] = []
        more: list[Request] = []
        for request, written in finished:
            completion = self._ended(request, written, sampling)
            if first := self._held.pop(request.key, None):
                ready.append((first[0], self._assembled(first[1], request, completion)))
            elif (second := self._second(request, completion, sampling)) is not None:
                self._held[request.key] = request, completion
                more.append(second)
            else:
                ready.append((request, completion))
        return ready, more

    def _ended(self, request: Request, completion: Completion, sampling: Sampling) -> Completion:
        """Cut a completion where its answer is closed, and say how likely it was drawn so."""
        if sampling.follows_model and math.isnan(completion.drawn_logprob):
            completion = replace(completion, drawn_logprob=completion.logprob)
        if self.cut is None or completion.finish_reason not in ("stop", "length"):
            return completion
        cue, tokens = request.cue, completion.tokens
        free = tokens[:-1] if completion.finish_reason == "stop" else tokens  # without the end token
        place = self.cut([*cue, *free])
        if place is None or place <= len(cue):
            return completion
        return self._cut_at(completion, place - len(cue), sampling)

    def _cut_at(self, completion: Completion, num: int, sampling: Sampling) -> Completion:
        tokens, each = completion.tokens[:num], completion.token_logprobs
        # where the engine does not say each token's, it scores them where they are needed
        logprob = math.fsum(each[:num]) if each and len(each) >= num else math.nan
        return replace(
            completion,
            tokens=tokens,
            text=self.tokenizer.decode(tokens),
            finish_reason="answered",
            logprob=logprob,
            drawn_logprob=logprob if sampling.follows_model else math.nan,
            token_logprobs=None,
        )

    def _second(self, request: Request, completion: Completion, sampling: Sampling) -> Request | None:
        """Return the request for a forced answer; None where none is to be forced."""
        if self.force == "never" or self.cut is None or not self.cut.format.cue:
            return None
        how = completion.finish_reason
        if how not in ("stop", "length") or (how == "length" and self.force == "ended"):
            return None
        if not completion.tokens or self._is_answered(completion.text):
            return None
        if self.force == "ended" and completion.tokens[-1] != self.tokenizer.end_token_id:
            return None  # another end token: `forced_ways` knows this one alone
        rationale = completion.tokens[:-1] if how == "stop" else completion.tokens
        cue = self.cue_after(completion.text)
        tokens = (*request.tokens, *rationale, *cue)
        room = FORCED_TOKENS
        if self.context is not None:
            room = min(room, self.context - len(tokens))
        if room < 1:
            return None
        seed = int.from_bytes(
            hashlib.blake2b(f"forced {request.seed}".encode(), digest_size=8).digest(), "big"
        )
        return Request(request.key, tokens, seed >> 1, cue, room)

    def forced_ways(self, completion: Completion, sampling: Sampling) -> list[Split]:
        """Return the splits of a completion into rationale, cue and answer that could have been forced.

        Where answers are forced after an end token alone, as in E-steps. Usually one or none; a cue that
        is written twice may give two.
        """
        tokens, most = completion.tokens, min(FORCED_TOKENS, sampling.max_new_tokens)
        if self.cut is None or not self.cut.format.cue:
            return []
        ways = []
        first = max(0, len(tokens) - most - max(map(len, self._cues)))
        for place in range(first, min(len(tokens), sampling.max_new_tokens)):
            cues = [cue for cue in self._cues if tokens[place : place + len(cue)] == cue]
            if not cues:
                continue
            before, text = tokens[:place], self.tokenizer.decode(tokens[:place])
            cue = self.cue_after(text)
            answer = tokens[place + len(cue) :]
            if cue in cues and 0 < len(answer) <= most and not self._is_answered(text):
                # each of the two is what is drawn only if it is not cut before its end
                written = completion.finish_reason == "stop", (*cue, *answer)
                if self.cut(before) is None and self._is_whole(*written):
                    ways.append((before, cue, answer))
        return ways

    def could_be_free(self, completion: Completion, sampling: Sampling) -> bool:
        """True if a completion could have been written without a forced answer."""
        ended = completion.finish_reason == "stop"
        fits = len(completion.tokens) <= sampling.max_new_tokens
        return fits and self._is_whole(ended, completion.tokens)

    def _is_whole(self, ended: bool, tokens: Sequence[int]) -> bool:
        """True if tokens are not cut before their end; `ended`: the last one is an end token."""
        assert self.cut is not None
        return self.cut(tokens[:-1] if ended else tokens) in (None, len(tokens))

    def _is_answered(self, text: str) -> bool:
        assert self.cut is not None
        return bool(self.cut.format.read(self.cut.opening + text).answer)

    def cue_after(self, text: str) -> tuple[int, ...]:
        """Return the tokens of the cue after a rationale; an open thinking block is closed first."""
        assert self.cut is not None
        thinks = "<think>" in self.cut.opening + text and "</think>" not in text
        return self._cues[thinks]

    @cached_property
    def _cues(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The format's cue, and that which closes a thinking block first."""
        assert self.cut is not None
        encode, cue = self.tokenizer.encode_text, self.cut.format.cue
        return encode(cue), encode(f"\n</think>\n{cue}")

    def cued(self, completion: Completion) -> tuple[int, ...]:
        """Return a completion's rationale and the cue, without the answer that it may have."""
        assert self.cut is not None
        ended = completion.finish_reason == "stop"
        tokens = completion.tokens[:-1] if ended else completion.tokens
        opening, decode = self.cut.opening, self.tokenizer.decode
        text = opening + decode(tokens)
        begin = self.cut.format.begins(text)
        if begin is not None:
            before = text[:begin].rstrip()
            num = bisect_right(
                range(len(tokens)), len(before), key=lambda n: len(opening + decode(tokens[:n]))
            )
            tokens = tokens[: max(0, num - 1)]
        return (*tokens, *self.cue_after(decode(tokens)))

    def _assembled(self, first: Completion, second: Request, answer: Completion) -> Completion:
        """Return rationale, cue and answer as one completion."""
        if answer.finish_reason == "error":
            return answer
        rationale = first.tokens[:-1] if first.finish_reason == "stop" else first.tokens
        tokens = (*rationale, *second.cue, *answer.tokens)
        return Completion(
            tokens,
            self.tokenizer.decode(tokens),
            answer.finish_reason,
            math.nan,  # of the whole under one prompt: scored where it is needed
            drawn_logprob=first.drawn_logprob + answer.drawn_logprob,
            num_forced=len(second.cue) + len(answer.tokens),
        )


def check_cue(cut: Cut, tokenizer: Tokenizer) -> None:
    """Raise ConfigError where the format's cue can't be encoded."""
    cue = cut.format.cue
    if tokenizer.decode(tokenizer.encode_text(cue)).strip() != cue.strip():
        raise ConfigError(
            f"The tokenizer can't write the cue {cue!r} of answer_format {cut.format.spec}. Choose "
            "another --answer-format, or --force-answers never."
        )
