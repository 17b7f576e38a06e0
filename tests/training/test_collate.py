"""Packed and padded batches give the loss and gradients of their examples alone; an architecture that mixes packed examples is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nomoat.kernels.varlen_attention import enable_varlen_attention, uses_varlen_attention
from nomoat.training.collate import (
    ROUND_EXAMPLE,
    ROUND_LABELS,
    ROUND_TOKENS,
    check_packing,
    choose_packing,
    collate_packed,
    collate_padded,
    count_labels,
    summed_loss,
)
from tests.gradients import assert_same_work, load, work_of


def test_a_packed_step_gives_the_loss_and_gradients_of_its_examples_alone(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    packed = work_of(model, [collate_packed(rows[:4]), collate_packed(rows[4:])])
    assert_same_work(packed, work_of(model, [collate_packed([row]) for row in rows]))


def test_a_padded_step_gives_the_loss_and_gradients_of_its_examples_alone(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    assert len({row.length for row in rows}) > 1  # otherwise nothing is padded and nothing is tested
    assert_same_work(work_of(model, [collate_padded(rows, 0)]), work_of(model, [collate_packed([row]) for row in rows]))


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_the_loss_is_transformers_own(tmp_path: Path, kernels: str) -> None:
    model, rows = load(tmp_path)
    ids = torch.tensor([[*rows[0].prompt_ids, *rows[0].completion_ids]])
    labels = ids.clone()
    labels[0, : len(rows[0].prompt_ids)] = -100
    expected = float(model(input_ids=ids, labels=labels).loss)
    loss = summed_loss(model, collate_packed(rows[:1]), kernels=kernels) / len(rows[0].completion_ids)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("varlen", "shared"), [(False, False), (True, False), (True, True)])
def test_round_lengths_change_shapes_and_nothing_else(tmp_path: Path, varlen: bool, shared: bool) -> None:
    model, rows = load(tmp_path)
    alone = work_of(model, [collate_packed([row]) for row in rows])
    parts = rows[:4], rows[4:]
    packs = [collate_packed(part, shared=shared, rounded=True) for part in parts]
    for pack, part in zip(packs, parts, strict=True):
        sizes = (pack["input_ids"].shape[1] % ROUND_TOKENS, len(pack["targets"]) % ROUND_LABELS, pack["layout"].longest % ROUND_EXAMPLE)
        assert sizes == (0, 0, 0)
        assert pack["tokens_seen"] == sum(row.length for row in part)
        assert count_labels([pack]) == sum(len(row.completion_ids) for row in part) < len(pack["targets"])
    assert not varlen or enable_varlen_attention(model)
    assert_same_work(work_of(model, packs), alone)


def test_packing_is_safe_on_llama_with_either_attention(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    safe, reason = check_packing(model, rows)
    assert safe, reason
    safe, reason = choose_packing(model, rows, "cpu")
    assert safe and reason.endswith("varlen attention") and uses_varlen_attention(model)


@pytest.mark.parametrize(("device", "kernels"), [("cuda", "auto"), ("cpu", "plain")])  # what suits other devices has not been measured
def test_other_devices_and_plain_kernels_pack_with_the_stock_attention(tmp_path: Path, device: str, kernels: str) -> None:
    model, rows = load(tmp_path)
    safe, reason = choose_packing(model, rows, device, kernels=kernels)
    assert safe and "varlen" not in reason and not uses_varlen_attention(model)


def test_dropout_in_the_attention_keeps_the_stock_attention(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    model.config.attention_dropout = 0.1
    assert "varlen" not in choose_packing(model, rows, "cpu")[1] and not uses_varlen_attention(model)


def test_an_architecture_with_a_sliding_window_keeps_its_own_attention_and_shares_no_prefix(tmp_path: Path) -> None:
    model, rows = load(tmp_path, "gemma3_text")
    alone = work_of(model, [collate_packed([row]) for row in rows])
    safe, reason = choose_packing(model, rows, "cpu")
    assert safe and "varlen" not in reason
    with pytest.raises(ValueError, match="share a prefix"):
        summed_loss(model, collate_packed(rows, shared=True))
    assert_same_work(work_of(model, [collate_packed(rows[:4]), collate_packed(rows[4:])]), alone)


def test_an_architecture_that_mixes_packed_examples_is_padded(tmp_path: Path) -> None:
    model, rows = load(tmp_path, "falcon")
    safe, reason = choose_packing(model, rows, "cpu")
    assert not safe and "mixes packed examples" in reason
