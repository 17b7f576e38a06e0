"""TRL's SFTTrainer in six settings, as arms of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nomoat.bench_parts import Arm, PaddedSteps, common, fixed, in_order, loss_teller, stock_model
from nomoat.bench_work import BenchWork, Step, example_of, pack_of, sorted_halves


def _default(work: BenchWork) -> Arm:
    """SFTTrainer as it comes: its own defaults for everything but what is trained and for how long; 8 rows in its own order a step.

    One step a turn, none before it, is enough to tell: it computes in bfloat16 under checkpointing, which takes minutes where
    bfloat16 is emulated.
    """
    from peft import LoraConfig, TaskType
    from trl import SFTConfig, SFTTrainer

    lora, rows = work.recipe.lora, work.rows
    arguments = common(work, max_steps=1 + work.size.turns)
    trainer = SFTTrainer(
        model=str(work.files.folder),
        args=SFTConfig(**arguments),
        train_dataset=_dataset([example_of(row) for row in rows]),
        peft_config=LoraConfig(task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets),
    )
    collate = trainer.data_collator
    counted = trainer.data_collator = _CountedCollator(collate)
    tell = loss_teller(trainer, lambda some: collate([example_of(row) for row in some]))
    return Arm(trainer, tell, 1, 1, 0, counted.counts, own_steps=True)


class _CountedCollator:
    """Counts the tokens of each batch that the wrapped collator makes, padding left out."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.counts = inner, list[int]()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        self.counts.append(sum(len(example["input_ids"]) for example in examples))
        return self.inner(examples)


def _dataset(examples: Sequence[dict[str, Any]]) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_list(list(examples))


def _sft(work: BenchWork, examples: Sequence[dict[str, Any]], collator: Any = None, **settings: Any) -> Any:
    """SFTTrainer without checkpointing on a base in our precision; bf16=False: no autocast around a base that is in bfloat16 already."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    plain = {"gradient_checkpointing": False, "bf16": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTTrainer(
        model=stock_model(work),
        args=SFTConfig(**common(work, **in_order(**{**plain, **settings}))),
        train_dataset=_dataset(examples),
        data_collator=collator,
        processing_class=AutoTokenizer.from_pretrained(work.files.folder, local_files_only=True),
    )


def _packed(work: BenchWork, **settings: Any) -> Arm:
    trainer = _sft(work, [pack_of(step) for step in work.steps], packing=True, max_length=work.recipe.train.pack_tokens, **settings)
    return fixed(work, trainer, loss_teller(trainer, lambda rows: trainer.data_collator([pack_of(tuple(rows))])))


def _padded(work: BenchWork) -> Arm:
    return _rows(work, work.steps, batches_a_step=1)


def _sorted(work: BenchWork) -> Arm:
    """Each step in two batches, the long rows and the short ones, by gradient accumulation; whole where a step has one row."""
    if min(map(len, work.steps)) < 2:
        return _padded(work)
    return _rows(work, [half for step in work.steps for half in sorted_halves(step)], batches_a_step=2)


def _rows(work: BenchWork, batches: Sequence[Step], *, batches_a_step: int) -> Arm:
    collate = PaddedSteps(work.pad_id)
    examples = [{"rows": [example_of(row) for row in batch]} for batch in batches]
    trainer = _sft(work, examples, collate, remove_unused_columns=False, gradient_accumulation_steps=batches_a_step)
    return fixed(work, trainer, loss_teller(trainer, lambda rows: collate([{"rows": [example_of(row) for row in rows]}])))


TRL_ARMS: dict[str, Callable[[BenchWork], Arm]] = {
    "trl_default": _default,
    "trl_packed": _packed,
    "trl_autocast": lambda work: _packed(work, bf16=True),
    "trl_compiled": lambda work: _packed(work, torch_compile=True),
    "trl_padded": _padded,
    "trl_sorted": _sorted,
}
