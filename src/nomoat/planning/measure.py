"""`make plan MEASURE=1`: the base is loaded and its fullest optimiser step run by the real trainer, in a process of its own.

Parts are read from torch's own allocator (allocations.py); the whole is the resident set above what it was before the base was loaded,
or on a GPU what torch had allocated there. What the parts leave over are holes in the heap and libraries' own buffers.
"""

from __future__ import annotations

import bisect
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback, TrainerCallback

from nomoat.config.schema import Recipe
from nomoat.errors import NomoatError
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import attach_adapter, has_adapter
from nomoat.models.base import BaseFiles, fetch_base, load_model
from nomoat.models.device import choose_device, release_memory
from nomoat.planning.memory import Memory, Timeline, by_part, bytes_of, largest_microbatch, meta_model, tensors_of, with_meta_adapter
from nomoat.planning.plan import CostPlan
from nomoat.runs.meters import MemoryMeter
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.loop import PackedTrainer, training_arguments
from nomoat.training.packing import StepSchedule

# MERGED allocations:
# Every block of memory that torch's own allocator hands out and takes back during real training steps, by what it is for.


class AllocationRecord:
    """From `start` to `stop`, as torch's profiler sees it; the parts are those of a MemoryTrace.

    The forward pass up to the head makes activations, from there to where the backward pass begins logits.
    """

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._marks: list[tuple[int, str]] = []  # since when (ns) what is allocated belongs to which part
        self._gradients: tuple[int, Sequence[int]] = (0, ())  # when they were seen (ns), and their addresses
        self._hooks: list[Any] = []

    def start(self) -> None:
        """From here on."""
        head = self.model.get_output_embeddings()
        self._hooks = [
            self.model.register_forward_pre_hook(lambda *_: self._mark("activations")),
            head.register_forward_pre_hook(lambda *_: self._mark("logits")),
            head.register_forward_hook(lambda _, __, logits: logits.register_hook(lambda _: self._mark("backward")) and None),
        ]
        self._mark("activations")
        self._profiler.start()

    def note_gradients(self) -> None:
        """To be called when all gradients are there."""
        found = [parameter.grad.untyped_storage().data_ptr() for parameter in self.trained if parameter.grad is not None]
        self._gradients = time.time_ns(), found

    def stop(self) -> None:
        """Up to here."""
        self._profiler.stop()
        for hook in self._hooks:
            hook.remove()

    def _mark(self, part: str) -> None:
        self._marks.append((time.time_ns(), part))

    def timeline(self) -> Timeline:
        """The blocks on the device."""
        found = Timeline()
        times = [when for when, _ in self._marks]
        seen, gradients = self._gradients
        for when, address, size in sorted(self._events(), key=lambda event: event[0]):
            if gradients and when > seen:
                found.rename(gradients, "gradients")
                gradients = ()
            if size > 0:
                found.born(address, size, self._marks[max(0, bisect.bisect(times, when) - 1)][1])
            else:
                found.gone(address)
        found.rename(gradients, "gradients")
        return found

    def _events(self) -> Iterator[tuple[int, int, int]]:
        """(ns, address, bytes, below zero where they are taken back)."""
        nodes = list(self._profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
        while nodes:
            node = nodes.pop()
            if node.typed[0] == _EventType.Allocation and node.typed[1].device.type == self.device:
                yield node.start_time_ns, node.typed[1].ptr, node.typed[1].alloc_size
            nodes += node.children


STEPS = 3  # the first finds memory and kernels, the second is timed, the third recorded
LEARNING_RATE = 1e-5  # what is learnt is thrown away
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "9"}  # else the profiler tells of its own starts and stops


@dataclass(frozen=True)
class Measurement:
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
    rows: Collator
    step: tuple[tuple[int, ...], ...]


def measure(plan: CostPlan) -> Measurement:
    """Downloads the base if need be; NomoatError if the process that measures is killed, as it is when memory runs out."""
    setting, work = plan.setting, plan.work
    task = _Task(
        plan.recipe,
        fetch_base(plan.recipe.base),
        setting.device,
        setting.kept_precision,
        setting.mixed,
        Collator(work.train, (), work.packed, work.pad_id, plan.recipe.train.pack_tokens, work.row_attention),
        next(step for step in work.plan.steps if largest_microbatch(work)[0] in step),
    )
    os.environ |= QUIET  # torch reads it when it starts
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, task).result()
        except BrokenProcessPool:
            raise NomoatError(
                "measuring was killed, most likely for want of memory: take a smaller setting, the estimate says which"
            ) from None


def _measure(task: _Task) -> Measurement:
    from nomoat.cli import configure_logging

    configure_logging()
    choose_device(task.recipe.hardware)  # sets the threads
    _import_architecture(task)
    whole = _Whole(task.device)
    model = load_model(task.files, precision=task.kept_precision, device=task.device)
    packed, _ = choose_packing(model, task.rows.train, task.device)
    weights = bytes_of(tensors_of(model))
    loading = Counter({"weights": weights, "activations": whole.peak() - weights})
    rows = replace(task.rows, packed=packed, shared=packed and uses_varlen_attention(model))
    whole.restart()
    model = attach_adapter(model, task.recipe.lora, seed=task.recipe.train.seed, files=task.files)
    steps = _Steps(AllocationRecord(model, task.device), whole)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(task, model, rows, steps, Path(scratch))
        trainer.train()
    adapter = bytes_of(iter(steps.record.trained)) if has_adapter(model) else 0
    held = by_part(steps.record.timeline().at_peak())
    training = Counter({"weights": weights, "adapter": adapter})
    training["optimiser"] = _state_bytes(trainer.optimizer) + held["gradients"]
    training["activations"], training["logits"] = held["activations"] + held["backward"], held["logits"]
    training["heap"] = steps.peak_bytes - sum(training.values())
    return Measurement({"loading": loading, "training": training}, steps.tokens_per_second)


def _state_bytes(optimizer: Any) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes"))


def _import_architecture(task: _Task) -> None:
    """Libraries are there before the first reading: a model without data has them imported."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(task.files.folder, local_files_only=True)
    with_meta_adapter(meta_model(config, task.kept_precision, task.device), task.recipe.lora, task.files)


class _Whole:
    """The peak above what was there at the beginning, in bytes."""

    def __init__(self, device: str) -> None:
        self.device, self.meter = device, MemoryMeter()
        release_memory()
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
            self.tokens_per_second = self.trainer.stats.tokens_seen / (time.perf_counter() - self._began)
            self.peak_bytes = self.whole.peak()


def _trainer(task: _Task, model: Any, rows: Collator, steps: _Steps, scratch: Path) -> PackedTrainer:
    arguments = training_arguments(task.recipe, output=scratch, steps=STEPS, learning_rate=LEARNING_RATE, device=task.device)
    arguments.save_strategy = "no"
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        loraplus_lr_ratio=task.recipe.train.loraplus_lr_ratio,
        collator=rows,
        schedule=StepSchedule((task.step,) * STEPS, ()),
        files=task.files,
        callbacks=[steps],
        mixed=task.mixed,
    )
    steps.trainer = trainer
    return trainer
