"""One training, from the first step or from the last whole checkpoint to the saved adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from nomoat.adapters import restore_adapter
from nomoat.bases import BaseFiles
from nomoat.files import read_json
from nomoat.following import Following, LearningCurve, MetricsFile, validation_steps
from nomoat.packing import Plan, plan_steps
from nomoat.progress import Bar
from nomoat.recipe import Recipe
from nomoat.runs import complete_checkpoint, latest_complete
from nomoat.training import PackedTrainer, Rows, StepClock, training_arguments


@dataclass(frozen=True)
class Fit:
    """What a training needs besides the model."""

    recipe: Recipe
    rows: Rows
    files: BaseFiles
    folder: Path  # the run directory
    device: str
    learning_rate: float
    validation_bytes: int
    usd_per_second: float | None = None
    mixed: bool = False  # float32 weights, bfloat16 products

    def plan(self) -> Plan:
        """All optimiser steps, known before the first."""
        train = self.recipe.train
        lengths = [row.length for row in self.rows.train]
        return plan_steps(
            lengths,
            epochs=train.epochs,
            batch_tokens=train.batch_tokens,
            pack_tokens=train.pack_tokens,
            seed=train.seed,
            max_steps=train.max_steps,
        )


def fit(model: Any, job: Fit, *, count: Callable[..., None], console: Console) -> int:
    """Train `model` in place and return the number of steps; goes on from the last whole checkpoint of the run directory.

    `count(tokens_seen=, tokens_trained=, compute_seconds=)` is told of each step done in this process, for the ledger.
    """
    plan = job.plan()
    steps = len(plan.steps)
    checkpoint = latest_complete(job.folder / "checkpoints")
    done = int(read_json(checkpoint / "trainer_state.json")["global_step"]) if checkpoint else 0
    metrics = MetricsFile(job.folder / "metrics.jsonl")
    before = metrics.rewind(done)
    curve = LearningCurve(job.rows, job.validation_bytes, validation_steps(steps, job.recipe.train.validation_points), metrics)
    with Bar("training", steps, console) as bar:
        clock, keeper = StepClock(), _CheckpointKeeper()
        following = Following(
            metrics=metrics, curve=curve, bar=bar, count=count, usd_per_second=job.usd_per_second, epoch_ends=plan.epoch_ends
        )
        trainer = _trainer(model, job, plan, [clock, following, keeper])
        clock.trainer = following.trainer = trainer
        trainer.step.totals.update({name: before[name] for name in trainer.step.totals if name in before})
        bar.advance(done)
        if checkpoint and done == steps:
            restore_adapter(model, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return steps


def _trainer(model: Any, job: Fit, plan: Plan, callbacks: list[Any]) -> PackedTrainer:
    arguments = training_arguments(
        job.recipe, output=job.folder / "checkpoints", steps=len(plan.steps), learning_rate=job.learning_rate, device=job.device
    )
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        loraplus_lr_ratio=job.recipe.train.loraplus_lr_ratio,
        rows=job.rows,
        plan=plan,
        files=job.files,
        callbacks=callbacks,
        mixed=job.mixed,
    )
    trainer.remove_callback(PrinterCallback)  # the bar says it better
    return trainer


class _CheckpointKeeper(TrainerCallback):
    """Seals each checkpoint once Trainer has written it: only a sealed one is resumed from."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == state.max_steps:
            control.should_save = True  # a run killed while scoring does not train again
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and it names this machine's paths
        complete_checkpoint(folder)
