"""One training, from the first step or from the last whole checkpoint to the saved adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from nomoat.cli import ProgressBar
from nomoat.config.schema import Recipe
from nomoat.errors import RunFailed
from nomoat.io import canonical_json, read_json, read_jsonl, write_jsonl
from nomoat.models.adapter import restore_adapter, save_adapter
from nomoat.models.base import BaseFiles
from nomoat.runs.directory import complete_checkpoint, latest_complete
from nomoat.training.collate import Collator, count_labels, mean_loss, summed_loss
from nomoat.training.packing import StepSchedule, schedule_steps

# MERGED training:
# The training step and its bookkeeping, on transformers.Trainer.
#
# One item of the data loader is one optimiser step: a list of packs (or padded batches). The loss of a step is the sum of
# cross-entropy over its labelled tokens divided by their number, whatever the packs; logits are computed only where there is a label.

LEARNING_RATE_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass
class StepStats:
    """What one optimiser step did; the callbacks turn it into metrics, ledger entries and a progress bar."""

    loss: float = 0.0
    tokens_seen: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0  # forward, backward and optimiser, of this step
    gradient_norm: float = 0.0  # before clipping
    totals: dict[str, float] = field(default_factory=lambda: {"tokens_seen": 0, "tokens_trained": 0, "seconds": 0.0})


def check_loss(loss: float, step: int) -> None:
    """RunFailed for a loss from which nothing can be learnt: zero, infinite or not a number."""
    if not 0 < loss < float("inf"):
        raise RunFailed(
            f"the loss became {loss} at step {step}: nothing can be learnt from that. Lower train.learning_rate, or set precision: float32"
        )


class PackedTrainer(Trainer):
    """A Trainer whose batch is a whole optimiser step."""

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        loraplus_lr_ratio: float,
        rows: Collator,
        plan: StepSchedule,
        files: BaseFiles,
        callbacks: list[Any],
        mixed: bool = False,
    ) -> None:
        """`mixed`: float32 weights whose products are computed in bfloat16 (full fine-tuning)."""
        self.rows, self.plan, self.files, self.loraplus_lr_ratio, self.mixed = rows, plan, files, loraplus_lr_ratio, mixed
        self.step = StepStats()
        super().__init__(model=model, args=args, callbacks=callbacks, train_dataset=list(range(len(plan.steps))))

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW; with LoRA+ (Hayou et al. 2024, arXiv:2402.12354) the matrices B learn `loraplus_lr_ratio` times as fast."""
        if self.loraplus_lr_ratio == 1:
            return super().create_optimizer(model)
        matrices = [(".lora_B." in name, p) for name, p in (model or self.model).named_parameters() if p.requires_grad]
        rate, ratio = self.args.learning_rate, self.loraplus_lr_ratio
        groups = [
            {"params": [p for is_b, p in matrices if is_b is chosen], "lr": rate * (ratio if chosen else 1)} for chosen in (False, True)
        ]
        self.optimizer = AdamW([group for group in groups if group["params"]], weight_decay=self.args.weight_decay, fused=True)
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """Steps in the plan's order; a resumed run skips those already done."""
        steps: Any = self.plan.steps  # a sequence is all a DataLoader needs of a data set
        loader: DataLoader[Any] = DataLoader(steps, batch_size=1, shuffle=False, collate_fn=lambda chosen: self.rows.batches(chosen[0]))
        return self.accelerator.prepare(loader)

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> Any:
        """Forward and backward over the step's packs; gradients add up to those of the step's mean loss."""
        if not model.training:  # a walk over all modules: 2 % of a small step
            model.train()
        count = count_labels(inputs)
        total = 0.0
        for batch in inputs:
            with self._products():
                loss = summed_loss(model, batch, kernels=self.rows.kernels) / count
            self.accelerator.backward(loss)
            total = total + loss.detach()
        self._note(inputs, total, count)
        return total

    def _products(self) -> Any:
        import torch

        return torch.autocast(self.args.device.type, dtype=torch.bfloat16) if self.mixed else nullcontext()

    def _note(self, inputs: list[dict[str, Any]], loss: Any, count: int) -> None:
        step = self.step
        step.loss, step.tokens_seen, step.tokens_trained = float(loss), sum(batch["tokens_seen"] for batch in inputs), count
        check_loss(step.loss, self.state.global_step + 1)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: Trainer's estimate walks all modules at every step, and no report shows it."""
        return 0

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.accelerator.distributed_type != "NO":
            return super()._clip_grad_norm(model)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step.gradient_norm = float(norm)
        return norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Only adapter weights and config: Trainer's own files would name this machine's paths and pickle its arguments."""
        save_adapter(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir), self.files)


class StepClock(TrainerCallback):
    """Times each optimiser step, from its first forward to after the optimiser, and adds up the tokens."""

    def __init__(self) -> None:
        self.trainer: PackedTrainer | None = None
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        step = self.trainer.step
        step.seconds = time.perf_counter() - self._started
        for name in step.totals:
            step.totals[name] += getattr(step, name)


def training_arguments(recipe: Recipe, *, output: Path, steps: int, learning_rate: float, device: str) -> TrainingArguments:
    """The recipe in Trainer's words; the only place that knows them."""
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type=LEARNING_RATE_SCHEDULES[recipe.train.schedule],
        warmup_steps=round(recipe.train.warmup * steps),
        weight_decay=recipe.train.weight_decay,
        max_grad_norm=recipe.train.max_grad_norm,
        optim="adamw_torch_fused",
        seed=recipe.train.seed,
        data_seed=recipe.train.seed,
        save_strategy="steps",
        save_steps=max(1, -(-steps // recipe.train.checkpoints)),
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        use_cpu=device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        bf16=False,
        fp16=recipe.precision == "float16",  # scales the loss; the only precision whose gradients would vanish without
    )


# MERGED following:
# What is written down while training runs: metrics a step, the learning curve, checkpoints, the progress bar.


class MetricsFile:
    """metrics.jsonl: a line a step and a line a validation point; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> dict[str, Any]:
        """Keep the lines up to `step`; return the last step's line, or {} when there is none."""
        kept = [line for line in read_jsonl(self.path) if line["step"] <= step]
        write_jsonl(self.path, kept)
        return next((line for line in reversed(kept) if "loss" in line), {})

    def add(self, line: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(canonical_json(line) + "\n")


def validation_steps(steps: int, points: int) -> set[int]:
    """Evenly spaced step counts at which validation loss is measured, before the first and after the last included."""
    return {round(index * steps / (points - 1)) for index in range(points)}


@dataclass
class ValidationCurve:
    """Measures validation loss (nats a labelled token) and bits per byte at given steps."""

    rows: Collator
    bytes: int  # of the validation completions
    at: set[int]
    metrics: MetricsFile

    def measure(self, model: Any, step: int) -> float | None:
        """The loss, written down, if `step` is one of the points."""
        if step not in self.at:
            return None
        loss = mean_loss(model, self.rows, self.rows.validation)
        check_loss(loss, step)
        labelled = sum(len(row.completion_ids) for row in self.rows.validation)
        self.metrics.add({"step": step, "validation_loss": loss, "validation_bits_per_byte": loss * labelled / math.log(2) / self.bytes})
        return loss


class MetricsCallback(TrainerCallback):
    """Turns each finished step into a metrics line, a ledger count and a move of the bar."""

    def __init__(
        self,
        *,
        metrics: MetricsFile,
        curve: ValidationCurve,
        bar: ProgressBar,
        count: Callable[..., None],
        usd_per_second: float | None,
        epoch_ends: Sequence[int],
    ) -> None:
        self.trainer: PackedTrainer | None = None
        self.metrics, self.curve, self.bar = metrics, curve, bar
        self.count, self.usd_per_second, self.epoch_ends = count, usd_per_second, epoch_ends
        self._validation: float | None = None

    @property
    def _trainer(self) -> PackedTrainer:
        assert self.trainer is not None  # set before training starts; a callback is made before its trainer
        return self.trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._validation = self.curve.measure(self._trainer.model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self._trainer, self._trainer.step
        self.count(tokens_seen=step.tokens_seen, tokens_trained=step.tokens_trained, compute_seconds=step.seconds)
        self.metrics.add(
            {
                "step": state.global_step,
                "epoch": self._epoch(state.global_step),
                "loss": step.loss,
                "learning_rate": trainer.lr_scheduler.get_last_lr()[0],
                "grad_norm": step.gradient_norm,
                **{name: step.totals[name] for name in ("tokens_seen", "tokens_trained", "seconds")},
            }
        )
        measured = self.curve.measure(trainer.model, state.global_step)
        self._validation = measured if measured is not None else self._validation
        self.bar.advance(1, self._facts())

    def _epoch(self, step: int) -> float:
        """Epochs finished after `step`, counting a step as its share of its own epoch."""
        start = 0
        for number, end in enumerate(self.epoch_ends):
            if step <= end:
                return number + (step - start) / (end - start)
            start = end
        return float(len(self.epoch_ends))

    def _facts(self) -> str:
        step = self._trainer.step
        speed = step.totals["tokens_seen"] / step.totals["seconds"]
        facts = f"loss {step.loss:.3f}  {speed:.0f} tok/s"
        if self._validation is not None:
            facts += f"  validation {self._validation:.3f}"
        if self.usd_per_second is not None:
            facts += f"  ${step.totals['seconds'] * self.usd_per_second:.4f}"
        return facts


@dataclass(frozen=True)
class TrainSpec:
    """What a training needs besides the model."""

    recipe: Recipe
    rows: Collator
    files: BaseFiles
    folder: Path  # the run directory
    device: str
    learning_rate: float
    validation_bytes: int
    usd_per_second: float | None = None
    mixed: bool = False  # float32 weights, bfloat16 products

    def plan(self) -> StepSchedule:
        """All optimiser steps, known before the first."""
        train = self.recipe.train
        lengths = [row.length for row in self.rows.train]
        return schedule_steps(
            lengths,
            epochs=train.epochs,
            batch_tokens=train.batch_tokens,
            pack_tokens=train.pack_tokens,
            seed=train.seed,
            max_steps=train.max_steps,
        )


def run_training(model: Any, job: TrainSpec, *, count: Callable[..., None], console: Console) -> int:
    """Train `model` in place and return the number of steps; goes on from the last whole checkpoint of the run directory.

    `count(tokens_seen=, tokens_trained=, compute_seconds=)` is told of each step done in this process, for the ledger.
    """
    plan = job.plan()
    steps = len(plan.steps)
    checkpoint = latest_complete(job.folder / "checkpoints")
    done = int(read_json(checkpoint / "trainer_state.json")["global_step"]) if checkpoint else 0
    metrics = MetricsFile(job.folder / "metrics.jsonl")
    before = metrics.rewind(done)
    curve = ValidationCurve(job.rows, job.validation_bytes, validation_steps(steps, job.recipe.train.validation_points), metrics)
    with ProgressBar("training", steps, console) as bar:
        clock, keeper = StepClock(), _CheckpointCallback()
        following = MetricsCallback(
            metrics=metrics, curve=curve, bar=bar, count=count, usd_per_second=job.usd_per_second, epoch_ends=plan.epoch_ends
        )
        trainer = _make_trainer(model, job, plan, [clock, following, keeper])
        clock.trainer = following.trainer = trainer
        trainer.step.totals.update({name: before[name] for name in trainer.step.totals if name in before})
        bar.advance(done)
        if checkpoint and done == steps:
            restore_adapter(model, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return steps


def _make_trainer(model: Any, job: TrainSpec, plan: StepSchedule, callbacks: list[Any]) -> PackedTrainer:
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


class _CheckpointCallback(TrainerCallback):
    """Seals each checkpoint once Trainer has written it: only a sealed one is resumed from."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == state.max_steps:
            control.should_save = True  # a run killed while scoring does not train again
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and it names this machine's paths
        complete_checkpoint(folder)
