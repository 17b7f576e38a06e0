"""The roomy cache says what transformers' own says, and asks for no memory while there is room."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from nomoat.kernels.kv_cache import SPARE, PreallocatedLayer

ROWS, HEADS, SIZE = 4, 2, 8


def states(tokens: int, *, rows: int = ROWS, seed: int = 0) -> Any:
    return torch.randn(rows, HEADS, tokens, SIZE, generator=torch.Generator().manual_seed(seed))


def same(ours: PreallocatedLayer, theirs: DynamicLayer) -> bool:
    return torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def blocks(layer: PreallocatedLayer) -> set[int]:
    return {held.untyped_storage().data_ptr() for held in (layer.keys, layer.values)}


def test_tokens_come_and_rows_go_as_in_the_librarys_cache() -> None:
    ours, theirs = PreallocatedLayer(), DynamicLayer()
    for turn, (tokens, kept) in enumerate(((5, [0, 1, 3]), (1, [0, 1, 2]), (SPARE + 3, [2, 0]), (1, [1]))):
        rows = ROWS if turn == 0 else theirs.keys.shape[0]
        new = states(tokens, rows=rows, seed=turn), states(tokens, rows=rows, seed=100 + turn)
        for layer in (ours, theirs):
            layer.update(*new)
        assert same(ours, theirs)
        for layer in (ours, theirs):
            layer.batch_select_indices(torch.tensor(kept))
        assert same(ours, theirs) and ours.keys.shape[0] == len(kept)


def test_rearranged_states_have_room_for_more_and_keep_it_when_rows_leave() -> None:
    layer = PreallocatedLayer()
    layer.update(states(6), states(6, seed=1))
    held = layer.keys
    order = torch.tensor([2, 0, 1, 5] + [0] * SPARE)
    layer.rearrange(lambda one: one[:, :, order])
    assert torch.equal(layer.keys, held[:, :, [2, 0, 1, 5]])
    before = blocks(layer)
    for turn in range(SPARE // 2):
        layer.update(states(1, seed=turn), states(1, seed=turn))
    assert blocks(layer) == before, "nothing was moved"
    layer.batch_select_indices(torch.tensor([1, 3]))
    after = blocks(layer)
    for turn in range(SPARE // 2):
        layer.update(states(1, rows=2, seed=turn), states(1, rows=2, seed=turn))
    assert blocks(layer) == after and layer.keys.shape == (2, HEADS, 4 + SPARE, SIZE)
    layer.update(states(1, rows=2), states(1, rows=2))
    assert blocks(layer) != after and layer.keys.shape[2] == 5 + SPARE, "and then there is more room"
