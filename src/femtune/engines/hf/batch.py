"""Rows being written together by one Hugging Face model: admitted, stepped, ended.

    admit    prompts less their last token pass through the model at once, and fill their slots
    step     the newest token of each row (first, the prompt's last) passes; each row gets its next
    end      an ended row leaves a gap, which the next prompt takes, or else the batch's last row

A slot remembers whose prompt it holds, so that another attempt at the same problem starts at once.
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
from femtune.engines.hf.model import common_prefix, fill, spans, step_logits
from femtune.types import FinishReason, Request, Sampling

_PASS_TOKENS = 8192  # padded prompt tokens in one pass at most: bounds its memory
SHARED_LEAST = 64  # tokens that prompts share at least where these pass once
_SHARED_BY = 4  # prompts, at least, for a prefix that is not kept yet
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


class Batch:
    """At most `max_batch` rows, in slots 0, 1, ...; what a step needs of each lies in tensors [n]."""

    def __init__(self, model: Any, max_batch: int, ends: frozenset[int], sampling: Sampling) -> None:
        self.model = model
        self.max_batch = max_batch
        self.ends = ends
        self.sampling = sampling
        self.rows: list[Row] = []
        self._slots = Slots(max_batch, apart=isinstance(model, Fused))
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
            self._slots.copy(whence, where)
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
        slots_of: dict[tuple[int, ...], list[int]] = {}
        for slot, request in new.items():
            slots_of.setdefault(request.tokens, []).append(slot)
        alike: defaultdict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for prompt in sorted((prompt for prompt in slots_of if len(prompt) > 1), key=len):
            alike[prompt[:SHARED_LEAST]].append(prompt)
        groups: defaultdict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for prompts in alike.values():
            groups[self._prefix(prompts)] += prompts
        self._slots.leave_out(
            (), [slot for prompt in slots_of if len(prompt) == 1 for slot in slots_of[prompt]]
        )
        limit = most_pass_tokens(self.model.device)
        for prefix, prompts in groups.items():
            prompts.sort(key=len)
            for start, stop in spans([len(prompt) - len(prefix) for prompt in prompts], limit):
                chunk = prompts[start:stop]
                fill(self.model, self._slots, chunk, [slots_of[prompt] for prompt in chunk], prefix)

    def _prefix(self, prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
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
