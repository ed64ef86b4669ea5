"""Keys and values of a batch whose rows come and go: one slot a row, one column a position.

    slot 0   Q u e s t i o n ?  W r i t i n g .        the token at position p of a row is in column p,
    slot 1   A s k i n g ?  W                          so rows need no padding at the left, and nothing
    slot 2   L o n g e r   q u e s t i o n ?  W r      moves when one of them ends or another begins

A prompt is filled in by a forward pass over whole prompts, or over what follows a prefix that is kept:
prompts that share their first tokens, such as worked examples, pass those once. Each step then writes
one column per row and lets the row attend to columns up to its own position.

A pass that can attend in two parts leaves prefixes `apart`: a slot holds only what follows its prefix,
and all rows attend to the one copy of it. For other models each slot holds a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

MOST_PREFIXES = 4  # kept at a time: plain and hinted prompts, with and without worked examples
_GRAIN = 16  # columns are shown and stored in multiples of this: fewer shapes, aligned masks


class Slots(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """The cache that a Hugging Face model is handed; `fill` or `step` says what it will bring."""

    def __init__(self, num_slots: int, *, apart: bool = False) -> None:
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(self))
        self.num_slots = num_slots
        self.apart = apart
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
        self.positions: Tensor = self.rows  # stepping: the column that each row writes

    def fill(self, rows: Tensor, source: Tensor, length: int, prefix: tuple[int, ...] = ()) -> None:
        """The next pass brings prompts, right-padded: source[i] for slot rows[i].

        They begin at position 0, or after a prefix that was recorded.
        """
        self._reserve(length if self.apart else len(prefix) + length)
        self.filling, self.rows, self.source = True, rows, source
        self.recording, self.prefix = (), prefix
        self.leave_out(prefix if self.apart else (), rows.tolist())
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
        self.filling, self.recording, self.prefix = True, prefix, ()
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
        self.filling, self.rows, self.positions = False, rows, positions
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

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` to slots `target`, whole."""
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]
        for whence, where in zip(source.tolist(), target.tolist(), strict=True):
            self.leave_out(self.apart_from[whence], [where])

    def _reserve(self, columns: int) -> None:
        if columns > self.columns:  # by half more each time, so that copies stay few
            columns = max(columns, self.columns + self.columns // 2)
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
        if slots.filling:  # a prompt attends to itself alone, and to the prefix that it begins with
            if slots.apart:
                self._store(key_states, value_states)
            if slots.prefix:
                num = len(key_states)
                before = [part.expand(num, -1, -1, -1) for part in self.prefixes[slots.prefix]]
                key_states = torch.cat((before[0], key_states), 2)
                value_states = torch.cat((before[1], value_states), 2)
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
        return like.new_zeros(shape)

    def get_seq_length(self) -> int:
        """Return where prompts start: after their prefix. Steps bring their own masks and positions."""
        return len(self.slots.prefix) if self.slots.filling else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask that a model builds by itself: for prompts only."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: no limit but memory's."""
        return -1
