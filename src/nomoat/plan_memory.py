"""How much memory the phases of a run need at their peaks, part by part, from traces of the work itself without data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nomoat import outlines, whole_model
from nomoat.bases import BaseFiles, dtype_of
from nomoat.batches import Rows, summed_loss
from nomoat.beginnings import Question, begin_packed, begin_padded
from nomoat.caches import SPARE
from nomoat.devices import QUANTISED
from nomoat.memory_trace import Block, MemoryTrace, by_part, keys_of
from nomoat.packed_linear import can_pack
from nomoat.packing import packing_is_safe
from nomoat.planned_work import Work
from nomoat.recipe import Recipe
from nomoat.row_attention import use_row_attention
from nomoat.shortening import over_layers, shortened

PARTS = ("weights", "adapter", "optimiser", "activations", "logits", "cache", "heap", "file pages")
Memory = Counter[str]  # bytes of the PARTS at a phase's peak
TRACED = ("activations", "logits", "gradients", "backward")
# A C heap keeps holes between the blocks of one step that those of the next do not fill; blocks of 32 MiB and more (glibc's
# DEFAULT_MMAP_THRESHOLD_MAX) go back to the system at once. How much that is has no formula: as a share of the smaller blocks,
# `make plan MEASURE=1` with glibc 2.36 gave 0.46 for SmolLM2 135M in float32, 0.43 in bfloat16 and 0.32 for Gemma 3 270M; in nf4
# and int8, whose layers expand their weights for a moment in each pass, 0.85 and 0.99. Libraries' own buffers are in it.
HEAP_SHARE, HEAP_SHARE_QUANTISED, HEAP_BLOCK = 0.4, 0.85, 32 << 20


@dataclass(frozen=True)
class Setting:
    """What is held where, and in what precision."""

    config: Any
    counts: outlines.Counts
    recipe: Recipe
    files: BaseFiles
    device: str
    precision: str  # of training
    scoring_precision: str

    @property
    def in_full(self) -> bool:
        """Whether every parameter is trained."""
        return self.recipe.lora.method == whole_model.METHOD

    @property
    def mixed(self) -> bool:
        """Whether products are in bfloat16 while the weights are in float32."""
        return self.in_full and self.precision == "bfloat16"

    @property
    def kept_precision(self) -> str:
        """Precision of the weights in training: whole_model.py says why they stay in float32 when they are trained."""
        return "float32" if self.in_full else self.precision

    def held(self, precision: str) -> Memory:
        """What is there all the time: weights, the adapter in float32, and the pages of a file that one of its tensors keeps mapped."""
        weights = outlines.weight_bytes(self.config, precision, self.device)
        found = Counter({"weights": weights, "adapter": 0 if self.in_full else 4 * self.counts.trainable})
        if self.device == "cpu" and precision in QUANTISED and dtype_of(precision, self.device) == stated_dtype(self.config):
            kept = (
                parameter for parameter in outlines.outline(self.config, precision).parameters() if not outlines.is_quantised(parameter)
            )
            found["file pages"] = max(0, file_bytes(self) - sum(parameter.nbytes for parameter in kept))
        return found


def training(setting: Setting, work: Work) -> Memory:
    """A training step from the second on, when AdamW has its states."""
    if setting.in_full:  # gradients grow with the layers as activations shrink: the peak of a short model is another moment
        step = _largest_step(setting, work)
    else:
        step = over_layers(setting.config, lambda config: _largest_step(replace(setting, config=config), work))
    trained = 4 * setting.counts.trainable  # float32
    if sum(step[part] for part in TRACED) < trained:  # when all gradients are there, the step's own blocks are gone
        step = Counter({"gradients": trained})
    found = setting.held(setting.kept_precision)
    found["optimiser"] = 2 * trained + step["gradients"]  # AdamW's two states
    found["activations"] = step["activations"] + step["backward"]
    found["logits"] = step["logits"]
    found["heap"] = step["heap"]
    return found


def _largest_step(setting: Setting, work: Work) -> Memory:
    """The step's blocks at its peak: activations, logits, gradients, what the backward pass needs for a moment, and the heap's holes."""
    fake, model = _fake_model(setting, setting.kept_precision, row_attention=work.row_attention)
    rows = Rows(work.train, (), work.packed, work.pad_id, setting.recipe.train.pack_tokens, work.row_attention)
    several = any(len(step) > 1 for step in work.plan.steps)
    model.train()
    batches = (rows.batch([work.train[number] for number in pack]) for pack in fullest(work))
    blocks = max((_step(model, batch, fake, setting, several) for batch in batches), key=_total)
    return by_part(blocks) + _heap(blocks, setting.device, setting.kept_precision)


def _total(blocks: Sequence[Block]) -> int:
    return sum(size for size, _ in blocks)


def fullest(work: Work) -> list[tuple[int, ...]]:
    """The forward passes that may be the largest: the one with the most tokens, and the one with the most labels."""
    packs = [pack for step in work.plan.steps for pack in step]
    rows = work.train

    def tokens(pack: tuple[int, ...]) -> int:
        if work.packed:
            return sum(rows[number].length for number in pack)
        return len(pack) * max(rows[number].length for number in pack)

    def labels(pack: tuple[int, ...]) -> int:
        return sum(len(rows[number].completion_ids) for number in pack)

    most = max(packs, key=lambda pack: (tokens(pack), labels(pack)))
    wordy = max(packs, key=lambda pack: (labels(pack), tokens(pack)))
    return [most] if labels(most) > 0.9 * labels(wordy) else [most, wordy]


def _step(model: Any, batch: dict[str, Any], fake: FakeTensorMode, setting: Setting, several: bool) -> list[Block]:
    """Forward and backward over one batch; with `several` in a step, the gradients of the one before are there."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trace = MemoryTrace(fake, outlines.tensors_of(model))
    products = torch.autocast(setting.device, dtype=torch.bfloat16) if setting.mixed else nullcontext()
    with trace.running(), _head_named(model, lambda: setattr(trace, "part", "logits")):
        if several:
            with trace.of("gradients"):
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
        with trace.of("activations"), products:
            loss = summed_loss(model, batch)
        with trace.of("backward"):
            loss.backward()
    trace.timeline.rename(keys_of(parameter.grad for parameter in trained), "gradients")
    for parameter in trained:
        parameter.grad = None
    return trace.timeline.at_peak()


