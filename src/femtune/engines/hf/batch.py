"""Rows being written together by one Hugging Face model: admitted, stepped, ended.

    admit    prompts less their last token pass through the model at once, and fill their slots
    step     the newest token of each row (first, the prompt's last) passes; each row gets its next
    end      an ended row leaves a gap, which the next prompt takes, or else the batch's last row

A slot remembers whose prompt it holds, so that another attempt at the same problem starts at once. What
is filled in is also kept in a prefix tree, so that prompts that begin alike pass what they share once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from femtune.engines.hf.fused import Fused
from femtune.engines.hf.gumbel import choose_with_logprobs
from femtune.engines.hf.kv_slots import Slots
from femtune.engines.hf.model import common_prefix, extend, fill, spans, step_logits
from femtune.engines.hf.prefix_tree import PrefixTree, num_common
from femtune.types import FinishReason, Request, Sampling, Tokens

_PASS_TOKENS = 8192  # padded prompt tokens in one pass at most: bounds its memory
SHARED_LEAST = 64  # tokens that prompts share at least where these pass once
_SHARED_BY = 4  # prompts, at least, for a prefix that is not kept yet
_KNOWN_LEAST = 16  # tokens of a prompt that are copied rather than computed, at least
_MOST_WAVES = 3  # passes over prompts that come together: the first over what later ones share
_PASS_TOKENS_CPU = 1024  # what a pass over a small model makes then stays in a CPU's caches


def most_pass_tokens(device: torch.device) -> int:
    """Return how many tokens, with padding, pass at once at most."""
    return _PASS_TOKENS_CPU if device.type == "cpu" else _PASS_TOKENS


@dataclass(slots=True)
class Row:
    """A request being completed; its slot is its place in the batch."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # None: still being written
    logprob: float | None = None  # its log-probability; None until `Batch.step` has given the row back
    drawn_logprob: float = math.nan  # that of drawing it, at the sampling temperature

    @property
    def length(self) -> int:
        """Tokens of prompt and completion so far."""
        return len(self.request.tokens) + len(self.tokens)


@dataclass(slots=True)
class PromptTokens:
    """Count the tokens of all prompts, and those of them that passed through the model."""

    asked: int = 0
    computed: int = 0


