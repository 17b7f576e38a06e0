"""The preallocated cache holds what transformers' own holds, and allocates nothing while there is room."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from nomoat.kernels.kv_cache import SPARE, PreallocatedLayer

BATCH, HEADS, SIZE = 4, 2, 8


def states(tokens: int, *, batch: int = BATCH, seed: int = 0) -> Any:
    return torch.randn(batch, HEADS, tokens, SIZE, generator=torch.Generator().manual_seed(seed))


def same(layer: PreallocatedLayer, reference: DynamicLayer) -> bool:
    return torch.equal(layer.keys, reference.keys) and torch.equal(layer.values, reference.values)


def blocks(layer: PreallocatedLayer) -> set[int]:
    return {states.untyped_storage().data_ptr() for states in (layer.keys, layer.values)}


def test_tokens_come_and_sequences_go_as_in_the_librarys_cache() -> None:
    layer, reference = PreallocatedLayer(), DynamicLayer()
    for turn, (tokens, kept) in enumerate(((5, [0, 1, 3]), (1, [0, 1, 2]), (SPARE + 3, [2, 0]), (1, [1]))):
        batch = BATCH if turn == 0 else reference.keys.shape[0]
        new = states(tokens, batch=batch, seed=turn), states(tokens, batch=batch, seed=100 + turn)
        for each in (layer, reference):
            each.update(*new)
        assert same(layer, reference)
        for each in (layer, reference):
            each.batch_select_indices(torch.tensor(kept))
        assert same(layer, reference) and layer.keys.shape[0] == len(kept)


def test_reindexed_states_have_room_for_more_and_keep_it_when_sequences_leave() -> None:
    layer = PreallocatedLayer()
    layer.update(states(6), states(6, seed=1))
    before = layer.keys
    order = torch.tensor([2, 0, 1, 5] + [0] * SPARE)
    layer.reindex(lambda all_states: all_states[:, :, order])
    assert torch.equal(layer.keys, before[:, :, [2, 0, 1, 5]])
    allocated = blocks(layer)
    for turn in range(SPARE // 2):
        layer.update(states(1, seed=turn), states(1, seed=turn))
    assert blocks(layer) == allocated, "nothing was moved"
    layer.batch_select_indices(torch.tensor([1, 3]))
    allocated = blocks(layer)
    for turn in range(SPARE // 2):
        layer.update(states(1, batch=2, seed=turn), states(1, batch=2, seed=turn))
    assert blocks(layer) == allocated and layer.keys.shape == (2, HEADS, 4 + SPARE, SIZE)
    layer.update(states(1, batch=2), states(1, batch=2))
    assert blocks(layer) != allocated and layer.keys.shape[2] == 5 + SPARE, "and then there is more room"
