"""Keys and values of a batch whose rows come and go: one slot a row, one column a position.

    slot 0   Q u e s t i o n ?  W r i t i n g .        the token at position p of a row is in column p,
    slot 1   A s k i n g ?  W                          so rows need no padding at the left, and nothing
    slot 2   L o n g e r   q u e s t i o n ?  W r      moves when one of them ends or another begins

A prompt is filled in by a forward pass over whole prompts, or over what follows a prefix that is kept:
prompts that share their first tokens, such as worked examples, pass those once. A slot may also be given
the first tokens of its prompt (see prefix_tree.py) and be extended by the rest. Each step then writes
one column per row and lets the row attend to columns up to its own position.

A pass that can attend in two parts leaves prefixes `apart`: a slot holds only what follows its prefix,
and all rows attend to the one copy of it. For other models each slot holds a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import proxy

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from femtune.engines.hf.memory import zeros
from femtune.engines.hf.prefix_tree import Piece

MOST_PREFIXES = 4  # kept at a time: plain and hinted prompts, with and without worked examples
_GRAIN = 16  # columns are shown and stored in multiples of this: fewer shapes, aligned masks


class Slots(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """The cache that a Hugging Face model is handed; `fill` or `step` says what it will bring.

    `ahead` columns are stored beyond those that are needed, where these cost nothing until written.
    """

    def __init__(self, num_slots: int, *, apart: bool = False, ahead: int = 0) -> None:
        own: Any = proxy(self)  # in a cycle, layers would hold their memory until the collector runs
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(own))
        self.num_slots = num_slots
        self.apart, self.ahead = apart, ahead
        self.columns = 0  # stored
        self.width = 0  # shown in a step: the longest row, rounded up
        self.filling = False
        self.recording: tuple[int, ...] = ()  # the prefix whose keys and values the pass brings
        self.prefix: tuple[int, ...] = ()  # filling: what the prompts begin with, and the pass does not
        self.prefixes: list[tuple[int, ...]] = []  # kept, the latest used last
        self.apart_from: list[tuple[int, ...]] = [()] * num_slots  # the prefix that a slot leaves out
        self._groups: list[tuple[tuple[int, ...], Tensor | None]] | None = None  # None: to be made
        self.rows = torch.empty(0, dtype=torch.long)
        self._left_out = self.rows  # tokens of the prefix that each slot leaves out [n]
        self.source: Tensor = self.rows  # filling: which prompt of the batch each slot gets
        # filling after a slot's own first tokens: batch row, token, slot and column of each [4, tokens]
        self.places: Tensor | None = None
        self.positions: Tensor = self.rows  # stepping: the column that each row writes

    def fill(self, rows: Tensor, source: Tensor, length: int, prefix: tuple[int, ...] = ()) -> None:
        """The next pass brings prompts, right-padded: source[i] for slot rows[i].

        They begin at position 0, or after a prefix that was recorded.
        """
        self._reserve(length if self.apart else len(prefix) + length)
        self.filling, self.rows, self.source, self.places = True, rows, source, None
        self.recording = ()
        self._begin_with(prefix, rows.tolist())

    def extend(
        self, rows: Tensor, starts: Sequence[int], stops: Sequence[int], prefix: tuple[int, ...] = ()
    ) -> int:
        """The next pass brings tokens starts[i] to stops[i] - 1 of slot rows[i] [n], right-padded.

        `write` has given the slots what is before these. Return how many columns the pass attends to:
        those of the prefix and of the longest row.
        """
        left_out = len(prefix) if self.apart else 0
        self._reserve(max(stops) - left_out)
        places = [
            (i, nth, row, start + nth - left_out)
            for i, (row, start, stop) in enumerate(zip(rows.tolist(), starts, stops, strict=True))
            for nth in range(stop - start)
        ]
        self.filling, self.rows, self.recording = True, rows, ()
        self.places = torch.tensor(places, device=rows.device).T
        self.width = max(stops) - left_out
        self._begin_with(prefix if self.apart else (), rows.tolist())
        return max(stops)

    def write(self, slot: int, pieces: Sequence[Piece], prefix: tuple[int, ...] = ()) -> None:
        """Put keys and values of the first tokens of a row, which begins with a prefix, into a slot."""
        self._begin_with(prefix if self.apart else (), [slot])
        left_out, at = len(self.apart_from[slot]), 0
        self._reserve(sum(num for _, num in pieces) - left_out)
        for kept, num in pieces:
            skipped = min(num, max(0, left_out - at))
            columns = slice(at + skipped - left_out, at + num - left_out)
            if skipped < num:
                for held, part in zip(self._held, kept, strict=True):
                    held[slot, :, columns] = part[:, skipped:num]
            at += num

    def read(self, slot: int, start: int, stop: int) -> Tensor:
        """Return a copy of what `prefix_tree.py` keeps of a row's tokens `start` to `stop` - 1."""
        prefix = self.apart_from[slot]
        columns = slice(max(0, start - len(prefix)), max(0, stop - len(prefix)))
        own = torch.stack([held[slot, :, columns] for held in self._held])
        if start >= len(prefix):
            return own
        before = [part[0, :, start:stop] for layer in self.layers for part in layer.prefixes[prefix]]
        return torch.cat((torch.stack(before), own), 2)

    @cached_property
    def is_uniform(self) -> bool:
        """Return True if keys and values have one shape in all layers, which `read` needs."""
        return len({(held.shape, held.dtype) for held in self._held}) == 1

    @property
    def _held(self) -> list[Tensor]:
        """Keys and values of each layer in turn, [slots, heads, columns, head_dim] each."""
        return [held for layer in self.layers for held in (layer.keys, layer.values)]

    def _begin_with(self, prefix: tuple[int, ...], slots: Sequence[int]) -> None:
        self.prefix = prefix
        self.leave_out(prefix if self.apart else (), slots)
        if prefix:
            self.prefixes.remove(prefix)
            self.prefixes.append(prefix)

    def leave_out(self, prefix: tuple[int, ...], slots: Sequence[int]) -> None:
        """Say which prefix slots leave out; () for none."""
        for slot in slots:
            self.apart_from[slot] = prefix
        self._groups = None

    def record(self, prefix: tuple[int, ...]) -> None:
        """The next pass brings one row, a prefix that is kept for prompts that begin with it."""
        self._reserve(0 if self.apart else len(prefix))
        self.filling, self.recording, self.prefix, self.places = True, prefix, (), None
        self.prefixes.append(prefix)
        needed = {*self.apart_from, *self.prefixes[-MOST_PREFIXES:]}
        for old in [old for old in self.prefixes if old not in needed]:
            self.prefixes.remove(old)
            for layer in self.layers:
                layer.prefixes.pop(old, None)

    def step(self, positions: Tensor, longest: int) -> Tensor:
        """The next pass brings one token for each of the first slots, at these positions [n].

        Return the column that each row writes [n], which is below `longest`.
        """
        num_rows = len(positions)
        if self.apart and self._grouped(num_rows, positions.device):
            positions = positions - self._left_out
        self.width = -(-longest // _GRAIN) * _GRAIN
        self._reserve(self.width)
        rows = torch.arange(num_rows, device=positions.device)
        self.filling, self.rows, self.positions, self.places = False, rows, positions, None
        return positions

    def beginnings(self, layer: int) -> list[tuple[Tensor | None, Tensor, Tensor]]:
        """Return what rows of this step attend to besides their slots, in a layer.

        Each is a prefix: the rows [m] that begin with it (None: all), and its keys and values
        [1, heads, tokens, head_dim].
        """
        kept = self.layers[layer].prefixes
        groups = self._grouped(len(self.rows), self.rows.device)
        return [(rows, *kept[prefix]) for prefix, rows in groups]

    def _grouped(
        self, num_rows: int, device: torch.device
    ) -> list[tuple[tuple[int, ...], Tensor | None]]:
        """Return the prefixes that the first slots leave out, each with its rows (None: all)."""
        if self._groups is None or len(self._left_out) != num_rows:
            prefixes = self.apart_from[:num_rows]
            members: dict[tuple[int, ...], list[int]] = {}
            for row, prefix in enumerate(prefixes):
                members.setdefault(prefix, []).append(row)
            self._left_out = torch.tensor([len(prefix) for prefix in prefixes], device=device)
            self._groups = [
                (prefix, None if len(rows) == num_rows else torch.tensor(rows, device=device))
                for prefix, rows in members.items()
                if prefix
            ]
        return self._groups

    def copy(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first columns of slots `source` to slots `target`."""
        for layer in self.layers:
            layer.keys[target, :, :columns] = layer.keys[source, :, :columns]
            layer.values[target, :, :columns] = layer.values[source, :, :columns]
        for whence, where in zip(source.tolist(), target.tolist(), strict=True):
            self.leave_out(self.apart_from[whence], [where])

    def _reserve(self, columns: int) -> None:
        if columns > self.columns:  # by half more each time, so that copies stay few
            columns = max(columns + self.ahead, self.columns + self.columns // 2)
            self.columns = -(-columns // _GRAIN) * _GRAIN
            for layer in self.layers:
                layer.reserve()


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # the same
    """One layer's keys and values: [slots, heads, columns, head_dim] each."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots
        self.prefixes: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # [1, heads, tokens, head_dim]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate on the first pass, which shows heads, head size, type and device."""
        self.keys = self._storage(key_states)
        self.values = self._storage(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what a pass brings [n, heads, tokens, head_dim]; gives what it attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        if slots.recording:
            self.prefixes[slots.recording] = key_states, value_states
            return key_states, value_states
        if slots.places is not None:
            return self._extend(slots.places, key_states, value_states)
        if slots.filling:  # a prompt attends to itself alone, and to the prefix that it begins with
            if slots.apart:
                self._store(key_states, value_states)
            key_states, value_states = self._after_prefix(key_states, value_states)
            if not slots.apart:
                self._store(key_states, value_states)
            return key_states, value_states
        self.keys[slots.rows, :, slots.positions] = key_states.squeeze(2)
        self.values[slots.rows, :, slots.positions] = value_states.squeeze(2)
        num_rows, width = len(slots.rows), slots.width
        return self.keys[:num_rows, :, :width], self.values[:num_rows, :, :width]

    def _store(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, length = self.slots, key_states.shape[2]
        self.keys[slots.rows, :, :length] = key_states[slots.source]
        self.values[slots.rows, :, :length] = value_states[slots.source]

    def _extend(self, places: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        rows, tokens, slots, columns = places
        for held, brought in zip((self.keys, self.values), states, strict=True):
            held[slots, :, columns] = brought[rows, :, tokens]
        width = self.slots.width
        keys, values = (held[self.slots.rows, :, :width] for held in (self.keys, self.values))
        return self._after_prefix(keys, values)

    def _after_prefix(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix of the pass before the keys and values of each row."""
        if not self.slots.prefix:
            return keys, values
        before = [part.expand(len(keys), -1, -1, -1) for part in self.prefixes[self.slots.prefix]]
        return torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)

    def reserve(self) -> None:
        """Room for the columns that are wanted now, those stored so far kept."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._storage(old)
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def _storage(self, like: Tensor) -> Tensor:
        # zeros: what a mask hides is still multiplied by 0, and must not be a stray NaN
        shape = self.slots.num_slots, like.shape[1], self.slots.columns, like.shape[3]
        return zeros(shape, like)

    def get_seq_length(self) -> int:
        """Return where prompts start: after their prefix. Other passes bring masks and positions."""
        return len(self.slots.prefix) if self.slots.filling else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask that a model builds by itself: for prompts only."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: no limit but memory's."""
        return -1
