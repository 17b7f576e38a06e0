"""`make plan MEASURE=1`: load the base and run its largest optimiser step with the real trainer, in a separate process.

The total is the resident set above what it was before the base was loaded, without the pages of files, which the system can take back;
on a GPU it is what torch has allocated there. Weights, adapter and optimiser are known exactly; activations, logits, gradients and holes
in the heap are what is left.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from nomoat.cli import configure_logging
from nomoat.errors import NomoatError
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import attach_adapter, has_adapter
from nomoat.models.base import fetch_base, load_model
from nomoat.models.device import choose_device, release_memory
from nomoat.planning.memory import Memory, ModelSpec, meta_model, storages_of
from nomoat.planning.workload import Workload
from nomoat.runs.meters import MemoryMeter
from nomoat.training.collate import choose_packing
from nomoat.training.loop import PackedTrainer, training_arguments
from nomoat.training.packing import StepSchedule

LEARNING_RATE = 1e-5  # the trained weights are thrown away
REST = "the rest"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Bytes by part at the peaks of loading and training, REST among them, and tokens per second of the largest step."""

    phases: dict[str, Memory]
    tokens_per_second: float


def measure(spec: ModelSpec, work: Workload) -> Measurement:
    """Downloads the base if necessary. Raises NomoatError if the measuring process is killed, as it is when memory runs out."""
    spec = replace(spec, files=fetch_base(spec.recipe.base))
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, spec, work).result()
        except BrokenProcessPool:
            raise NomoatError("the measuring process was killed, most likely for lack of memory: choose smaller settings") from None


def _measure(spec: ModelSpec, work: Workload) -> Measurement:
    configure_logging()
    device, kernels = spec.device.kind, spec.recipe.hardware.kernels
    choose_device(spec.recipe.hardware)  # sets the threads
    meta_model(spec, spec.weights_precision)  # imports libraries before the first reading
    meter = MemoryMeter()

    def peak() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return meter.peak_resident_bytes() - getattr(psutil.Process().memory_info(), "shared", 0)

    release_memory()
    meter.start()
    before = peak()
    model = load_model(spec.files, precision=spec.weights_precision, device=device)
    weights = sum(storages_of(model).values())
    packed, _ = choose_packing(model, work.collator.train, device, kernels=kernels)
    loading = Counter({"weights": weights, REST: peak() - before - weights})
    meter.start()
    model = attach_adapter(model, spec.recipe.lora, seed=spec.recipe.train.seed, files=spec.files, kernels=kernels)
    step = next(step for step in work.schedule.steps if work.largest_microbatch in step)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(spec.recipe, output=Path(scratch), steps=1, learning_rate=LEARNING_RATE, device=device)
        arguments.save_strategy, arguments.report_to = "no", []
        trainer = PackedTrainer(
            model=model,
            args=arguments,
            schedule=StepSchedule((step,), ()),
            collator=replace(work.collator, packed=packed, shared=packed and uses_varlen_attention(model)),
            files=spec.files,
            loraplus_lr_ratio=spec.recipe.train.loraplus_lr_ratio,
            mixed=spec.weights_precision != spec.precision,
        )
        trainer.train()  # the first step creates the optimiser's states and chooses kernels; the second is timed
    began = time.perf_counter()
    trainer.training_step(model, trainer.collator.batches(step))
    trainer.optimizer.step()
    tokens_per_second = trainer.step_tokens["tokens_seen"] / (time.perf_counter() - began)
    states = (value for state in trainer.optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    training = Counter({"weights": weights, "optimiser": sum(value.nbytes for value in states)})
    if has_adapter(model):
        training["adapter"] = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    training[REST] = peak() - before - training.total()
    return Measurement(phases={"loading": loading, "training": training}, tokens_per_second=tokens_per_second)
