"""How completions of text end: cut at the closed answer, or asked once more for one.

The same as forced_answers.py, for engines that have no tokens. The second request carries the text so
far and the cue. A server that can continue it does; any other is asked for the answer in a short turn of
its own, and `Served.forced_by` says which it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from femtune.data.answer_format import AnswerFormat
from femtune.data.truncation import cut_text
from femtune.estep.forced_answers import FORCED_TOKENS, Finished, Force
from femtune.metric_types import Served
from femtune.types import Completion, DrawKey, Request, Sampling

_CLOSE = "\n</think>\n"  # of a thinking block that is open


@dataclass
class TextEndings:
    """Completions of requests, from what a text-only engine returns to what is graded."""

    format: AnswerFormat
    force: Force = "never"
    _held: dict[DrawKey, Finished] = field(default_factory=dict)  # that wait for their forced answer

    def settle(
        self, finished: Sequence[Finished], sampling: Sampling
    ) -> tuple[list[Finished], list[Request]]:
        """Return what is complete now, under its first request, and requests for forced answers."""
        ready: list[Finished] = []
        more: list[Request] = []
        for request, written in finished:
            if first := self._held.pop(request.key, None):
                ready.append((first[0], self._assembled(first[1], request, written)))
                continue
            completion = self._cut(written)
            if (second := self._second(request, completion)) is not None:
                self._held[request.key] = request, completion
                more.append(second)
            else:
                ready.append((request, completion))
        return ready, more

    def _cut(self, completion: Completion) -> Completion:
        """Drop the text after the closed answer."""
        if completion.finish_reason not in ("stop", "length"):
            return completion
        place = cut_text(completion.text, self.format)
        if place is None:
            return completion
        return replace(completion, text=completion.text[:place], finish_reason="answered")

    def _second(self, request: Request, completion: Completion) -> Request | None:
        """Return the request for a forced answer; None where none is to be forced."""
        how = completion.finish_reason
        if self.force == "never" or not self.format.cue or how not in ("stop", "length"):
            return None
        if how == "length" and self.force == "ended":
            return None
        text = completion.text
        if not text.strip() or self.format.read(text).answer:
            return None
        is_open = "<think>" in text and "</think>" not in text
        cue = f"{_CLOSE}{self.format.cue}" if is_open else self.format.cue
        name = f"forced {request.seed}".encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        # a model that thinks first needs its room for a short reply, too
        most = request.max_new_tokens if "<think>" in text else FORCED_TOKENS
        ask = f"Write no further reasoning: {self.format.ending()}"
        return replace(
            request,
            seed=seed,
            messages=(
                *request.messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": ask},
            ),
            prefill=text + cue,
            max_new_tokens=most,
        )

    def _assembled(self, first: Completion, second: Request, answer: Completion) -> Completion:
        """Return rationale, cue and answer as one completion of two requests."""
        if answer.finish_reason == "error" or answer.served is None:
            return answer
        whole, begin = second.prefill + answer.text, len(second.prefill)
        if answer.served.forced_by == "turn":
            whole, begin = self._in_turn(first.text, second.prefill, answer.text), len(first.text)
        # the rationale holds no answer, though one that an open <think> hid may end there now
        place = cut_text(whole[len(first.text) :], self.format)
        end = None if place is None else len(first.text) + place
        is_cut = end is not None and end > begin
        return Completion(
            (),
            whole[:end] if is_cut else whole,
            "answered" if is_cut else answer.finish_reason,
            answer.logprob,
            num_forced=max(1, answer.num_tokens),
            served=_both(first.served, answer.served),
        )

    def _in_turn(self, text: str, prefill: str, reply: str) -> str:
        """Put the reply of a turn of its own after a rationale: as it is, or after the cue."""
        if cut_text(f"{reply.rstrip()}\n", self.format) is not None:  # it has the answer's form
            closed = _CLOSE if prefill.removeprefix(text).startswith(_CLOSE) else "\n"
            return f"{text}{closed}{reply}"
        return f"{prefill}{self.format.written(reply.strip())}{self.format.closing}"


def _both(first: Served | None, second: Served) -> Served:
    """Add up the counts of two requests."""
    if first is None:
        return second
    return replace(
        second,
        prompt_tokens=_sum(first.prompt_tokens, second.prompt_tokens),
        completion_tokens=_sum(first.completion_tokens, second.completion_tokens),
        requests=first.requests + second.requests,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
