"""The arms of the benchmark: our trainer, transformers.Trainer as one writes it by hand, and TRL's SFTTrainer in six settings.

Each arm trains the same LoRA adapter on the same base with AdamW at a constant learning rate, and tells the loss of given rows by
its own collator and its own loss function, so that a difference in the work shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.config.schema import Recipe
from nomoat.data.chat_template import TokenizedExample
from nomoat.kernels.cross_entropy import IGNORED
from nomoat.models.base import BaseFiles
from nomoat.training.packing import StepSchedule, schedule_steps

if TYPE_CHECKING:
    from transformers import Trainer


# MERGED bench_work:
# The work that every arm of the benchmark does: the same rows, in the same steps, on the same base, with the same adapter.

PROBE_ROWS = 32  # whose loss every arm tells before its first step

Step = tuple[TokenizedExample, ...]


@dataclass(frozen=True)
class BenchSize:
    """How much is measured: `turns` stretches of `steps_per_turn` steps each, after `warmup_steps` that do not count.

    Nor do `waking_steps` before each stretch: a process that has waited for minutes may have to fetch pages again, which would cost
    the fastest arm the largest part of its time.
    """

    turns: int
    steps_per_turn: int
    warmup_steps: int
    waking_steps: int = 1

    @property
    def steps(self) -> int:
        """Steps of an arm altogether."""
        return self.warmup_steps + self.turns * (self.waking_steps + self.steps_per_turn)

    @property
    def timed(self) -> list[int]:
        """Numbers of the steps that are timed."""
        stretch = self.waking_steps + self.steps_per_turn
        return [n for n in range(self.warmup_steps, self.steps) if (n - self.warmup_steps) % stretch >= self.waking_steps]


@dataclass(frozen=True)
class BenchWork:
    """What an arm's process is given. A step is one optimiser step; its rows fit into one pack."""

    recipe: Recipe
    files: BaseFiles
    precision: str
    device: str
    device_name: str
    threads: int
    learning_rate: float
    pad_id: int
    steps: tuple[Step, ...]
    validation: tuple[TokenizedExample, ...]
    size: BenchSize
    recipe_tokens: int  # of the whole recipe: what compiling is spread over
    scratch: Path  # where a peer may write what it insists on writing

    @property
    def rows(self) -> list[TokenizedExample]:
        """The rows of all steps, in order."""
        return [row for step in self.steps for row in step]

    @property
    def probe(self) -> list[TokenizedExample]:
        """Rows whose loss is compared before any step."""
        return self.rows[:PROBE_ROWS]

    @property
    def tokens(self) -> int:
        """Tokens of the rows of all steps."""
        return sum(row.length for row in self.rows)


def fixed_steps(recipe: Recipe, rows: Sequence[TokenizedExample], size: BenchSize) -> tuple[Step, ...]:
    """The recipe's first steps, with one pack to a step: `batch_tokens` is lowered to `pack_tokens`. Rows repeat after an epoch."""
    pack = recipe.train.pack_tokens
    lengths = [row.length for row in rows]
    plan = schedule_steps(lengths, epochs=1, batch_tokens=pack, pack_tokens=pack, seed=recipe.train.seed)
    chosen = [plan.steps[number % len(plan.steps)] for number in range(size.steps)]
    return tuple(tuple(rows[number] for numbers in step for number in numbers) for step in chosen)


def sorted_halves(step: Step) -> tuple[Step, Step]:
    """A step's long rows and its short ones (none, where it has one row), so that padding each half to its longest costs little.

    Sorting across steps would cost less still, but then a step would hold other rows, and other work would be timed.
    """
    rows = sorted(step, key=lambda row: -row.length)
    middle = (len(rows) + 1) // 2
    return tuple(rows[:middle]), tuple(rows[middle:])


def labels_of(row: TokenizedExample) -> list[int]:
    """Labels as peers expect them: one for each token, the prompt left out of the loss."""
    return [IGNORED] * len(row.prompt_ids) + list(row.completion_ids)


def example_of(row: TokenizedExample) -> dict[str, list[int]]:
    """A row as a tokenised example."""
    return {"input_ids": [*row.prompt_ids, *row.completion_ids], "labels": labels_of(row)}


def pack_of(step: Step) -> dict[str, Any]:
    """A step as one packed example, in the form that TRL's own packing gives it."""
    examples = [example_of(row) for row in step]
    return {
        "input_ids": [token for example in examples for token in example["input_ids"]],
        "labels": [label for example in examples for label in example["labels"]],
        "seq_lengths": [row.length for row in step],
    }


# MERGED bench_parts:
# What the benchmark's arms are made of: the same adapter on the same base, the same arguments, rows by padding, and how a loss is told.


