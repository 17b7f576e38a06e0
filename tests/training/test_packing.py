"""Packed equals alone (logits, loss, gradients); an architecture that mixes rows is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.kernels.varlen_attention import PackedLayout, enable_varlen_attention, layout_arguments
from nomoat.models.base import load_model, load_tokenizer
from nomoat.training.collate import (
    ROUND_LABELS,
    ROUND_ROWS,
    ROUND_TOKENS,
    check_packing,
    choose_packing,
    collate_packed,
    collate_padded,
    count_labels,
    summed_loss,
)
from nomoat.training.packing import common_prefix, pack_step, schedule_steps
from tests.tiny import make_base, make_rows


def load(folder: Path, architecture: str = "llama") -> tuple[Any, list[TokenizedExample]]:
    files = make_base(folder, architecture)
    conversation = ChatTemplate(load_tokenizer(files))
    return load_model(files, precision="float32", device="cpu"), [conversation.render(row) for row in make_rows(9)]


def gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    model.requires_grad_(True)
    count = count_labels(batches)
    total = 0.0
    for batch in batches:
        loss = summed_loss(model, batch) / count
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal_work(model: Any, some: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert_equal(gradients(model, some), gradients(model, other))


def assert_equal(some: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    """Loss within 1e-5 relative, gradients within 1e-4 of the largest."""
    (loss, grads), (expected, reference) = some, other
    assert loss == pytest.approx(expected, rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in reference.values())
    for name, grad in grads.items():
        assert float((grad - reference[name]).abs().max()) <= 1e-4 * largest, name


def test_a_packed_step_gives_the_loss_and_gradients_of_its_rows_alone(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    assert_equal_work(model, [collate_packed(rows[:4]), collate_packed(rows[4:])], [collate_packed([row]) for row in rows])


def test_a_padded_step_gives_the_loss_and_gradients_of_its_rows_alone(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    assert len({row.length for row in rows}) > 1  # else nothing is padded and nothing is tested
    assert_equal_work(model, [collate_padded(rows, 0)], [collate_packed([row]) for row in rows])


def test_the_loss_is_that_of_all_logits_masked_by_position(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    ids = torch.tensor([[*rows[0].prompt_ids, *rows[0].completion_ids]])
    labels = ids.clone()
    labels[0, : len(rows[0].prompt_ids)] = -100
    expected = model(input_ids=ids, labels=labels).loss
    assert summed_loss(model, collate_packed(rows[:1])) / len(rows[0].completion_ids) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_rows_side_by_side_for_attention_give_the_work_of_rows_alone(tmp_path: Path, architecture: str, shared: bool) -> None:
    model, rows = load(tmp_path, architecture)
    alone = gradients(model, [collate_packed([row]) for row in rows])
    packs = [collate_packed(rows[:4], shared=shared), collate_packed(rows[4:], shared=shared)]
    assert bool(packs[0]["row_layout"].shared) is shared and packs[0]["tokens_seen"] == sum(row.length for row in rows[:4])
    assert enable_varlen_attention(model) and layout_arguments(model, packs[0])
    assert_equal(gradients(model, packs), alone)


@pytest.mark.parametrize(("by_row", "shared"), [(False, False), (True, False), (True, True)])
def test_round_lengths_change_shapes_and_nothing_else(tmp_path: Path, by_row: bool, shared: bool) -> None:
    model, rows = load(tmp_path)
    alone = gradients(model, [collate_packed([row]) for row in rows])
    packs = [collate_packed(rows[:4], shared=shared, rounded=True), collate_packed(rows[4:], shared=shared, rounded=True)]
    for pack, of in zip(packs, (rows[:4], rows[4:]), strict=True):
        sizes = (pack["input_ids"].shape[1] % ROUND_TOKENS, len(pack["targets"]) % ROUND_LABELS, pack["row_layout"].longest % ROUND_ROWS)
        assert sizes == (0, 0, 0)
        assert pack["tokens_seen"] == sum(row.length for row in of)
        assert count_labels([pack]) == sum(len(row.completion_ids) for row in of) < len(pack["targets"])
    assert not by_row or enable_varlen_attention(model)
    assert_equal(gradients(model, packs), alone)


def test_packing_is_shown_safe_on_llama(tmp_path: Path) -> None:
    safe, reason = check_packing(*load(tmp_path))
    assert safe, reason


def test_attention_dropout_keeps_the_stock_path_and_is_never_mixed_up_in_silence(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    model.config.attention_dropout = 0.1
    assert not enable_varlen_attention(model) and "row by row" not in choose_packing(model, rows, "cpu")[1]
    model.config.attention_dropout = 0.0
    assert enable_varlen_attention(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # as under a name that no configuration is known to use
    with pytest.raises(ValueError, match="cannot tell them apart"):
        summed_loss(model.train(), collate_packed(rows, shared=True))


def test_an_architecture_with_a_sliding_window_keeps_its_own_attention_and_shares_nothing(tmp_path: Path) -> None:
    model, rows = load(tmp_path, "gemma3_text")
    alone = gradients(model, [collate_packed([row]) for row in rows])
    safe, reason = choose_packing(model, rows, "cpu")
    assert safe and "row by row" not in reason
    with pytest.raises(ValueError, match="share their first tokens"):
        summed_loss(model, collate_packed(rows, shared=True))
    assert_equal(gradients(model, [collate_packed(rows[:4]), collate_packed(rows[4:])]), alone)


def test_a_common_prefix_leaves_every_prompt_a_token_of_its_own() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4, 5)]) == 2
    assert common_prefix([(1, 2), (1, 2, 3)]) == 1
    assert common_prefix([(7,), (7,)]) == 0


def test_where_rows_cannot_stand_side_by_side_the_stock_attention_is_tried(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    assert "row by row" in choose_packing(model, rows, "cpu")[1]
    assert "row by row" not in choose_packing(model, rows, "cuda")[1]  # what other devices do best has not been measured
    falcon, rows = load(tmp_path / "falcon", "falcon")
    packed, _ = choose_packing(falcon, rows, "cpu")
    assert not packed and falcon.config._attn_implementation == "sdpa"


def test_a_wrong_layout_is_found_out(tmp_path: Path) -> None:
    model, rows = load(tmp_path)
    batch = collate_packed(rows[:2])
    enable_varlen_attention(model)
    right = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], **layout_arguments(model, batch)).logits
    mixed = PackedLayout([rows[0].length + rows[1].length])
    wrong = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], row_layout=mixed).logits
    assert float((right - wrong).abs().max()) > 1e-3  # so the layout is what keeps rows apart, not the mask


def test_an_architecture_that_mixes_packed_rows_falls_back(tmp_path: Path) -> None:
    safe, reason = check_packing(*load(tmp_path, "falcon"))
    assert not safe and "mixes packed rows" in reason


def test_packs_hold_every_row_once_and_never_too_much() -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(100)]
    plan = schedule_steps(lengths, epochs=2, batch_tokens=256, pack_tokens=64, seed=1)
    used = [number for step in plan.steps for pack in step for number in pack]
    assert sorted(used) == sorted(list(range(100)) * 2)
    assert all(sum(lengths[number] for number in pack) <= 64 for step in plan.steps for pack in step)
    assert all(sum(lengths[number] for pack in step for number in pack) <= 256 for step in plan.steps)
    assert plan.epoch_ends[-1] == len(plan.steps)


def test_the_plan_depends_on_the_seed_and_on_nothing_else() -> None:
    def make(seed: int, epochs: float = 1.5) -> Any:
        return schedule_steps([10] * 40, epochs=epochs, batch_tokens=64, pack_tokens=32, seed=seed)

    assert make(1) == make(1) and make(1) != make(2)
    assert sum(len(pack) for step in make(1).steps for pack in step) == 60  # one and a half epochs of 40 rows


def test_first_fit_fills_the_room_that_is_left() -> None:
    assert pack_step([0, 1, 2, 3], [30, 60, 40, 70], 100) == ((3, 0), (1, 2))
