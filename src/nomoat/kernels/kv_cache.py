"""A key-value cache for decoding that does not copy itself at every token.

transformers' own layer joins old and new states into a fresh tensor each step: for 32 rows of 350 tokens of a 30-layer model with
3 key heads of 64 that is 0.5 GB moved a token (2 x 30 x 32 x 3 x 350 x 64 x 4 bytes). Here states are written into spare room, and
whoever rearranges them leaves room too: a block that is freed for a larger one stays a hole in the heap, as large as the whole cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # tokens of room made at a time


class PreallocatedLayer(DynamicLayer):
    """`keys` and `values` (rows, heads, tokens, size) are views of the beginning of larger tensors."""

    keys: Any
    values: Any
    _rooms: tuple[Any, Any] = (None, None)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append states (rows, heads, new tokens, size); returns all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_room, self.keys = _append(self._rooms[0], self.keys, key_states)
        value_room, self.values = _append(self._rooms[1], self.values, value_states)
        self._rooms = (key_room, value_room)
        return self.keys, self.values

    def rearrange(self, taken: Callable[[Any], Any]) -> None:
        """Replace keys and values by `taken` of each, (rows, heads, tokens with SPARE more, size), the spare ones holding anything."""
        rooms = taken(self.keys), taken(self.values)
        self.keys, self.values = (room[:, :, : room.shape[-2] - SPARE] for room in rooms)
        self._rooms = rooms

    def batch_select_indices(self, indices: Any) -> None:
        """Keep the rows `indices` (rows,), with the room they have."""
        have, rooms = self.keys.shape[-2], []
        for room, held in zip(self._rooms, (self.keys, self.values), strict=True):
            rooms.append((room if _begins(room, held) else held)[indices])
        self.keys, self.values = (room[:, :, :have] for room in rooms)
        self._rooms = (rooms[0], rooms[1])


def _begins(room: Any, held: Any) -> bool:
    """Whether `held` is the beginning of `room`, row by row."""
    return room is not None and room.data_ptr() == held.data_ptr() and room.shape[:2] == held.shape[:2]


def _append(room: Any, held: Any, new: Any) -> tuple[Any, Any]:
    """The room, larger if need be, and its beginning with `new` after what is `held`."""
    have = held.shape[-2] if held.numel() else 0
    need = have + new.shape[-2]
    if not _begins(room, held) or need > room.shape[-2]:
        rows, heads, _, size = new.shape
        room = new.new_empty(rows, heads, need + SPARE, size)
        if have:
            room[:, :, :have] = held
    room[:, :, have:need] = new
    return room, room[:, :, :need]


def preallocated_cache() -> Cache:
    """An empty cache; no model config, so plain layers for every architecture (masks do any sliding)."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)
