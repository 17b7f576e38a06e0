"""`make plan MEASURE=1`: the base is loaded and its fullest optimiser step run by the real trainer, in a process of its own.

Parts are read from torch's own allocator (allocations.py); the whole is the resident set above what it was before the base was loaded,
or on a GPU what torch had allocated there. What the parts leave over are holes in the heap and libraries' own buffers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from nomoat import adapters, bases, devices, free_memory
from nomoat.allocations import AllocationRecord
from nomoat.bases import BaseFiles
from nomoat.batches import Rows
from nomoat.errors import NomoatError
from nomoat.memory_trace import by_part
from nomoat.meters import MemoryMeter
from nomoat.outlines import adapted, bytes_of, outline, tensors_of
from nomoat.packing import Plan, settle_packing
from nomoat.plan_memory import Memory, fullest
from nomoat.planning import CostPlan
from nomoat.recipe import Recipe
from nomoat.row_attention import uses_row_attention
from nomoat.training import PackedTrainer, training_arguments

STEPS = 3  # the first finds memory and kernels, the second is timed, the third recorded
LEARNING_RATE = 1e-5  # what is learnt is thrown away
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "9"}  # else the profiler tells of its own starts and stops


@dataclass(frozen=True)
class Measured:
    """Bytes by part at the peaks of loading and training, and tokens a second of the fullest step."""

    phases: dict[str, Memory]
    tokens_per_second: float


@dataclass(frozen=True)
class _Task:
    """What the measuring process is told. Whether rows are packed it finds out again, on the real base."""

    recipe: Recipe
    files: BaseFiles
    device: str
    kept_precision: str
    mixed: bool
    rows: Rows
    step: tuple[tuple[int, ...], ...]


def measure(plan: CostPlan) -> Measured:
    """Downloads the base if need be; NomoatError if the process that measures is killed, as it is when memory runs out."""
    setting, work = plan.setting, plan.work
    task = _Task(
        plan.recipe,
        bases.fetch_base(plan.recipe.base),
        setting.device,
        setting.kept_precision,
        setting.mixed,
        Rows(work.train, (), work.packed, work.pad_id, plan.recipe.train.pack_tokens, work.row_attention),
        next(step for step in work.plan.steps if fullest(work)[0] in step),
    )
    os.environ |= QUIET  # torch reads it when it starts
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, task).result()
        except BrokenProcessPool:
            raise NomoatError(
                "measuring was killed, most likely for want of memory: take a smaller setting, the estimate says which"
            ) from None


def _measure(task: _Task) -> Measured:
    from nomoat.quiet import quieten

    quieten()
    devices.choose_device(task.recipe.hardware)  # sets the threads
    _import_architecture(task)
    whole = _Whole(task.device)
    model = bases.load_model(task.files, precision=task.kept_precision, device=task.device)
    packed, _ = settle_packing(model, task.rows.train, task.device)
    weights = bytes_of(tensors_of(model))
    loading = Counter({"weights": weights, "activations": whole.peak() - weights})
    rows = replace(task.rows, packed=packed, shared=packed and uses_row_attention(model))
    whole.restart()
    model = adapters.attach_adapter(model, task.recipe.lora, seed=task.recipe.train.seed, files=task.files)
    steps = _Steps(AllocationRecord(model, task.device), whole)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(task, model, rows, steps, Path(scratch))
        trainer.train()
    adapter = bytes_of(iter(steps.record.trained)) if adapters.is_adapted(model) else 0
    held = by_part(steps.record.timeline().at_peak())
    training = Counter({"weights": weights, "adapter": adapter})
    training["optimiser"] = _state_bytes(trainer.optimizer) + held["gradients"]
    training["activations"], training["logits"] = held["activations"] + held["backward"], held["logits"]
    training["heap"] = steps.peak_bytes - sum(training.values())
    return Measured({"loading": loading, "training": training}, steps.tokens_per_second)


def _state_bytes(optimizer: Any) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes"))


def _import_architecture(task: _Task) -> None:
    """Libraries are there before the first reading: a model without data has them imported."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(task.files.folder, local_files_only=True)
    adapted(outline(config, task.kept_precision, task.device), task.recipe.lora, task.files)


class _Whole:
    """The peak above what was there at the beginning, in bytes."""

    def __init__(self, device: str) -> None:
        self.device, self.meter = device, MemoryMeter()
        free_memory.give_back()
        self.restart()
        self.before = self._read()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.meter.start()

    def peak(self) -> int:
        """Since the last restart."""
        return self._read() - self.before

    def _read(self) -> int:
        if self.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())
        return self.meter.peak_resident_bytes()


class _Steps(TrainerCallback):
    """Reads speed and peak of the step before the last, and records every allocation of the last."""

    def __init__(self, record: AllocationRecord, whole: _Whole) -> None:
        self.record, self.whole = record, whole
        self.trainer: Any = None
        self.peak_bytes, self.tokens_per_second, self._began = 0, 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STEPS - 1:
            self.record.start()
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.record.note_gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STEPS:
            self.record.stop()
        else:
            self.tokens_per_second = self.trainer.step.tokens_seen / (time.perf_counter() - self._began)
            self.peak_bytes = self.whole.peak()


def _trainer(task: _Task, model: Any, rows: Rows, steps: _Steps, scratch: Path) -> PackedTrainer:
    arguments = training_arguments(task.recipe, output=scratch, steps=STEPS, learning_rate=LEARNING_RATE, device=task.device)
    arguments.save_strategy = "no"
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        loraplus_lr_ratio=task.recipe.train.loraplus_lr_ratio,
        rows=rows,
        plan=Plan((task.step,) * STEPS, ()),
        files=task.files,
        callbacks=[steps],
        mixed=task.mixed,
    )
    trainer.remove_callback(PrinterCallback)
    steps.trainer = trainer
    return trainer
