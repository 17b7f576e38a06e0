"""A key-value cache for decoding that is not copied for every token; it replaces transformers' `DynamicCache`.

transformers' own layer concatenates old and new states into a fresh tensor in each step: for 32 sequences of 350 tokens and a model of
30 layers with 3 key heads of 64 that moves 0.5 GB per token (2 x 30 x 32 x 3 x 350 x 64 x 4 bytes). Here states are written into
preallocated tensors, and reordering allocates spare tokens too: a block that is freed for a larger one stays a hole in the heap, as
large as the whole cache. `hardware.kernels: plain` decodes with transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # tokens that are allocated beyond those needed


def preallocated_cache() -> Cache:
    """An empty cache; without a model's config, so that every architecture gets plain layers (masks do any sliding)."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


class PreallocatedLayer(DynamicLayer):
    """`keys` and `values` (batch, heads, tokens, head size) are views of the first tokens of larger tensors."""

    keys: Any
    values: Any
    _buffers: tuple[Any, Any] = (None, None)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append states (batch, heads, new tokens, head size); returns all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_buffer, self.keys = _append(self._buffers[0], self.keys, key_states)
        value_buffer, self.values = _append(self._buffers[1], self.values, value_states)
        self._buffers = (key_buffer, value_buffer)
        return self.keys, self.values

    def reindex(self, gather: Callable[[Any], Any]) -> None:
        """Replace keys and values by `gather` of each, whose last SPARE tokens are room for more: their content is not used."""
        self._buffers = gather(self.keys), gather(self.values)
        self.keys, self.values = (buffer[:, :, : buffer.shape[-2] - SPARE] for buffer in self._buffers)

    def batch_select_indices(self, indices: Any) -> None:
        """Keep the sequences `indices` (batch,), with the room they have."""
        tokens = self.keys.shape[-2]
        states = zip(self._buffers, (self.keys, self.values), strict=True)
        keys, values = ((buffer if _is_view_of(held, buffer) else held)[indices] for buffer, held in states)
        self.keys, self.values, self._buffers = keys[:, :, :tokens], values[:, :, :tokens], (keys, values)


def _is_view_of(held: Any, buffer: Any) -> bool:
    """Whether `held` is the beginning of `buffer`: methods of DynamicLayer that are not overridden replace keys and values."""
    return buffer is not None and buffer.data_ptr() == held.data_ptr() and buffer.shape[:2] == held.shape[:2]


def _append(buffer: Any, held: Any, new: Any) -> tuple[Any, Any]:
    """The buffer, a larger one if need be, and the view of `held` and `new` in it."""
    before = held.shape[-2] if held.numel() else 0
    after = before + new.shape[-2]
    if not _is_view_of(held, buffer) or after > buffer.shape[-2]:
        batch, heads, _, size = new.shape
        buffer = new.new_empty(batch, heads, after + SPARE, size)
        if before:
            buffer[:, :, :before] = held
    buffer[:, :, before:after] = new
    return buffer, buffer[:, :, :after]
