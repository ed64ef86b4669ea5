"""Keys and values of a batch whose rows come and go: one slot a row, one column a position.

    slot 0   Q u e s t i o n ?  W r i t i n g .        the token at position p of a row is in column p,
    slot 1   A s k i n g ?  W                          so rows need no padding at the left, and nothing
    slot 2   L o n g e r   q u e s t i o n ?  W r      moves when one of them ends or another begins

A prompt is filled in by a forward pass over whole prompts; each step then writes one column per row
and lets the row attend to columns up to its own position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GRAIN = 16  # columns are shown and stored in multiples of this: fewer shapes, aligned masks


class Slots(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """The cache that a Hugging Face model is handed; `fill` or `step` says what it will bring."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(self))
        self.num_slots = num_slots
        self.columns = 0  # stored
        self.width = 0  # shown in a step: the longest row, rounded up
        self.filling = False
        self.rows = torch.empty(0, dtype=torch.long)
        self.source: Tensor = self.rows  # filling: which prompt of the batch each slot gets
        self.positions: Tensor = self.rows  # stepping: the column that each row writes

    def fill(self, rows: Tensor, source: Tensor, length: int) -> None:
        """The next pass brings prompts from position 0, right-padded: source[i] for slot rows[i]."""
        self._reserve(length)
        self.filling, self.rows, self.source = True, rows, source

    def step(self, positions: Tensor, longest: int) -> None:
        """The next pass brings one token for each of the first slots, at these positions [n]."""
        self.width = -(-longest // _GRAIN) * _GRAIN
        self._reserve(self.width)
        rows = torch.arange(len(positions), device=positions.device)
        self.filling, self.rows, self.positions = False, rows, positions

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` to slots `target`, whole."""
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

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
        if slots.filling:  # a prompt attends to itself alone
            length = key_states.shape[2]
            self.keys[slots.rows, :, :length] = key_states[slots.source]
            self.values[slots.rows, :, :length] = value_states[slots.source]
            return key_states, value_states
        self.keys[slots.rows, :, slots.positions] = key_states.squeeze(2)
        self.values[slots.rows, :, slots.positions] = value_states.squeeze(2)
        num_rows, width = len(slots.rows), slots.width
        return self.keys[:num_rows, :, :width], self.values[:num_rows, :, :width]

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
        """0: prompts start here, and steps bring their own masks and positions."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask that a model builds by itself: for prompts only."""
        return query_length, 0

    def get_max_length(self) -> int:
        """-1: no limit but memory's."""
        return -1
