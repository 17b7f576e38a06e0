"""The arms of the benchmark: our trainer, transformers.Trainer as one writes it by hand, and TRL's SFTTrainer in six settings.

Each arm trains the same LoRA adapter on the same base with AdamW at a constant learning rate, and tells the loss of given rows by
its own collator and its own loss function, so that a difference in the work shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nomoat.bench_parts import Arm, PaddedSteps, common, fixed, in_order, loss_teller, stock_model
from nomoat.bench_trl import TRL_ARMS
from nomoat.bench_work import BenchWork, example_of
from nomoat.packing import Plan


def build_arm(name: str, work: BenchWork) -> Arm:
    """The arm called `name`; KeyError for any other."""
    return ARMS[name](work)


def _ours(work: BenchWork) -> Arm:
    from nomoat.adapters import attach_adapter
    from nomoat.bases import load_model
    from nomoat.batches import Rows, mean_loss
    from nomoat.packing import settle_packing
    from nomoat.row_attention import uses_row_attention
    from nomoat.training import PackedTrainer, training_arguments

    model = load_model(work.files, precision=work.precision, device=work.device)
    rows = work.rows
    packed, _ = settle_packing(model, rows, work.device)
    shared = packed and uses_row_attention(model)
    model = attach_adapter(model, work.recipe.lora, seed=work.recipe.train.seed, files=work.files)
    batches = Rows(rows, work.validation, packed, work.pad_id, work.recipe.train.pack_tokens, shared)
    first = 0
    packs = []
    for step in work.steps:
        packs.append((tuple(range(first, first + len(step))),))
        first += len(step)
    arguments = training_arguments(
        _constant(work.recipe), output=work.scratch, steps=len(packs), learning_rate=work.learning_rate, device=work.device
    )
    arguments.save_strategy = "no"
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        rows=batches,
        plan=Plan(tuple(packs), ()),
        files=work.files,
        callbacks=[],
        loraplus_lr_ratio=work.recipe.train.loraplus_lr_ratio,
    )
    return fixed(work, trainer, lambda some: mean_loss(model, batches, some))


def _constant(recipe: Any) -> Any:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"schedule": "constant", "warmup": 0.0})})


def _trainer(work: BenchWork) -> Arm:
    """transformers.Trainer as in its own examples: rows padded to the longest of the step, logits of every token."""
    from transformers import Trainer, TrainingArguments

    collate = PaddedSteps(work.pad_id)
    trainer = Trainer(
        model=stock_model(work),
        args=TrainingArguments(**common(work, **in_order(remove_unused_columns=False))),
        train_dataset=[{"rows": [example_of(row) for row in step]} for step in work.steps],
        data_collator=collate,
    )
    return fixed(work, trainer, loss_teller(trainer, lambda rows: collate([{"rows": [example_of(row) for row in rows]}])))


ARMS: dict[str, Callable[[BenchWork], Arm]] = {
    "ours": _ours,
    "trainer": _trainer,
    **TRL_ARMS,
}
WORDS = {
    "ours": "nomoat",
    "trainer": "transformers.Trainer, padded, full logits",
    "trl_default": "TRL as it comes",
    "trl_packed": "TRL, packed",
    "trl_autocast": "TRL, packed, autocast",
    "trl_compiled": "TRL, packed, compiled",
    "trl_padded": "TRL, padded",
    "trl_sorted": "TRL, padded, sorted by length, two batches a step",
}
TRL_BEST = ("trl_packed", "trl_autocast", "trl_compiled", "trl_padded", "trl_sorted")
OWN_STEPS = ("trl_default",)  # arms whose steps hold other rows than ours, out of the same set
NEEDS_BFLOAT16 = ("trl_autocast",)  # arms that are never the fastest where bfloat16 is emulated, and then take minutes a step


def worthwhile(names: Sequence[str], device: str) -> list[str]:
    """The arms that are worth their time on a device of that kind."""
    from nomoat.devices import has_bfloat16

    return [name for name in names if name not in NEEDS_BFLOAT16 or has_bfloat16(device)]
