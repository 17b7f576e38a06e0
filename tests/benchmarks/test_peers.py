"""The arms of the training benchmark: the same rows in every form, the same adapter, the same losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.benchmarks.peers import BUILDERS, BenchWork, as_example, as_packed_example, ours, plain_trainer
from nomoat.benchmarks.results import ARMS
from nomoat.kernels.cross_entropy import IGNORED
from nomoat.models.adapter import adapter_tensors
from tests.benchmarks.make_work import make_small_work


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> BenchWork:
    return make_small_work(tmp_path_factory.mktemp("bench"))


def test_every_arm_can_be_built() -> None:
    assert list(BUILDERS) == list(ARMS)


def test_plain_trainer_starts_from_our_adapter_and_pads_the_rows_of_one_step(work: BenchWork) -> None:
    arm, mine = plain_trainer(work), ours(work)
    theirs, own = adapter_tensors(arm.trainer.model), adapter_tensors(mine.trainer.model)
    assert theirs.keys() == own.keys() and all(torch.equal(theirs[name], own[name]) for name in own)
    [*batches] = arm.trainer.get_train_dataloader()
    assert len(batches) == len(work.steps) and any(len(step) > 1 for step in work.steps)
    for batch, step in zip(batches, work.steps, strict=True):
        assert batch["input_ids"].shape == (len(step), max(row.length for row in step))
        assert batch["attention_mask"].sum(1).tolist() == [row.length for row in step]
        for row, ids, labels in zip(step, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            assert ids[: row.length] == [*row.prompt_ids, *row.completion_ids]
            assert [label for label in labels if label != IGNORED] == list(row.completion_ids)


@pytest.mark.parametrize("method", ["dora", "rslora", "pissa", "full"])
def test_peers_train_what_ours_trains(tmp_path: Path, method: str) -> None:
    work = make_small_work(tmp_path, lora={"method": method})
    peer, mine = plain_trainer(work), ours(work)
    assert peer.mean_loss(work.rows) == pytest.approx(mine.mean_loss(work.rows), abs=1e-4)
    counts = [sum(p.numel() for p in arm.trainer.model.parameters() if p.requires_grad) for arm in (peer, mine)]
    assert counts[0] == counts[1]


def test_a_base_without_a_padding_token_is_padded_with_another(work: BenchWork, tmp_path: Path) -> None:
    bare = dataclasses.replace(work, tokenizer=make_small_work(tmp_path, tokenizer={"pad": None}).tokenizer)
    assert bare.tokenizer.pad_token_id is not None
    assert plain_trainer(bare).mean_loss(work.rows) == pytest.approx(plain_trainer(work).mean_loss(work.rows), abs=1e-5)


def test_a_packed_example_is_its_rows_end_to_end(work: BenchWork) -> None:
    step = max(work.steps, key=len)
    packed: dict[str, Any] = as_packed_example(step)
    assert packed["seq_lengths"] == [row.length for row in step]
    for name in ("input_ids", "labels"):
        assert packed[name] == [token for row in step for token in as_example(row)[name]]


def test_peers_train_with_our_arguments(work: BenchWork) -> None:
    arguments, expected = plain_trainer(work).trainer.args, ours(work).trainer.args
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "lr_scheduler_type", "max_steps", "optim", "seed"):
        assert getattr(arguments, name) == getattr(expected, name), name
    assert arguments.learning_rate == 1e-4 and arguments.max_steps == 7 and arguments.lr_scheduler_type.startswith("constant")
