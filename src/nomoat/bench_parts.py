"""What the benchmark's arms are made of: the same adapter on the same base, the same arguments, rows by padding, and how a loss is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nomoat.bench_work import BenchWork
from nomoat.conversation import Rendered
from nomoat.packing import IGNORED

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Arm:
    """A trainer that is ready to run, and how it tells the mean loss per labelled token of rows."""

    trainer: Trainer
    mean_loss: Callable[[Sequence[Rendered]], float]
    steps_per_turn: int
    warmup_steps: int
    waking_steps: int
    tokens: Sequence[int]  # of the rows of each step
    own_steps: bool = False  # other rows than ours, out of the same set


def fixed(work: BenchWork, trainer: Any, mean_loss: Callable[[Sequence[Rendered]], float]) -> Arm:
    """An arm on the work's own steps."""
    tokens = [sum(row.length for row in step) for step in work.steps]
    size = work.size
    return Arm(trainer, mean_loss, size.steps_per_turn, size.warmup_steps, size.waking_steps, tokens)


def stock_model(work: BenchWork) -> Any:
    """peft's own layers on the base as transformers loads it, with the adapter that ours starts from."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from nomoat.bases import load_model

    lora = work.recipe.lora
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        use_rslora=lora.method == "rslora",
        use_dora=lora.method == "dora",
    )
    set_seed(work.recipe.train.seed)
    return get_peft_model(load_model(work.files, precision=work.precision, device=work.device), config)


def common(work: BenchWork, **more: Any) -> dict[str, Any]:
    """Arguments that are the same for every peer: what is trained and for how long, and that nothing is written."""
    train = work.recipe.train
    return {
        "output_dir": str(work.scratch),
        "max_steps": len(work.steps),
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": work.device == "cpu",
        **more,
    }


def in_order(**more: Any) -> dict[str, Any]:
    """One item of the data is one step, taken in the given order."""
    return {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "logging_strategy": "no", **more}


class PaddedSteps:
    """Items are steps; their rows are padded on the right to the longest."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = items[0]["rows"]
        ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }


def loss_teller(trainer: Any, batch_of: Callable[[Sequence[Rendered]], dict[str, Any]]) -> Callable[[Sequence[Rendered]], float]:
    """Mean loss per labelled token by the trainer's own loss function, four rows at a time."""
    import torch

    def mean_loss(rows: Sequence[Rendered]) -> float:
        count = torch.tensor(sum(len(row.completion_ids) for row in rows), device=trainer.args.device)
        trainer.model.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(rows), 4):
                inputs = trainer._prepare_inputs(batch_of(rows[start : start + 4]))
                with trainer.compute_loss_context_manager():
                    total += float(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count))
        trainer.model.train()
        return total

    return mean_loss