class Batch:
    """At most `max_batch` rows, in slots 0, 1, ...; what a step needs of each lies in tensors [n].

    `tree` keeps prompts, and where `sampling.continued`, completions; by default nothing. `most_tokens`
    of all rows together should be in memory at most; None: no limit.
    """

    def __init__(
        self,
        model: Any,
        max_batch: int,
        ends: frozenset[int],
        sampling: Sampling,
        *,
        tree: PrefixTree | None = None,
        counts: PromptTokens | None = None,
        most_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tree = tree or PrefixTree(0)
        self.counts = counts or PromptTokens()
        self.max_batch, self.most_tokens = max_batch, most_tokens
        self.ends = ends
        self.sampling = sampling
        self.rows: list[Row] = []
        # a CPU's memory is taken where it is written, so columns need not grow with each token
        ahead = sampling.max_new_tokens if model.device.type == "cpu" else 0
        self._slots = Slots(max_batch, apart=isinstance(model, Fused), ahead=ahead)
        self._held: list[tuple[int, ...]] = [()] * max_batch  # the prompt whose keys a slot holds
        # of each row: its newest token, that token's position, the position of the prompt's last
        # token, its seed, and 1 or 0 for going on or ended
        self._state = torch.zeros(5, max_batch, dtype=torch.long, device=model.device)
        # log-probabilities of each row's tokens so far: at temperature 1, and as drawn
        self._logprobs = torch.zeros(2, max_batch, dtype=torch.float64, device=model.device)

    @property
    def num_going(self) -> int:
        """Rows that have not ended."""
        return sum(not row.finish_reason for row in self.rows)

    def num_fitting(self, waiting: Sequence[Request]) -> int:
        """Return how many of the waiting requests, in their order, fit beside the rows that go on.

        The longest stands for all. A row has its prompt, less a prefix that its slot leaves out, and
        half of the tokens that it may get, or those that it has got. One row fits always.
        """
        going = [slot for slot, row in enumerate(self.rows) if not row.finish_reason]
        free = min(self.max_batch - len(going), len(waiting))
        if self.most_tokens is None:
            return free
        longest = 0
        for slot in going:
            row, left_out = self.rows[slot], self._slots.apart_from[slot]
            usual = self._usual_length(row.request, left_out)
            longest = max(longest, usual, row.length - len(left_out))
        for num, request in enumerate(waiting[:free]):
            known = self._prefix([request.tokens]) if self._slots.apart else ()
            longest = max(longest, self._usual_length(request, known))
            if (len(going) + num + 1) * longest > self.most_tokens:
                return num or int(not going)
        return free

    def _usual_length(self, request: Request, left_out: Tokens) -> int:
        return len(request.tokens) - len(left_out) + request.most_tokens(self.sampling) // 2

    @property
    def gaps(self) -> list[int]:
        """Slots of ended rows among the rows."""
        return [slot for slot, row in enumerate(self.rows) if row.finish_reason]

    @property
    def unfinished(self) -> list[Request]:
        """Requests that `step` has not returned yet, also after it failed halfway."""
        return [row.request for row in self.rows if row.logprob is None]

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> None:
        """Give each request a slot: a gap that holds its prompt, another gap, or one at the end."""
        gaps = self.gaps
        held: dict[int, Request] = {}
        others = []
        for request in requests:
            slot = next((gap for gap in gaps if self._held[gap] == request.tokens), None)
            if slot is None:
                others.append(request)
            else:
                gaps.remove(slot)
                held[slot] = request
        ends = range(len(self.rows), self.max_batch)
        new = dict(zip([*gaps, *ends], others, strict=False))
        self._fill(new)
        self._enter(held | new)

    @torch.inference_mode()
    def close_gaps(self) -> None:
        """Move the last rows into the gaps, so that no step is spent on ended rows."""
        gaps = self.gaps
        num_going = len(self.rows) - len(gaps)
        target = [slot for slot in gaps if slot < num_going]
        source = [s for s in range(num_going, len(self.rows)) if not self.rows[s].finish_reason]
        if target:
            where, whence = self._tensor(target), self._tensor(source)
            longest = max(self.rows[slot].length for slot in source)
            self._slots.copy(whence, where, longest)
            self._state[:, where] = self._state[:, whence]
            self._logprobs[:, where] = self._logprobs[:, whence]
        for to, slot in zip(target, source, strict=True):
            self.rows[to], self._held[to] = self.rows[slot], self._held[slot]
        del self.rows[num_going:]

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token per row; gives the rows that ended now."""
        num_rows = len(self.rows)
        tokens, positions, starts, seeds, going = self._state[:, :num_rows]
        left_out = map(len, self._slots.apart_from)
        pairs = zip(self.rows, left_out, strict=False)
        longest = max(row.length - left for row, left in pairs if not row.finish_reason)
        logits = step_logits(self.model, self._slots, tokens, positions, longest)
        chosen, *logprobs = choose_with_logprobs(logits, seeds, positions - starts, self.sampling)
        self._logprobs[:, :num_rows] += torch.stack(logprobs)
        tokens.copy_(chosen)
        positions += going
        ended = [
            slot
            for slot, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True))
            if not row.finish_reason and self._append(row, token)
        ]
        if not ended:
            return []
        where = self._tensor(ended)
        for slot in ended:  # before a further step writes into its last column
            row, prompt = self.rows[slot], self.rows[slot].request.tokens
            if self.sampling.continued:
                self._keep(slot, (*prompt, *row.tokens)[:-1])
            elif _is_kept(prompt, self._slots.apart_from[slot]):
                self._keep(slot, prompt[:-1])
        going[where] = 0
        positions[where] -= 1  # a gap is stepped too: back to a column that its slot has for sure
        rows = [self.rows[slot] for slot in ended]
        for row, logprob, drawn in zip(rows, *self._logprobs[:, where].tolist(), strict=True):
            row.logprob, row.drawn_logprob = logprob, drawn
        return rows

    def _append(self, row: Row, token: int) -> bool:
        """Add a token to a row; whether it has ended."""
        row.tokens.append(token)
        cut, request = self.sampling.cut, row.request
        if token in self.ends:
            row.finish_reason = "stop"
        elif cut is not None and cut.closes([*request.cue, *row.tokens]):
            row.finish_reason = "answered"
        elif len(row.tokens) == request.most_tokens(self.sampling):
            row.finish_reason = "length"
        return row.finish_reason is not None

    def _fill(self, new: dict[int, Request]) -> None:
        """Pass prompts through the model, shortest first, equal ones and shared beginnings once."""
        slots_of: dict[Tokens, list[int]] = {}
        for slot, request in new.items():
            slots_of.setdefault(request.tokens, []).append(slot)
        alike: defaultdict[Tokens, list[Tokens]] = defaultdict(list)
        for prompt in sorted((prompt for prompt in slots_of if len(prompt) > 1), key=len):
            alike[prompt[:SHARED_LEAST]].append(prompt)
        groups: defaultdict[Tokens, list[Tokens]] = defaultdict(list)
        for prompts in alike.values():
            groups[self._prefix(prompts)] += prompts
        self._slots.leave_out(
            (), [slot for prompt in slots_of if len(prompt) == 1 for slot in slots_of[prompt]]
        )
        for prefix, left in groups.items():
            left.sort()
            for wave in range(_MOST_WAVES):
                is_last = wave + 1 == _MOST_WAVES or not self.tree.budget
                now, left = (left, []) if is_last else self._without_alike(left, prefix)
                self._fill_wave(now, slots_of, prefix)

    def _without_alike(
        self, prompts: Sequence[Tokens], prefix: Tokens
    ) -> tuple[list[Tokens], list[Tokens]]:
        """Split sorted prompts into ones to pass now, and ones that can copy what these compute."""
        now: list[Tokens] = []
        later: list[Tokens] = []
        for prompt in prompts:
            known = max(len(prefix), self.tree.num_known(prompt[:-1]))
            is_alike = (
                now and _is_kept(now[-1], prefix) and num_common(now[-1], prompt) >= known + _KNOWN_LEAST
            )
            (later if is_alike else now).append(prompt)
        return now, later

    def _fill_wave(
        self, prompts: Sequence[Tokens], slots_of: dict[Tokens, list[int]], prefix: Tokens
    ) -> None:
        """Fill slots with prompts that begin with a prefix, from the tree as far as it knows them."""
        limit = most_pass_tokens(self.model.device)
        known = {prompt: self.tree.num_known(prompt[:-1]) for prompt in prompts}
        ordered = sorted(prompts, key=len)
        new = [prompt for prompt in ordered if known[prompt] < len(prefix) + _KNOWN_LEAST]
        for start, stop in spans([len(prompt) - len(prefix) for prompt in new], limit):
            chunk = new[start:stop]
            if prefix and prefix not in self._slots.prefixes:
                self.counts.computed += len(prefix)
            self.counts.computed += sum(len(prompt) - len(prefix) - 1 for prompt in chunk)
            fill(self.model, self._slots, chunk, [slots_of[prompt] for prompt in chunk], prefix)
        started = [prompt for prompt in ordered if known[prompt] >= len(prefix) + _KNOWN_LEAST]
        for prompt in started:
            self._slots.write(slots_of[prompt][0], self.tree.pieces(prompt[:-1]), prefix)
        started.sort(key=lambda prompt: len(prompt) - known[prompt])
        todo = [prompt for prompt in started if known[prompt] < len(prompt) - 1]
        # a pass also holds a copy of what its rows attend to
        sizes = [len(prompt) - known[prompt] + len(prompt) // 8 for prompt in todo]
        for start, stop in spans(sizes, limit):
            chunk = todo[start:stop]
            starts = [known[prompt] for prompt in chunk]
            self.counts.computed += sum(map(len, chunk)) - sum(starts) - len(chunk)
            to = [slots_of[prompt][0] for prompt in chunk]
            extend(self.model, self._slots, chunk, starts, to, prefix)
        for prompt in started:
            first, *others = slots_of[prompt]
            if others:
                alike = self._tensor([first] * len(others))
                self._slots.copy(alike, self._tensor(others), len(prompt))
        for prompt in prompts:
            if _is_kept(prompt, prefix):
                self._keep(slots_of[prompt][0], prompt[:-1])

    def _keep(self, slot: int, tokens: Tokens) -> None:
        """Keep a slot's first tokens for other rows, or count them as used again."""
        if self.tree.budget and tokens and self._slots.is_uniform:
            self.tree.add(tokens, lambda start: self._slots.read(slot, start, len(tokens)))

    def _prefix(self, prompts: Sequence[Tokens]) -> Tokens:
        """Return the prefix that these prompts share, if it is long and cached or worth caching."""
        shared = common_prefix(prompts)
        kept = [known for known in self._slots.prefixes if shared[: len(known)] == known]
        known = max(kept, key=len, default=())
        is_new = len(prompts) >= _SHARED_BY and len(shared) >= len(known) + SHARED_LEAST
        return shared if is_new else known

    def _enter(self, new: dict[int, Request]) -> None:
        """Make rows of requests, over ended ones or at the end."""
        slots = sorted(new)
        entries = []
        for slot in slots:
            request = new[slot]
            last = len(request.tokens) - 1
            self.counts.asked += last + 1
            self.counts.computed += 1
            entries.append([request.tokens[-1], last, last, request.seed, 1])
        if entries:
            where = self._tensor(slots)
            self._state[:, where] = self._tensor(entries).T
            self._logprobs[:, where] = 0.0
        for slot in slots:  # last, as all above may run out of memory: a request enters or it does not
            self.rows[slot : slot + 1] = [Row(new[slot])]
            self._held[slot] = new[slot].tokens

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)


def _is_kept(prompt: Tokens, prefix: Tokens) -> bool:
    """Return whether a prompt is kept; short ones pass again as fast as they are copied."""
    return len(prompt) - len(prefix) > SHARED_LEAST