@dataclass(frozen=True)
class BenchArm:
    """A trainer that is ready to run, and how it tells the mean loss per labelled token of rows."""

    trainer: Trainer
    mean_loss: Callable[[Sequence[TokenizedExample]], float]
    steps_per_turn: int
    warmup_steps: int
    waking_steps: int
    tokens: Sequence[int]  # of the rows of each step
    own_steps: bool = False  # other rows than ours, out of the same set


def fixed(work: BenchWork, trainer: Any, mean_loss: Callable[[Sequence[TokenizedExample]], float]) -> BenchArm:
    """An arm on the work's own steps."""
    tokens = [sum(row.length for row in step) for step in work.steps]
    size = work.size
    return BenchArm(trainer, mean_loss, size.steps_per_turn, size.warmup_steps, size.waking_steps, tokens)


def stock_model(work: BenchWork) -> Any:
    """peft's own layers on the base as transformers loads it, with the adapter that ours starts from."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from nomoat.models.base import load_model

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


def loss_teller(
    trainer: Any, batch_of: Callable[[Sequence[TokenizedExample]], dict[str, Any]]
) -> Callable[[Sequence[TokenizedExample]], float]:
    """Mean loss per labelled token by the trainer's own loss function, four rows at a time."""
    import torch

    def mean_loss(rows: Sequence[TokenizedExample]) -> float:
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


# MERGED bench_trl:
# TRL's SFTTrainer in six settings, as arms of the benchmark.


def _default(work: BenchWork) -> BenchArm:
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
    return BenchArm(trainer, tell, 1, 1, 0, counted.counts, own_steps=True)


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


def _packed(work: BenchWork, **settings: Any) -> BenchArm:
    trainer = _sft(work, [pack_of(step) for step in work.steps], packing=True, max_length=work.recipe.train.pack_tokens, **settings)
    return fixed(work, trainer, loss_teller(trainer, lambda rows: trainer.data_collator([pack_of(tuple(rows))])))


def _padded(work: BenchWork) -> BenchArm:
    return _rows(work, work.steps, batches_a_step=1)


def _sorted(work: BenchWork) -> BenchArm:
    """Each step in two batches, the long rows and the short ones, by gradient accumulation; whole where a step has one row."""
    if min(map(len, work.steps)) < 2:
        return _padded(work)
    return _rows(work, [half for step in work.steps for half in sorted_halves(step)], batches_a_step=2)


def _rows(work: BenchWork, batches: Sequence[Step], *, batches_a_step: int) -> BenchArm:
    collate = PaddedSteps(work.pad_id)
    examples = [{"rows": [example_of(row) for row in batch]} for batch in batches]
    trainer = _sft(work, examples, collate, remove_unused_columns=False, gradient_accumulation_steps=batches_a_step)
    return fixed(work, trainer, loss_teller(trainer, lambda rows: collate([{"rows": [example_of(row) for row in rows]}])))


TRL_ARMS: dict[str, Callable[[BenchWork], BenchArm]] = {
    "trl_default": _default,
    "trl_packed": _packed,
    "trl_autocast": lambda work: _packed(work, bf16=True),
    "trl_compiled": lambda work: _packed(work, torch_compile=True),
    "trl_padded": _padded,
    "trl_sorted": _sorted,
}


def build_arm(name: str, work: BenchWork) -> BenchArm:
    """The arm called `name`; KeyError for any other."""
    return ARMS[name](work)


def _ours(work: BenchWork) -> BenchArm:
    from nomoat.kernels.varlen_attention import uses_varlen_attention
    from nomoat.models.adapter import attach_adapter
    from nomoat.models.base import load_model
    from nomoat.training.collate import Collator, choose_packing, mean_loss
    from nomoat.training.loop import PackedTrainer, training_arguments

    model = load_model(work.files, precision=work.precision, device=work.device)
    rows = work.rows
    packed, _ = choose_packing(model, rows, work.device)
    shared = packed and uses_varlen_attention(model)
    model = attach_adapter(model, work.recipe.lora, seed=work.recipe.train.seed, files=work.files)
    batches = Collator(rows, work.validation, packed, work.pad_id, work.recipe.train.pack_tokens, shared)
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
        collator=batches,
        schedule=StepSchedule(tuple(packs), ()),
        files=work.files,
        callbacks=[],
        loraplus_lr_ratio=work.recipe.train.loraplus_lr_ratio,
    )
    return fixed(work, trainer, lambda some: mean_loss(model, batches, some))


def _constant(recipe: Any) -> Any:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"schedule": "constant", "warmup": 0.0})})


def _trainer(work: BenchWork) -> BenchArm:
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


ARMS: dict[str, Callable[[BenchWork], BenchArm]] = {
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
    from nomoat.models.device import has_bfloat16

    return [name for name in names if name not in NEEDS_BFLOAT16 or has_bfloat16(device)]
