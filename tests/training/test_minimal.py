"""train/minimal.py, plain transformers and peft, has the losses of our own training step by step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from nomoat.config.schema import Base, Lora, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.io import read_jsonl
from nomoat.models.adapter import CONFIG, WEIGHTS, attach_adapter, load_adapter
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.loop import TrainSpec, run_training
from tests.stories import ROOT, run
from tests.tiny import make_base, make_rows

STEPS = 10
ROWS = make_rows(30)


def our_losses(files: BaseFiles, folder: Path) -> tuple[list[float], list[list[int]]]:
    """Losses, and the row numbers of each step, of a packed training with all kernels."""
    settings = {"max_steps": STEPS, "epochs": 3.0, "batch_tokens": 192, "pack_tokens": 96, "max_row_tokens": 64, "validation_points": 2}
    recipe = Recipe(name="tiny", base=Base(path=str(files.folder)), lora=Lora(rank=8, alpha=16), train=settings)
    template = ChatTemplate(load_tokenizer(files))
    examples = [template.render(row) for row in ROWS]
    base = load_model(files, precision="float32", device="cpu")
    packed, reason = choose_packing(base, examples, "cpu")
    collator = Collator(examples, examples[:2], packed, template.pad_id, 96, shared=reason.endswith("varlen attention"))
    assert collator.shared
    spec = TrainSpec(recipe=recipe, collator=collator, files=files, folder=folder, device="cpu", learning_rate=1e-2, validation_bytes=10)
    folder.mkdir()
    model = attach_adapter(base, recipe.lora, seed=0, files=files)
    run_training(model, spec, count=lambda **_: None, console=Console(quiet=True))
    losses = [line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    return losses, [[number for pack in step for number in pack] for step in spec.schedule().steps]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_its_losses_are_ours_to_five_digits(tmp_path: Path, architecture: str) -> None:
    files = make_base(tmp_path / "model", architecture)
    losses, steps = our_losses(files, tmp_path / "run")
    rows = [{"prompt": row.prompt, "completion": row.completion} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    done = run(tmp_path, "train/minimal.py", "model", "rows.jsonl", "--batches=steps.json", "--rank=8", "--learning-rate=1e-2")
    assert done.returncode == 0, done.stderr
    printed = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(printed) == STEPS and printed == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5
    assert (tmp_path / "adapter" / WEIGHTS).is_file() and (tmp_path / "adapter" / CONFIG).is_file()
    load_adapter(load_model(files, precision="float32", device="cpu"), tmp_path / "adapter")


def test_without_given_steps_it_takes_every_row_once_an_epoch(tmp_path: Path) -> None:
    make_base(tmp_path / "model")
    rows = [{"prompt": row.prompt, "completion": row.completion} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(tmp_path, "train/minimal.py", "model", "rows.jsonl", "--epochs=2", "--batch-rows=7", "--out=mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 10 and (tmp_path / "mine" / WEIGHTS).is_file()  # two epochs of five batches


def test_nothing_of_this_project_is_in_it() -> None:
    source = (ROOT / "train" / "minimal.py").read_text(encoding="utf-8")
    assert "nomoat" not in source
    assert len(source.splitlines()) < 130
