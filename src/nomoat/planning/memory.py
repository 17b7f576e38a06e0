"""Memory at the peak of each phase of a run, by part, from traces of the phases on tensors without data.

The base is built from its configuration with torch's fake tensors: they have a shape, a type and a device and go through the same
operators, autograd and attention kernels as real ones, so that every architecture is covered without a formula and without its weights.
torch's own tracker (torch.distributed._tools.mem_tracker) raises for frozen parameters, and takes 71 s for SmolLM2 trained in full, not 5.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nomoat.config.schema import QUANTISED, Recipe
from nomoat.evaluation.prefill import prefill_packed, prefill_padded
from nomoat.kernels.kv_cache import SPARE
from nomoat.kernels.linear import can_prepack
from nomoat.kernels.varlen_attention import enable_varlen_attention
from nomoat.models.adapter import FULL, attach_adapter
from nomoat.models.base import OpenBase, dtype_of, quantization_config
from nomoat.planning.workload import Workload
from nomoat.training.collate import check_packing, summed_loss
from nomoat.training.packing import with_layers

Memory = Counter[str]  # bytes by part at a phase's peak
PARTS = ("weights", "adapter", "optimiser", "gradients", "activations", "logits", "cache", "heap")
# A C heap keeps holes between the blocks of one step that those of the next do not fill; blocks of 32 MiB and more (glibc's
# DEFAULT_MMAP_THRESHOLD_MAX) go back to the system at once. How much that is has no formula: as a share of the smaller blocks,
# `make plan MEASURE=1` with glibc 2.36 gave 0.46 for SmolLM2 135M in float32, 0.43 in bfloat16 and 0.32 for Gemma 3 270M; in nf4
# and int8, whose layers expand their weights temporarily in each pass, 0.85 and 0.99. Libraries' own buffers are in it.
HEAP_SHARE, HEAP_SHARE_QUANTISED, HEAP_BLOCK = 0.4, 0.85, 32 << 20


class Counts(NamedTuple):
    """Parameters of the base (tied ones once) and trained ones, and bytes of the file with the trained weights."""

    base_parameters: int
    trainable: int
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec(OpenBase):
    """A recipe's base and what is trained on it, without weights; `config` is transformers' configuration of the base."""

    recipe: Recipe
    config: Any

    @property
    def in_full(self) -> bool:
        """Whether every parameter is trained."""
        return self.recipe.lora.method == FULL

    @property
    def weights_precision(self) -> str:
        """Precision of the weights in training; those that are trained stay in float32 (models/adapter.py says why)."""
        return "float32" if self.in_full else self.precision

    @cached_property
    def counts(self) -> Counts:
        """Exact, except the file (to about 10 bytes per tensor). Raises NomoatError for `lora.targets` that the base lacks."""
        model = meta_model(self, "float32")
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        base = sum(parameter.numel() for parameter in model.parameters()) - (0 if self.in_full else sum(trained))
        values = sum(trained) * (2 if self.recipe.lora.method == "pissa" else 1)  # PiSSA is saved as LoRA of twice the rank
        return Counts(base, sum(trained), 4 * values + 140 * len(trained))  # and a header with each tensor's name, shape and offsets


def meta_model(spec: ModelSpec, precision: str, *, adapter: bool = True) -> Any:
    """The base on the meta device, loaded as `load_model` loads it in `precision`, and the recipe's adapter."""
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    device, lora = spec.device.kind, spec.recipe.lora
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(spec.config), dtype=dtype_of(precision, device), trust_remote_code=False)
    if precision in QUANTISED:  # transformers chooses the layers; `_fake_like` gives them their bytes
        options = quantization_config(precision, device)
        options.llm_int8_threshold = 0.0  # int8 keeps a few columns in 16 bits; which ones depends on data
        quantizer = AutoHfQuantizer.from_config(options, pre_quantized=False)
        quantizer.preprocess_model(model, device_map={"": "cpu"})
        quantizer.postprocess_model(model)
    model.eval().requires_grad_(False)
    if not adapter:
        return model
    if lora.method == "pissa":  # initialised from the base's weights; the shapes are those of LoRA
        lora = lora.model_copy(update={"method": "lora"})
    with torch.device("meta"):
        return attach_adapter(model, lora, seed=0, files=spec.files, kernels=spec.recipe.hardware.kernels)