@contextmanager
def _head_named(model: Any, named: Callable[[], None]) -> Iterator[None]:
    """`named` is called where the model begins to compute logits."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda *_: named())
    try:
        yield
    finally:
        hook.remove()


def _fake_model(setting: Setting, precision: str, *, row_attention: bool = False, adapter: bool = True) -> tuple[FakeTensorMode, Any]:
    model = outlines.outline(setting.config, precision, setting.device)
    if row_attention:
        use_row_attention(model)
    if adapter:
        model = outlines.adapted(model, setting.recipe.lora, setting.files)
    fake = outlines.fake_mode()
    return fake, outlines.without_data(model, fake, setting.device)


def file_bytes(setting: Setting) -> int:
    """The base's safetensors on disk; where they are not here yet, as many as its configuration says."""
    there = sum(file.stat().st_size for file in setting.files.folder.glob("*.safetensors"))
    if there:
        return there
    return int(setting.counts.base_parameters * stated_dtype(setting.config).itemsize)


def stated_dtype(config: Any) -> torch.dtype:
    """What the base's files hold."""
    return getattr(config, "dtype", None) or torch.float32


def _heap(blocks: Sequence[Block], device: str, precision: str) -> Memory:
    if device != "cpu":
        return Counter()
    share = HEAP_SHARE_QUANTISED if precision in QUANTISED else HEAP_SHARE
    return Counter({"heap": round(share * sum(size for size, _ in blocks if size < HEAP_BLOCK))})


def loading(setting: Setting, work: Work) -> Memory:
    """Reading the weights, then trying whether rows can be packed, both before training, and the larger of the two."""
    found = setting.held(setting.kept_precision)
    del found["adapter"]
    short = replace(setting, config=shortened(setting.config, 2))
    fake, model = _fake_model(short, setting.kept_precision, row_attention=work.row_attention, adapter=False)
    trace = MemoryTrace(fake, outlines.tensors_of(model))
    with trace.running(), trace.of("activations"):
        packing_is_safe(model, work.train)
    check = _total(trace.timeline.at_peak())
    same = dtype_of(setting.kept_precision, setting.device) == stated_dtype(setting.config)
    mapped = 0 if same or found["file pages"] or setting.device != "cpu" else file_bytes(setting)
    # The pages of a file whose tensors are all converted are let go before the check begins.
    return found | Counter({"activations": check} if check > mapped else {"file pages": mapped})


def scoring(setting: Setting, work: Work) -> Memory:
    """Prompts and references of the batch that needs most, then answers up to the longest allowed."""

    def of(batch: Sequence[Question]) -> Memory:
        return over_layers(setting.config, lambda config: _answering(replace(setting, config=config), work, batch))

    found = max(map(of, work.batches), key=Counter.total)
    held = setting.held(setting.scoring_precision)
    held["weights"] += _packed_copies(setting)
    if setting.in_full or setting.recipe.lora.method == "pissa":
        held["weights"] *= 2  # the base is loaded by itself
    return found + held


def _answering(setting: Setting, work: Work, batch: Sequence[Question]) -> Memory:
    """The beginning of a batch (beginnings.py), or what its cache has grown to at the end if that is more."""
    fake, model = _fake_model(setting, setting.scoring_precision, row_attention=work.answers_packed)
    model.eval().requires_grad_(False)
    begin = begin_packed if work.answers_packed else begin_padded
    limit = setting.recipe.eval.max_new_tokens
    trace = MemoryTrace(fake, outlines.tensors_of(model))
    with trace.running(), torch.no_grad(), trace.of("activations"):
        begun = begin(model, batch, pad_id=work.pad_id, limit=limit)
    states = [states for layer in begun.cache.layers if layer.is_initialized for states in (layer.keys, layer.values)]
    trace.timeline.rename(keys_of(states), "cache")
    blocks = trace.timeline.at_peak()
    grown = sum(state.numel() // state.shape[-2] * (state.shape[-2] + limit + SPARE) * state.element_size() for state in states)
    return (
        Counter({"cache": grown}) if grown > _total(blocks) else by_part(blocks) + _heap(blocks, setting.device, setting.scoring_precision)
    )


def _packed_copies(setting: Setting) -> int:
    """Bytes of the head's weights where packed_linear.pack_linears copies them, since the embedding uses them too."""
    if not can_pack(dtype_of(setting.scoring_precision, setting.device), setting.device):
        return 0
    model = outlines.outline(setting.config, setting.scoring_precision)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head.numel() * head.element_size() if head is embedding else 0


def gate(setting: Setting, trained: Memory) -> Memory:
    """A fresh base with the saved adapter beside the trained model and its optimiser.

    What training's activations took is free by then: on a GPU it is used again, a C heap keeps most of it all the same.
    """
    if setting.device == "cpu":
        return trained + Counter({part: trained[part] for part in ("weights", "adapter")})
    twice = Counter({part: 2 * trained[part] for part in ("weights", "adapter")})
    return twice + Counter({part: trained[part] for part in ("optimiser", "logits")})
