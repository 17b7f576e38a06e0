"""Attention within the examples of a pack gives the loss and gradients of the examples alone, or leaves the model's own in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.kernels.varlen_attention import PackedLayout, enable_varlen_attention, layout_arguments, uses_varlen_attention
from nomoat.training.collate import collate_packed, summed_loss
from tests.gradients import assert_same_work, load, work_of


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_a_pack_gives_the_loss_and_gradients_of_its_examples_alone(tmp_path: Path, architecture: str, shared: bool) -> None:
    model, rows = load(tmp_path, architecture)
    alone = work_of(model, [collate_packed([row]) for row in rows])
    packs = [collate_packed(rows[:4], shared=shared), collate_packed(rows[4:], shared=shared)]
    assert bool(packs[0]["layout"].prefix) is shared and packs[0]["tokens_seen"] == sum(row.length for row in rows[:4])
    assert enable_varlen_attention(model) and layout_arguments(model, packs[0])
    assert_same_work(work_of(model, packs), alone)


def test_dropout_in_the_attention_keeps_the_stock_path(tmp_path: Path) -> None:
    model, _ = load(tmp_path)
    model.config.attention_dropout = 0.1
    assert not enable_varlen_attention(model) and not uses_varlen_attention(model)


def test_dropout_that_no_configuration_names_is_an_error_and_no_mixture(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    assert enable_varlen_attention(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="cannot keep them apart"):
        summed_loss(model.train(), collate_packed(rows, shared=True))


@pytest.mark.parametrize("architecture", ["falcon", "bloom"])  # they implement their own attention
def test_an_architecture_without_the_attention_interface_is_left_as_it_was(tmp_path: Path, architecture: str) -> None:
    model, rows = load(tmp_path, architecture)
    assert not enable_varlen_attention(model)
    with pytest.raises(ValueError, match="does not use varlen attention"):
        summed_loss(model, collate_packed(rows, shared=True))


def test_the_layout_and_not_the_mask_keeps_examples_apart(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    batch = collate_packed(rows[:2])
    enable_varlen_attention(model)
    tokens = {name: batch[name] for name in ("input_ids", "position_ids")}
    right = model(**tokens, **layout_arguments(model, batch)).logits
    wrong = model(**tokens, packed_layout=PackedLayout([rows[0].length + rows[1].length])).logits
    assert float((right - wrong).abs().max()) > 1e-3
