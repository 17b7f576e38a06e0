"""The arms of `make bench`: our trainer, plain transformers.Trainer, and TRL's SFTTrainer with its defaults and tuned.

Each arm trains the same adapter on the same base with AdamW at a constant learning rate, and measures losses with its own collator and
its own loss function, so that a difference in the work shows. TRL is optional and imported by its arms only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from nomoat.config.schema import Recipe, learning_rate_for
from nomoat.data.chat_template import TokenizedExample
from nomoat.kernels.cross_entropy import IGNORED
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import OpenBase, load_model
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.loop import PackedTrainer, training_arguments
from nomoat.training.packing import StepSchedule

Step = tuple[TokenizedExample, ...]  # the rows of one optimiser step
SHARED = "output_dir max_steps learning_rate lr_scheduler_type weight_decay max_grad_norm seed"  # arguments of ours that TRL gets
SHARED += " logging_strategy save_strategy report_to disable_tqdm use_cpu"


@dataclass(frozen=True, kw_only=True)
class BenchWork:
    """What each arm is given; the rows of a step fit into one pack."""

    recipe: Recipe  # with the constant learning rate of the bench
    base: OpenBase
    tokenizer: Any  # pads on the right
    steps: tuple[Step, ...]
    rows: list[TokenizedExample]  # of all steps, in order
    intervals: tuple[range, ...]  # numbers of the steps to warm up, then of those timed in each turn
    validation: tuple[TokenizedExample, ...]
    recipe_tokens: int  # of the whole recipe, over which the time to compile is spread


@dataclass(frozen=True)
class BenchArm:
    """A trainer that is ready to run, and how it makes a batch of rows."""

    trainer: Any
    collate: Callable[[Sequence[TokenizedExample]], Any]
    own_intervals: tuple[range, ...] = ()  # of an arm that chooses which rows make a step

    def mean_loss(self, rows: Sequence[TokenizedExample]) -> float:
        """Mean loss per labelled token (nats) by the trainer's own loss function."""
        device = self.trainer.args.device
        labels = torch.tensor(sum(len(row.completion_ids) for row in rows), device=device)
        self.trainer.model.eval()
        total = 0.0
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            for start in range(0, len(rows), 4):  # few at a time: a peer may compute the logits of every token
                inputs = send_to_device(self.collate(rows[start : start + 4]), device)
                total += float(self.trainer.compute_loss(self.trainer.model, inputs, num_items_in_batch=labels))
        self.trainer.model.train()
        return total


def ours(work: BenchWork) -> BenchArm:
    """The trainer of `make train`, with the kernels and the packing that it chooses for this base."""
    recipe, rows, device, kernels = work.recipe, work.rows, work.base.device.kind, work.recipe.hardware.kernels
    model = load_model(work.base.files, precision=work.base.precision, device=device)
    packed, _ = choose_packing(model, rows, device, kernels=kernels)
    shared = packed and uses_varlen_attention(model)
    model = attach_adapter(model, recipe.lora, seed=recipe.train.seed, files=work.base.files, kernels=kernels)
    collator = Collator(rows, work.validation, packed, work.tokenizer.pad_token_id, recipe.train.pack_tokens, shared, kernels)
    numbers = iter(range(len(rows)))
    schedule = StepSchedule(tuple((tuple(islice(numbers, len(step))),) for step in work.steps), ())
    args, files, ratio = _arguments(work), work.base.files, recipe.train.loraplus_lr_ratio
    trainer = PackedTrainer(model=model, args=args, schedule=schedule, collator=collator, files=files, loraplus_lr_ratio=ratio)
    return BenchArm(trainer, collator.batch)


def plain_trainer(work: BenchWork) -> BenchArm:
    """transformers.Trainer as in its own examples: rows padded to the longest of the step, logits of every token."""
    pad = DataCollatorForSeq2Seq(work.tokenizer, label_pad_token_id=IGNORED)
    trainer = Trainer(
        model=_stock_model(work),
        args=_arguments(work),
        train_dataset=[[as_example(row) for row in step] for step in work.steps],
        data_collator=lambda items: pad(items[0]),
    )
    return BenchArm(trainer, lambda rows: pad([as_example(row) for row in rows]))


def trl_default(work: BenchWork) -> BenchArm:
    """SFTTrainer's defaults for everything except what is trained and for how long: 8 rows per step, in its own order.

    One step per interval is enough: it computes in bfloat16 with gradient checkpointing, minutes per step where bfloat16 is emulated.
    """
    from trl import SFTConfig, SFTTrainer

    lora, steps = work.recipe.lora, len(work.intervals)
    trainer = SFTTrainer(
        model=str(work.base.files.folder),
        args=SFTConfig(**_shared(work) | {"max_steps": steps}, include_num_input_tokens_seen="non_padding"),
        train_dataset=Dataset.from_list([as_example(row) for row in work.rows]),
        peft_config=LoraConfig(task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets),
    )
    intervals = tuple(range(step, step + 1) for step in range(steps))
    return BenchArm(trainer, lambda rows: trainer.data_collator([as_example(row) for row in rows]), intervals)


def trl_compiled(work: BenchWork) -> BenchArm:
    """SFTTrainer tuned: our steps in its packed form, compiled, without checkpointing or autocast, on a base in our precision."""
    from trl import SFTConfig, SFTTrainer

    in_order = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}  # an item of the data set is a step
    tuned = {"packing": True, "max_length": work.recipe.train.pack_tokens, "torch_compile": True, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        model=_stock_model(work),
        args=SFTConfig(**_shared(work), **in_order, **tuned, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list([as_packed_example(step) for step in work.steps]),
        processing_class=work.tokenizer,
    )
    return BenchArm(trainer, lambda rows: trainer.data_collator([as_packed_example(rows)]))


BUILDERS = {"ours": ours, "trainer": plain_trainer, "trl_default": trl_default, "trl_compiled": trl_compiled}


def _arguments(work: BenchWork) -> TrainingArguments:
    """The arguments of `make train`, except that nothing is written or logged."""
    scratch, steps, rate = Path(gettempdir()), len(work.steps), learning_rate_for(work.recipe, 0)
    arguments = training_arguments(work.recipe, output=scratch, steps=steps, learning_rate=rate, device=work.base.device.kind)
    arguments.save_strategy = arguments.logging_strategy = "no"
    return arguments


def _shared(work: BenchWork) -> dict[str, Any]:
    """What is trained and for how long, and that nothing is written or logged."""
    return {name: getattr(_arguments(work), name) for name in SHARED.split()}


def _stock_model(work: BenchWork) -> Any:
    """peft's own layers on the base as transformers loads it, with the initial adapter weights of our arm."""
    base = load_model(work.base.files, precision=work.base.precision, device=work.base.device.kind)
    return attach_adapter(base, work.recipe.lora, seed=work.recipe.train.seed, files=work.base.files, kernels="plain")


def as_example(row: TokenizedExample) -> dict[str, list[int]]:
    """A row with labels as peers expect them: one per token, IGNORED for the prompt."""
    return {"input_ids": [*row.prompt_ids, *row.completion_ids], "labels": [IGNORED] * len(row.prompt_ids) + list(row.completion_ids)}


def as_packed_example(rows: Sequence[TokenizedExample]) -> dict[str, list[int]]:
    """Rows as one example, in the form that TRL's own packing produces."""
    examples = [as_example(row) for row in rows]
    joined = {name: [token for example in examples for token in example[name]] for name in ("input_ids", "labels")}
    return {**joined, "seq_lengths": [row.length for row in rows]}