def fake_model(spec: ModelSpec, precision: str, *, varlen: bool = False, adapter: bool = True) -> Any:
    """`meta_model` on fake tensors of the device; ties are kept, quantised weights have their real layout."""
    model = meta_model(spec, precision, adapter=adapter)
    if varlen:
        enable_varlen_attention(model.get_base_model() if hasattr(model, "get_base_model") else model)
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # token ids stay real
    old = [*model.parameters(), *model.buffers()]  # kept until the end, so that no id is used again
    new = {id(tensor): _fake_like(tensor, fake, spec.device.kind) for tensor in old}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: new[id(tensor)] for name, tensor in tensors.items() if tensor is not None})
    return model


def _fake_like(old: Any, fake: FakeTensorMode, device: str) -> Any:
    """A fake tensor for `old`; a weight of bitsandbytes is quantised by the library's operators, as on its way to a device."""
    from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit

    with fake:
        new: Any = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
        extra: dict[str, Any] = {}
        if hasattr(old, "compress_statistics"):
            options = {name: getattr(old, name) for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")}
            with unset_fake_temporarily():
                quantize_4bit(torch.zeros(64), **options)  # the library keeps the tables of its first call: they must be real ones
            new, extra["quant_state"] = quantize_4bit(new, **options)
        elif hasattr(old, "SCB"):
            new, scales, _ = int8_vectorwise_quant(new.to(torch.float16))
            extra = {"CB": new, "SCB": scales, "has_fp16_weights": False}
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            vars(new).update(extra)
        return new


def storages_of(model: Any) -> dict[int, int]:
    """Address and bytes of the memory of a model's parameters, buffers, and what quantised parameters hold besides their weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        tensors += [parameter.SCB] if getattr(parameter, "SCB", None) is not None else []
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [held for held in (state.absmax, state.code, state.offset) if torch.is_tensor(held)]
            state = state.state2
    return {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}


@dataclass
class Block:
    """A block of memory; `part` may be corrected while it is allocated."""

    size: int
    part: str


class MemoryTrace(TorchDispatchMode):
    """Records the blocks that a computation on a fake model allocates: `with trace.fake, trace: ...`, then `trace.memory()`.

    `part` names what is allocated from now on. Integers (token ids, positions, masks) are computed as usual, since they decide what is
    computed; where a tensor without data is asked for its value, the answer is 0.
    """

    FRESH = (torch.ops.aten.empty, torch.ops.aten.empty_strided, torch.ops.aten.zeros, torch.ops.aten.ones)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.part = "activations"
        self.peak: list[Block] = []  # those allocated when all together were largest
        self.allocated: dict[int, Block] = {}
        self.fake, self._model = next(model.parameters()).fake_mode, storages_of(model)
        self._bytes = self._most_bytes = 0

    def rename(self, tensors: Iterable[torch.Tensor | None], part: str) -> None:
        """Assign the blocks of `tensors` to another part."""
        for tensor in tensors:
            if tensor is not None and (block := self.allocated.get(tensor.untyped_storage()._cdata)):
                block.part = part

    def memory(self, heap_share: float = 0.0) -> Memory:
        """Bytes by part at the peak; of the heap that share of all blocks too small to be returned to the system."""
        memory: Memory = Counter()
        for block in self.peak:
            memory[block.part] += block.size
        gradients = [block for block in self.allocated.values() if block.part == "gradients"]  # leave holes even if allocated later
        blocks = {id(block): block.size for block in (*self.peak, *gradients)}
        memory["heap"] = round(heap_share * sum(size for size in blocks.values() if size < HEAP_BLOCK))
        return memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        fresh = func.overloadpacket in self.FRESH and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point
        with nullcontext() if fresh or any(isinstance(x, FakeTensor) for x in tree_iter((args, kwargs))) else unset_fake_temporarily():
            out = func(*args, **kwargs)
        for storage in (value.untyped_storage() for value in tree_iter(out) if isinstance(value, torch.Tensor)):
            key = storage._cdata
            if key not in self._model and key not in self.allocated:
                self.allocated[key] = Block(storage.nbytes(), self.part)
                weakref.finalize(storage, self._release, key)
                self._bytes += storage.nbytes()
                if self._bytes > self._most_bytes:
                    self._most_bytes, self.peak = self._bytes, list(self.allocated.values())
        return out

    def _release(self, key: int) -> None:
        self._bytes -= self.allocated.pop(key).size


def phase_memory(spec: ModelSpec, work: Workload) -> dict[str, Memory]:
    """Loading, training, adapter checks and scoring, in this order.

    Raises torch's RuntimeError for an architecture that cannot run without data, such as one that routes tokens to experts.
    """
    training = training_memory(spec, work)
    loading, left = Counter({"weights": training["weights"]}), training.copy()
    if spec.device.kind != "cuda":
        two_layers = replace(spec, config=with_layers(spec.config, 2))
        small = fake_model(two_layers, spec.weights_precision, varlen=work.collator.shared, adapter=False)
        check = MemoryTrace(small)
        with check.fake, check:
            check_packing(small, work.collator.train)
        loading += check.memory()
    if spec.device.kind != "cpu":
        del left["activations"]  # a C heap keeps most of their memory, a GPU uses it again
    return {
        "loading": loading,
        "training": training,
        # The saved adapter in a fresh base, and still the trained model with its optimiser.
        "adapter checks": left + Counter({part: training[part] for part in ("weights", "adapter")}),
        "scoring": scoring_memory(spec, work),
    }


def training_memory(spec: ModelSpec, work: Workload) -> Memory:
    """The largest micro-batch of an optimiser step from the second on, when AdamW has its states."""
    model = fake_model(spec, spec.weights_precision, varlen=work.collator.shared).train()
    held, heap_share = _held(spec, model, spec.weights_precision)  # before a forward pass, in which int8 layers take scales away
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = work.collator.batch([work.collator.train[number] for number in work.largest_microbatch])
    batch = {name: value.to(spec.device.kind) if torch.is_tensor(value) else value for name, value in batch.items()}
    trace = MemoryTrace(model)
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: setattr(trace, "part", "logits"))
    with trace.fake, trace:
        if any(len(step) > 1 for step in work.schedule.steps):  # gradients of earlier micro-batches exist
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        with torch.autocast(spec.device.kind, dtype=torch.bfloat16, enabled=spec.weights_precision != spec.precision):
            loss = summed_loss(model, batch, kernels=work.collator.kernels)
        trace.part = "activations"
        loss.backward()
    trace.rename((parameter.grad for parameter in trained), "gradients")
    states = Counter({"optimiser": 2 * 4 * spec.counts.trainable})  # two, in float32
    return held + states + trace.memory(heap_share)


def scoring_memory(spec: ModelSpec, work: Workload) -> Memory:
    """Prefill of the largest batch of prompts and references, or its cache when the answers are as long as allowed, if that is more."""
    precision = spec.scoring_precision
    model = fake_model(spec, precision, varlen=work.packed_prefill).eval()
    held, heap_share = _held(spec, model, precision)
    head = model.get_output_embeddings().weight
    if head is model.get_input_embeddings().weight and can_prepack(head.dtype, spec.device.kind) and work.collator.kernels != "plain":
        held["weights"] += head.nbytes  # prepack_linears copies a weight that the embedding needs as well
    if spec.in_full or spec.recipe.lora.method == "pissa":
        held["weights"] *= 2  # the untouched base is a second model
    trace = MemoryTrace(model)
    prefill, limit = prefill_packed if work.packed_prefill else prefill_padded, spec.recipe.eval.max_new_tokens
    with trace.fake, trace, torch.no_grad():
        cache = prefill(model, work.largest_requests, pad_id=work.collator.pad_id, limit=limit).cache
    states = [states for layer in cache.layers if layer.is_initialized for states in (layer.keys, layer.values)]
    trace.rename(states, "cache")
    at_the_end = sum(state.nbytes // state.shape[-2] * (state.shape[-2] + limit + SPARE) for state in states)
    step = trace.memory()
    return held + (Counter({"cache": at_the_end}) if at_the_end > step.total() else trace.memory(heap_share))


def _held(spec: ModelSpec, model: Any, precision: str) -> tuple[Memory, float]:
    """Weights and adapter, and the share of smaller blocks that the heap keeps."""
    adapter = 0 if spec.in_full else 4 * spec.counts.trainable  # float32
    share = 0.0 if spec.device.kind != "cpu" else HEAP_SHARE_QUANTISED if precision in QUANTISED else HEAP_SHARE
    return Counter({"weights": sum(storages_of(model).values()) - adapter, "adapter": adapter}), share
