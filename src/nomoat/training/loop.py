"""Training on transformers' Trainer, from the first step or the last complete checkpoint to the trained model.

One batch of the Trainer is one optimiser step: the list of its packed (or padded) forward passes. The loss of a step is the
cross-entropy summed over its labelled tokens, divided by their number, so that it does not depend on how they are packed. Optimiser,
schedule, clipping, logging, trackers, checkpoints and resuming are Trainer's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import AdamW
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from nomoat.cli import ProgressBar
from nomoat.config.schema import Recipe
from nomoat.errors import NomoatError, RunFailed, did_you_mean
from nomoat.io import canonical_json, read_json, read_jsonl, write_jsonl
from nomoat.models.adapter import restore_adapter, save_adapter
from nomoat.models.base import BaseFiles
from nomoat.runs.directory import complete_checkpoint, latest_complete
from nomoat.training.collate import Collator, count_labels, mean_loss, summed_loss
from nomoat.training.packing import StepSchedule, schedule_steps

LEARNING_RATE_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What a training needs besides the model."""

    recipe: Recipe
    collator: Collator
    files: BaseFiles
    folder: Path  # the run directory
    device: str
    learning_rate: float
    validation_bytes: int  # of the validation completions, in UTF-8
    usd_per_second: float | None = None
    mixed: bool = False  # float32 weights and bfloat16 matrix products (full fine-tuning with precision: bfloat16)

    def schedule(self) -> StepSchedule:
        """All optimiser steps, known before the first."""
        train = self.recipe.train
        return schedule_steps(
            [example.length for example in self.collator.train],
            epochs=train.epochs,
            batch_tokens=train.batch_tokens,
            pack_tokens=train.pack_tokens,
            seed=train.seed,
            max_steps=train.max_steps,
        )


def run_training(model: Any, spec: TrainSpec, *, count: Callable[..., None], console: Console) -> int:
    """Train `model` in place and return the number of steps; resumes from the last complete checkpoint of the run directory.

    `count(tokens_seen=, tokens_trained=, compute_seconds=)` is called once per step of this process, for the ledger. Raises RunFailed
    where the loss is zero, infinite or not a number.
    """
    schedule = spec.schedule()
    steps = len(schedule.steps)
    checkpoint = latest_complete(spec.folder / "checkpoints")
    done = int(read_json(checkpoint / "trainer_state.json")["global_step"]) if checkpoint else 0
    arguments = training_arguments(
        spec.recipe,
        output=spec.folder / "checkpoints",
        steps=steps,
        learning_rate=spec.learning_rate,
        device=spec.device,
        eval_on_start=checkpoint is None,
        report_to=list(spec.recipe.train.report_to),
    )
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        schedule=schedule,
        collator=spec.collator,
        files=spec.files,
        loraplus_lr_ratio=spec.recipe.train.loraplus_lr_ratio,
        mixed=spec.mixed,
    )
    with ProgressBar("training", steps, console) as bar:
        callback = RunCallback(spec, schedule, trainer, count=count, bar=bar)
        callback.resume(done)
        bar.advance(done)
        if checkpoint and done == steps:
            restore_adapter(model, checkpoint)
            return steps
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return steps


