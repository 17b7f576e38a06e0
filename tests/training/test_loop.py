"""Training: the same again from the same seed, and after a kill, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nomoat.config.schema import Base, Lora, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.errors import RunFailed
from nomoat.io import read_jsonl
from nomoat.models.adapter import adapter_tensors, attach_adapter, fingerprint
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from nomoat.training.collate import Collator
from nomoat.training.loop import TrainSpec, _make_trainer, run_training
from tests.tiny import make_base, make_rows

STEPS = 8


class Stop(Exception):
    """What a test raises in place of a kill."""


def make_job(folder: Path, files: BaseFiles, method: Any = "lora", **train: Any) -> TrainSpec:
    settings = {"max_steps": STEPS, "epochs": 4.0, "batch_tokens": 128, "pack_tokens": 128, "max_row_tokens": 64, "checkpoints": 4, **train}
    recipe = Recipe(name="tiny", base=Base(path=str(files.folder)), lora=Lora(method=method), train=settings)
    talk = ChatTemplate(load_tokenizer(files))
    rows = Collator(
        [talk.render(row) for row in make_rows(24)], [talk.render(row) for row in make_rows(6, tier="validation")], True, talk.pad_id, 128
    )
    return TrainSpec(recipe, rows, files, folder, "cpu", 1e-2, 10)


def run(job: TrainSpec, count: Callable[..., None] = lambda **_: None) -> tuple[str, list[Any]]:
    """Fingerprint of the trained adapter and the metrics without their seconds."""
    job.folder.mkdir(parents=True, exist_ok=True)
    base = load_model(job.files, precision="float32", device="cpu")
    model = attach_adapter(base, job.recipe.lora, seed=job.recipe.train.seed, files=job.files)
    run_training(model, job, count=count, console=Console(quiet=True))
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in read_jsonl(job.folder / "metrics.jsonl")]
    return fingerprint(adapter_tensors(model)), lines


def stop_after(steps: int) -> Callable[..., None]:
    seen = 0

    def count(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > steps:
            raise Stop

    return count


def test_the_same_seed_gives_the_same_adapter_and_losses_and_another_does_not(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    first = run(make_job(tmp_path / "a", files))
    assert run(make_job(tmp_path / "b", files)) == first
    other = run(make_job(tmp_path / "c", files, seed=1))
    assert other[0] != first[0]


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])  # PiSSA takes the base apart again when it resumes
def test_a_resumed_training_equals_a_straight_one(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "base")
    straight = run(make_job(tmp_path / "straight", files, method))
    with pytest.raises(Stop):
        run(make_job(tmp_path / "killed", files, method), stop_after(5))  # checkpoints at 2 and 4
    steps: list[int] = []
    resumed = run(make_job(tmp_path / "killed", files, method), lambda **counts: steps.append(counts["tokens_seen"]))
    assert resumed == straight
    assert len(steps) == STEPS - 4  # only the steps after the last checkpoint are done, and paid for, again


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    straight = run(make_job(tmp_path / "straight", files))
    with pytest.raises(Stop):
        run(make_job(tmp_path / "killed", files), stop_after(5))
    (tmp_path / "killed" / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()  # Trainer alone would go on with a fresh one
    steps: list[int] = []
    assert run(make_job(tmp_path / "killed", files), lambda **_: steps.append(1)) == straight
    assert len(steps) == STEPS - 2


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    job = make_job(tmp_path / "run", files)
    first = run(job)[0]
    steps: list[int] = []
    base = load_model(files, precision="float32", device="cpu")
    model = attach_adapter(base, job.recipe.lora, seed=0, files=files)
    run_training(model, job, count=lambda **_: steps.append(1), console=Console(quiet=True))
    assert not steps and fingerprint(adapter_tensors(model)) == first


def test_checkpoints_hold_no_pickle_of_arguments_and_no_path(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    run(make_job(tmp_path / "run", files))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["checkpoint-6", "checkpoint-8"]
    for file in (tmp_path / "run").rglob("*"):
        assert file.name != "training_args.bin"
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", make_base(tmp_path / "base"))
    job.folder.mkdir()
    base = load_model(job.files, precision="float32", device="cpu")
    base.get_input_embeddings().weight.data[5:] = float("nan")
    model = attach_adapter(base, job.recipe.lora, seed=0, files=job.files)
    with pytest.raises(RunFailed, match=r"loss became nan.*precision: float32"):
        run_training(model, job, count=lambda **_: None, console=Console(quiet=True))


def test_the_learning_curve_has_the_asked_points_first_and_last_included(tmp_path: Path) -> None:
    _, lines = run(make_job(tmp_path / "run", make_base(tmp_path / "base"), validation_points=3))
    points = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert sorted(points) == [0, STEPS // 2, STEPS] and points[STEPS] < points[0]


def test_a_small_step_uses_every_row_it_counts(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", make_base(tmp_path / "base"))
    seen: list[int] = []
    _, lines = run(job, lambda **counts: seen.append(counts["tokens_seen"]))
    rows = [sum(job.rows.train[number].length for pack in step for number in pack) for step in job.plan().steps]
    assert seen == rows
    assert [line["tokens_seen"] for line in lines if "loss" in line][-1] == sum(rows)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0.5),
        ("max_steps", 5),
        ("loraplus_lr_ratio", 4.0),
        ("schedule", "constant"),
        ("warmup", 0.5),
        ("weight_decay", 0.1),
        ("max_grad_norm", 0.01),
        ("batch_tokens", 64),
        ("seed", 3),
    ],
)
def test_every_setting_of_training_changes_the_adapter(tmp_path: Path, key: str, value: Any) -> None:
    files = make_base(tmp_path / "base")
    before, _ = run(make_job(tmp_path / "before", files))
    packs = {"pack_tokens": 64, "max_row_tokens": 64} if key == "batch_tokens" else {}
    assert run(make_job(tmp_path / "after", files, **{key: value}, **packs))[0] != before


def test_loraplus_gives_the_matrices_b_their_own_learning_rate(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", make_base(tmp_path / "base"), loraplus_lr_ratio=4.0)
    base = load_model(job.files, precision="float32", device="cpu")
    model = attach_adapter(base, job.recipe.lora, seed=0, files=job.files)
    groups = _make_trainer(model, job, job.plan(), []).create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-2, 4e-2]
    assert all(matrix.shape[0] == job.recipe.lora.rank for matrix in groups[0]["params"])  # A is (rank, inputs)
    assert all(matrix.shape[1] == job.recipe.lora.rank for matrix in groups[1]["params"])  # B is (outputs, rank)


def test_checkpoints_are_not_shared_between_run_directories(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    run(make_job(tmp_path / "a", files))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    steps: list[int] = []
    run(make_job(tmp_path / "b", files), lambda **_: steps.append(1))
    assert not steps
