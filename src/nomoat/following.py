"""What is written down while training runs: metrics a step, the learning curve, checkpoints, the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nomoat.batches import Rows, mean_loss
from nomoat.files import canonical_json, read_lines, write_lines
from nomoat.progress import Bar
from nomoat.training import PackedTrainer, check_loss


class MetricsFile:
    """metrics.jsonl: a line a step and a line a validation point; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> dict[str, Any]:
        """Keep the lines up to `step`; return the last step's line, or {} when there is none."""
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        write_lines(self.path, kept)
        return next((line for line in reversed(kept) if "loss" in line), {})

    def add(self, line: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(canonical_json(line) + "\n")


def validation_steps(steps: int, points: int) -> set[int]:
    """Evenly spaced step counts at which validation loss is measured, before the first and after the last included."""
    return {round(index * steps / (points - 1)) for index in range(points)}


@dataclass
class LearningCurve:
    """Measures validation loss (nats a labelled token) and bits per byte at given steps."""

    rows: Rows
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


class Following(TrainerCallback):
    """Turns each finished step into a metrics line, a ledger count and a move of the bar."""

    def __init__(
        self,
        *,
        metrics: MetricsFile,
        curve: LearningCurve,
        bar: Bar,
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
