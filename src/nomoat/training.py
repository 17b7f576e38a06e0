"""The training step and its bookkeeping, on transformers.Trainer.

One item of the data loader is one optimiser step: a list of packs (or padded batches). The loss of a step is the sum of
cross-entropy over its labelled tokens divided by their number, whatever the packs; logits are computed only where there is a label.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from nomoat.adapters import save_adapter
from nomoat.bases import BaseFiles
from nomoat.batches import Rows, labelled, summed_loss
from nomoat.errors import RunFailed
from nomoat.packing import Plan
from nomoat.recipe import Recipe

LEARNING_RATE_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass
class StepRecord:
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
        rows: Rows,
        plan: Plan,
        files: BaseFiles,
        callbacks: list[Any],
        mixed: bool = False,
    ) -> None:
        """`mixed`: float32 weights whose products are computed in bfloat16 (full fine-tuning)."""
        self.rows, self.plan, self.files, self.loraplus_lr_ratio, self.mixed = rows, plan, files, loraplus_lr_ratio, mixed
        self.step = StepRecord()
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
        count = labelled(inputs)
        total = 0.0
        for batch in inputs:
            with self._products():
                loss = summed_loss(model, batch) / count
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