def training_arguments(recipe: Recipe, *, output: Path, steps: int, learning_rate: float, device: str, **others: Any) -> TrainingArguments:
    """The recipe as Trainer's arguments; `others` are passed on as they are."""
    train = recipe.train
    return TrainingArguments(
        **others,
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the data set is a whole step
        train_sampling_strategy="sequential",  # the schedule is shuffled already
        learning_rate=learning_rate,
        lr_scheduler_type=LEARNING_RATE_SCHEDULES[train.schedule],
        warmup_steps=round(train.warmup * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused",
        seed=train.seed,
        data_seed=train.seed,
        save_strategy="steps",
        save_steps=max(1, -(-steps // train.checkpoints)),
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",  # RunCallback asks for an evaluation at the points of the learning curve
        use_cpu=device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        fp16=recipe.precision == "float16",  # scales the loss; in no other precision would gradients underflow without it
    )


def check_trackers(names: Sequence[str]) -> None:
    """NomoatError unless transformers knows each tracker of `train.report_to` and the package behind it is installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise NomoatError(f"train.report_to: {name!r} is not a tracker{did_you_mean(name, INTEGRATION_TO_CALLBACK)}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise NomoatError(f"train.report_to: {name} cannot be used here: {error} Or leave it out: train.report_to: []") from None


def check_loss(loss: float, step: int) -> None:
    """RunFailed for a loss from which nothing can be learnt: zero, infinite or not a number."""
    if not 0 < loss < float("inf"):
        raise RunFailed(
            f"the loss became {loss} at step {step}: nothing can be learnt from that. Lower train.learning_rate, or set precision: float32"
        )


class PackedTrainer(Trainer):
    """A Trainer whose batch is a whole optimiser step, a list of forward passes."""

    control: Any

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        schedule: StepSchedule,
        collator: Collator,
        files: BaseFiles,
        loraplus_lr_ratio: float = 1.0,
        mixed: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.collator, self.files, self.loraplus_lr_ratio, self.mixed = collator, files, loraplus_lr_ratio, mixed
        self.step_tokens = {"tokens_seen": 0, "tokens_trained": 0}  # of the last optimiser step; the latter are the labelled ones
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedule.steps,
            data_collator=lambda steps: collator.batches(steps[0]),
            callbacks=[*callbacks],
        )
        self.remove_callback(PrinterCallback)  # the progress bar shows the same numbers
        model.train()  # not in each step as Trainer does it: walking over all modules is 2 % of a small step

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW; with LoRA+ (Hayou et al. 2024, arXiv:2402.12354) the matrices B learn `loraplus_lr_ratio` times as fast as the rest.

        peft's `create_loraplus_optimizer` makes the same updates for LoRA, but trains DoRA's magnitudes at the rate of B as well.
        """
        if self.loraplus_lr_ratio == 1:
            return super().create_optimizer(model)
        rate = self.args.learning_rate
        trained = [(".lora_B." in name, tensor) for name, tensor in (model or self.model).named_parameters() if tensor.requires_grad]
        groups = [
            {"params": [tensor for is_b, tensor in trained if not is_b], "lr": rate},
            {"params": [tensor for is_b, tensor in trained if is_b], "lr": rate * self.loraplus_lr_ratio},
        ]
        self.optimizer = AdamW(groups, weight_decay=self.args.weight_decay, fused=True)
        return self.optimizer

    def compute_loss_context_manager(self) -> Any:
        """Autocast to bfloat16 for `mixed`; accelerate's own (`bf16=True`) would also copy all logits to float32."""
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16) if self.mixed else nullcontext()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Cross-entropy of one forward pass over the labelled tokens of the whole step, in nats."""
        return summed_loss(model, inputs, kernels=self.collator.kernels) / num_items_in_batch

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> Any:
        """Forward and backward for each forward pass of the step; the gradients add up to those of the mean loss."""
        labels = count_labels(inputs)
        total = 0.0
        for batch in inputs:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch, num_items_in_batch=labels)
            self.accelerator.backward(loss)
            total = total + loss.detach()
        check_loss(float(total), self.state.global_step + 1)
        self.step_tokens = {"tokens_seen": sum(batch["tokens_seen"] for batch in inputs), "tokens_trained": labels}
        return total

    def _clip_grad_norm(self, model: Any) -> Any:
        # No public hook replaces the clipping. Trainer's walks over the frozen modules as well, and adds the norms up in the order of
        # the model instead of the optimiser's groups: that changes the last digits of full fine-tuning and LoRA+.
        trained = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        return self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss per labelled token of the validation set, in nats, logged as `eval_loss`."""
        loss = mean_loss(self.model, self.collator, self.collator.validation)
        check_loss(loss, self.state.global_step)
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights and config only: Trainer would add a pickle of its arguments, with the paths of this machine."""
        save_adapter(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir), self.files)


class RunCallback(TrainerCallback):
    """Turns what Trainer logs into metrics.jsonl, counts for the ledger and the progress bar; asks for the validation points.

    metrics.jsonl has one line per step and one per validation point.
    """

    def __init__(
        self, spec: TrainSpec, schedule: StepSchedule, trainer: PackedTrainer, *, count: Callable[..., None], bar: ProgressBar
    ) -> None:
        self.spec, self.trainer, self.count, self.bar = spec, trainer, count, bar
        self.path = spec.folder / "metrics.jsonl"
        self.epoch_ends = schedule.epoch_ends
        last, points = len(schedule.steps), spec.recipe.train.validation_points
        self.validation_steps = {round(index * last / (points - 1)) for index in range(points)}  # evenly spaced, from 0 to the last step
        self.totals: dict[str, float] = {"tokens_seen": 0, "tokens_trained": 0, "seconds": 0.0}  # since the first step
        self._started = self._seconds = 0.0
        self._facts = self._validation = ""

    def resume(self, step: int) -> None:
        """Drop the lines after the `step` of the checkpoint and continue its sums."""
        kept = [line for line in read_jsonl(self.path) if line["step"] <= step]
        write_jsonl(self.path, kept)
        last: dict[str, float] = next((line for line in reversed(kept) if "loss" in line), {})
        self.totals.update({name: last[name] for name in self.totals if name in last})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._seconds = time.perf_counter() - self._started  # forward, backward and optimiser
        control.should_evaluate = state.global_step in self.validation_steps
        return control

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], lr_scheduler: Any, **_: Any) -> None:
        if "loss" not in logs:
            return  # a validation point, or Trainer's summary at the end
        step = {**self.trainer.step_tokens, "seconds": self._seconds}
        self.totals = {name: total + step[name] for name, total in self.totals.items()}
        self.count(**self.trainer.step_tokens, compute_seconds=self._seconds)
        self._write(
            {
                "step": state.global_step,
                "epoch": epochs_done(state.global_step, self.epoch_ends),
                "loss": logs["loss"],
                "learning_rate": lr_scheduler.get_last_lr()[0],
                "grad_norm": float(logs["grad_norm"]),  # before clipping
                **self.totals,
            }
        )
        self._facts = f"loss {logs['loss']:.3f}  {self.totals['tokens_seen'] / self.totals['seconds']:.0f} tok/s"
        if not control.should_evaluate:
            self._advance()

    def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict[str, float], **_: Any) -> None:
        loss, collator = metrics["eval_loss"], self.spec.collator
        labels = sum(len(example.completion_ids) for example in collator.validation)
        bits_per_byte = loss * labels / math.log(2) / self.spec.validation_bytes
        self._write({"step": state.global_step, "validation_loss": loss, "validation_bits_per_byte": bits_per_byte})
        self._validation = f"  validation {loss:.3f}"
        if state.global_step:
            self._advance()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as complete now that Trainer has written it: no other is resumed from."""
        complete_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(canonical_json(line) + "\n")

    def _advance(self) -> None:
        rate = self.spec.usd_per_second
        price = "" if rate is None else f"  ${self.totals['seconds'] * rate:.4f}"
        self.bar.advance(1, self._facts + self._validation + price)


def epochs_done(step: int, epoch_ends: Sequence[int]) -> float:
    """Epochs finished after `step`, a step inside an epoch being its share of that epoch's steps."""
    start = 0
    for number, end in enumerate(epoch_ends):
        if step <= end:
            return number + (step - start) / (end - start)
        start = end
    return float(len(epoch_ends))
