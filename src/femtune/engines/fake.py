"""A function as the model, bytes as its tokens: what tests and examples run on.

    >>> from femtune.types import DrawKey
    >>> engine = FakeEngine(lambda prompt, seed: "Two and two make four.\\nAnswer: 4")
    >>> tokens = engine.tokenizer.encode_prompt("What is 2 + 2?")
    >>> todo = [Request(DrawKey(1, "p1", 0, 0), tokens, seed=7)]
    >>> def pull(room):
    ...     given, todo[:room] = todo[:room], []
    ...     return given
    >>> [[(request, completion)]] = list(engine.generate(pull, Sampling(max_new_tokens=99)))
    >>> completion.text.splitlines()[-1], completion.finish_reason
    ('Answer: 4', 'stop')

It ends requests in a scrambled order, so that no driver can lean on theirs; the order is seeded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from femtune.data.prompts import prompt_text
from femtune.engines.pairs import logprobs_by_pairs
from femtune.types import Asked, Capabilities, Completion, FinishReason, Prompt, Request, Sampling

END = 256  # the token after the bytes 0 to 255

# From a prompt's text and a draw's seed: the completion's text, or that and its nats.
Write = Callable[[str, int], str | tuple[str, float]]
Logprob = Callable[[str, str], float]  # log-probability of a completion's text after a prompt's


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens, 256 as the end.

    >>> ByteTokenizer().encode_prompt([{"role": "user", "content": "é"}])
    (195, 169)
    """

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The bytes of a prompt's text; no template, no BOS."""
        return tuple(prompt_text(prompt).encode())

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The bytes of a text."""
        return tuple(text.encode())

    @property
    def end_token_id(self) -> int:
        """The token that ends a completion."""
        return END

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, the end left out; a character that was cut in two becomes U+FFFD."""
        return bytes(token for token in tokens if token != END).decode(errors="replace")


def uniform(prompt: str, completion: str) -> float:
    """Nats of a completion and its end where all 257 tokens are equally likely."""
    return -math.log(END + 1) * (len(completion.encode()) + 1)


class FakeEngine:
    """Completes by `write`; has room for `room` requests at once; keeps what it was asked.

    What `write` raises becomes a completion with finish_reason "error". `logprob_of` stands for the
    model's log-probability, of scored and, unless `write` gives its own, of written completions.
    """

    capabilities = Capabilities()  # all of them

    def __init__(
        self, write: Write, *, logprob_of: Logprob = uniform, room: int = 8, order_seed: int = 0
    ) -> None:
        self.write = write
        self.logprob_of = logprob_of
        self.room = room
        self.order_seed = order_seed
        self.tokenizer = ByteTokenizer()
        self.loaded: list[Path] = []  # weights, in the order in which they were loaded
        self.asked: list[Request] = []  # requests, in the order in which they were pulled

    def load(self, weights: Path) -> None:
        """Keep the path; `write` may look at it."""
        self.loaded.append(weights)

    def release(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is started."""

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete what `pull` gives: each turn some of the requests at hand, in random order."""
        order = random.Random(self.order_seed)
        at_hand: list[Request] = []
        while True:
            free = self.room - len(at_hand)
            if free:
                given = list(pull(free))
                assert len(given) <= free, f"pull({free}) gave {len(given)} requests"
                at_hand += given
                self.asked += given
            if not at_hand:
                return
            order.shuffle(at_hand)
            num_ended = order.randint(1, len(at_hand))
            ended, at_hand = at_hand[:num_ended], at_hand[num_ended:]
            yield [(request, self._complete(request, sampling)) for request in ended]

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Nats of each completion by `logprob_of`."""
        decode = self.tokenizer.decode
        return [self.logprob_of(decode(prompt), decode(completion)) for prompt, completion in pairs]

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Nats of each continuation after its prefix, by `logprob`."""
        return logprobs_by_pairs(self.logprob, asked)

    def _complete(self, request: Request, sampling: Sampling) -> Completion:
        prompt = self.tokenizer.decode(request.tokens)
        try:
            written = self.write(prompt, request.seed)
        except Exception as error:  # whatever a test's function raises stands for a failed engine
            return Completion((), "", "error", 0.0, error=f"{type(error).__name__}: {error}")
        text, logprob = written if isinstance(written, tuple) else (written, None)
        whole = (*text.encode(), END)
        tokens = whole[: request.most_tokens(sampling)]
        text = self.tokenizer.decode(tokens)
        if logprob is None:
            logprob = self.logprob_of(prompt, text)
        reason: FinishReason = "stop" if tokens == whole else "length"
        each = None if sampling.cut is None else self._each(prompt, tokens, logprob)
        return Completion(tokens, text, reason, logprob, token_logprobs=each)

    def _each(self, prompt: str, tokens: Sequence[int], logprob: float) -> tuple[float, ...]:
        """Nats of each token: differences of those of the texts that begin a completion."""
        begun = [
            self.logprob_of(prompt, self.tokenizer.decode(tokens[:n])) for n in range(1, len(tokens))
        ]
        sums = [0.0, *begun, logprob]
        return tuple(after - before for before, after in pairwise(sums))
