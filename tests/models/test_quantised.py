"""Bases in 8 and 4 bits, trained for real on the CPU: the loss falls as it does in 16 bits, and the base stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nomoat.config.load import load_recipe
from nomoat.config.schema import Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example, load_shipped_set
from nomoat.io import read_jsonl
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import BaseFiles, fetch_base, load_model, load_tokenizer
from nomoat.models.device import has_bfloat16
from nomoat.training.collate import Collator
from nomoat.training.loop import TrainSpec, run_training
from tests.tiny import make_base, make_rows

ROOT = Path(__file__).resolve().parents[2]
NATIVE = "bfloat16" if has_bfloat16("cpu") else "float32"  # emulated bfloat16 takes ten times as long


def train(folder: Path, files: BaseFiles, rows: list[Example], precision: str, *, steps: int, rate: float) -> tuple[list[float], bool]:
    """Loss on the training rows before and after, and whether every tensor of the base is bit for bit what it was."""
    settings: dict[str, Any] = {"max_steps": steps, "epochs": float(steps), "batch_tokens": 512, "pack_tokens": 512, "validation_points": 2}
    recipe = Recipe(name="quantised", base=load_recipe(ROOT / "recipes" / "smollm2-135m.yaml").base, train=settings)
    talk = ChatTemplate(load_tokenizer(files))
    rendered = [talk.render(row) for row in rows]
    spec = TrainSpec(
        recipe=recipe,
        collator=Collator(rendered, rendered, True, talk.pad_id, 512),
        files=files,
        folder=folder,
        device="cpu",
        learning_rate=2e-3,
        validation_bytes=sum(len(row.completion) for row in rows),
    )
    folder.mkdir()
    model = attach_adapter(load_model(files, precision=precision, device="cpu"), recipe.lora, seed=0, files=files)
    frozen = {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}
    run_training(model, spec, count=lambda **_: None, console=Console(quiet=True))
    kept = all(value.equal(frozen[name]) for name, value in model.named_parameters() if name in frozen)
    found = [line["validation_loss"] for line in read_jsonl(folder / "metrics.jsonl") if "validation_loss" in line]
    return [found[0], found[-1]], kept


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_the_loss_falls_and_the_base_stays(tmp_path: Path, precision: str) -> None:
    files = make_base(tmp_path / "base")
    rows = make_rows(24)
    (before, after), kept = train(tmp_path / "quantised", files, rows, precision, steps=12, rate=1e-2)
    (_, exact), _ = train(tmp_path / "exact", files, rows, "float32", steps=12, rate=1e-2)
    assert kept and after < before - 0.4 and after == pytest.approx(exact, abs=0.25)


@pytest.mark.slow
def test_smollm2_learns_in_8_and_4_bits_as_it_does_in_16(tmp_path: Path) -> None:
    files = fetch_base(load_recipe(ROOT / "recipes" / "smollm2-135m.yaml").base)
    rows = sorted(load_shipped_set("desk", ROOT).train, key=lambda row: (len(row.prompt), row.id))[:6]
    losses = {precision: train(tmp_path / precision, files, rows, precision, steps=5, rate=2e-3) for precision in (NATIVE, "int8", "nf4")}
    assert all(kept for _, kept in losses.values())
    (before, after), _ = losses[NATIVE]
    assert after < 0.7 * before
    for precision, apart in (("int8", 0.1), ("nf4", 0.35)):  # nats a token
        (start, end), _ = losses[precision]
        assert start == pytest.approx(before, abs=apart) and end == pytest.approx(after, abs=apart), losses
        assert start != before, "it is not the same model"
