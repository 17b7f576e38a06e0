"""How much memory the phases of a run need at their peaks, part by part, from traces of the work itself without data."""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nomoat.config.schema import QUANTISED, Lora, Recipe
from nomoat.errors import NomoatError
from nomoat.evaluation.prefill import Request, prefill_packed, prefill_padded
from nomoat.kernels.kv_cache import SPARE
from nomoat.kernels.linear import can_prepack
from nomoat.kernels.varlen_attention import enable_varlen_attention
from nomoat.models.adapter import FULL, attach_adapter
from nomoat.models.base import BaseFiles, dtype_of, quantization_config
from nomoat.planning.workload import Workload
from nomoat.training.collate import Collator, check_packing, summed_loss
from nomoat.training.packing import with_layers

# MERGED memory_trace:
# What a computation holds in memory at each moment, found by carrying it out on tensors that have a shape and no data.
#
# torch's fake tensors go through the same operators, autograd and attention kernels as real ones, on the device they claim to be on, so
# that every architecture is followed without a formula. Each block of memory is counted from its allocation to its release.

Block = tuple[int, str]  # bytes, and the part that they belong to

_FRESH = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.zeros.default,
    torch.ops.aten.ones.default,
}


class Timeline:
    """Blocks of memory, born and gone in order; each belongs to the part that was named when it was born, or renamed later."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._alive: dict[int, int] = {}  # key (an address) -> number of the block
        self._events: list[tuple[int, int]] = []  # number of a block, +1 where it is born and -1 where it is gone

    def born(self, key: int, size: int, part: str) -> None:
        """A block of `size` bytes at `key`."""
        self._alive[key] = len(self._blocks)
        self._events.append((len(self._blocks), 1))
        self._blocks.append((size, part))

    def gone(self, key: int) -> None:
        """The block at `key` is released; one from before the timeline is not known and not counted."""
        number = self._alive.pop(key, None)
        if number is not None:
            self._events.append((number, -1))

    def holds(self, key: int) -> bool:
        """Whether a block at `key` is alive."""
        return key in self._alive

    def rename(self, keys: Iterable[int], part: str) -> None:
        """Blocks that are alive now and turn out to belong to another part."""
        for number in (self._alive[key] for key in keys if key in self._alive):
            self._blocks[number] = (self._blocks[number][0], part)

    def at_peak(self) -> list[Block]:
        """The blocks alive at the moment at which all together are largest."""
        held = highest = place = 0
        for index, (number, sign) in enumerate(self._events):
            held += sign * self._blocks[number][0]
            if held > highest:
                highest, place = held, index + 1
        alive: set[int] = set()
        for number, sign in self._events[:place]:
            (alive.add if sign > 0 else alive.discard)(number)
        return [self._blocks[number] for number in sorted(alive)]


def by_part(blocks: Sequence[Block]) -> Counter[str]:
    """Bytes of each part."""
    found: Counter[str] = Counter()
    for size, part in blocks:
        found[part] += size
    return found


class ShapesDependOnData(NomoatError):
    """An architecture that cannot be followed without data, such as one that sends each token to experts of its own."""


class MemoryTrace(TorchDispatchMode):
    """Follows a computation on fake tensors: `with trace.running(), trace.of("activations"): ...`.

    Numbers that are there (token ids, positions, masks) stay real and are computed as usual, since they decide what is computed;
    where a tensor without data is asked for its value, the answer is 0.
    """

    def __init__(self, fake: FakeTensorMode, before: Iterable[torch.Tensor] = ()) -> None:
        """`before`: tensors that are accounted for elsewhere, such as the model's own."""
        super().__init__()
        self.timeline, self.fake, self.part = Timeline(), fake, "other"
        self._before = keys_of(before)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything inside is traced."""
        try:
            with warnings.catch_warnings(), self.fake, self:
                warnings.filterwarnings("ignore", message=".*data pointer of FakeTensor.*")  # that it is 0 does no harm here
                yield
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise ShapesDependOnData(str(error).splitlines()[0]) from error

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is allocated inside belongs to `part`, unless another is named on the way."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, FakeTensor) for value in tree_iter((args, kwargs))) and not _makes_numbers(func, kwargs):
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        elif func is torch.ops.aten._local_scalar_dense.default:
            out = False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        else:
            out = func(*args, **kwargs)
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._note(value)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._before and not self.timeline.holds(key):
            self.timeline.born(key, storage.nbytes(), self.part)
            weakref.finalize(storage, self.timeline.gone, key)


def _makes_numbers(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this is a fresh tensor of the kind that weights and activations are: it needs no data either."""
    return func in _FRESH and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point


def keys_of(tensors: Iterable[torch.Tensor | None]) -> set[int]:
    """How the timeline of a MemoryTrace knows these tensors."""
    return {int(tensor.untyped_storage()._cdata) for tensor in tensors if tensor is not None}


# MERGED outlines:
# A base, with or without its adapter, as an outline: every parameter has its shape, type and device, and none has data.
#
# Built from the base's configuration by the same calls as the real one, so that counts and bytes are those of the real one.


@dataclass(frozen=True)
class Counts:
    """What is trained and shipped, beside the base. Parameters are counts (tied ones once), `saved_bytes` is the file with the weights."""

    base_parameters: int
    trainable: int
    saved_bytes: int


def meta_model(config: Any, precision: str, device: str = "cpu") -> Any:
    """The base on the meta device as `bases.load_model` would load it in `precision` on `device`, frozen and in eval mode."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype_of(precision, device))
    if precision in QUANTISED:
        _quantise(model, precision, device)
    return model.eval().requires_grad_(False)


def _quantise(model: Any, precision: str, device: str) -> None:
    """transformers' own choice of what is quantised; the bytes follow in `without_data`."""
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization_config(precision, device), pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    quantizer.postprocess_model(model)
    for module in model.modules():
        if hasattr(getattr(module, "state", None), "threshold"):
            module.state.threshold = 0.0  # which columns are kept in 16 bits depends on data; they are few


def with_meta_adapter(model: Any, lora: Lora, files: BaseFiles) -> Any:
    """An outline with the recipe's adapter on it, or opened for full fine-tuning."""
    # PiSSA's first values come from the base's, of which there are none; its shapes are those of a plain LoRA.
    plain = lora.model_copy(update={"method": "lora"}) if lora.method == "pissa" else lora
    with torch.device("meta"):
        return attach_adapter(model, plain, seed=0, files=files)


def count_parameters(config: Any, lora: Lora, files: BaseFiles) -> Counts:
    """Exact, for every architecture; NomoatError for `lora.targets` that this base does not have."""
    base = meta_model(config, "float32")
    parameters = sum(parameter.numel() for parameter in base.parameters())
    model = with_meta_adapter(base, lora, files)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainable = sum(parameter.numel() for parameter in trained.values())
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    if lora.method != FULL:
        shapes = {name: _saved_shape(name, shape, lora) for name, shape in _saved(model).items()}
    return Counts(parameters, trainable, _file_bytes(shapes))


def _saved(model: Any) -> dict[str, tuple[int, ...]]:
    from peft import get_peft_model_state_dict

    return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def _saved_shape(name: str, shape: tuple[int, ...], lora: Lora) -> tuple[int, ...]:
    """A PiSSA adapter is saved as a plain LoRA of twice the rank (adapters.as_plain_lora)."""
    if lora.method != "pissa":
        return shape
    return (2 * shape[0], *shape[1:]) if ".lora_A." in name else (shape[0], 2 * shape[1])


def _file_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Size of a safetensors file of float32 tensors: 8 bytes, a JSON header filled up to a multiple of 8, and the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + text + -text % 8 + end


def fake_mode() -> FakeTensorMode:
    """A world of tensors without data, into which real ones (token ids, tables) may come."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_data(model: Any, fake: FakeTensorMode, device: str) -> Any:
    """An outline with a fake tensor on `device` for each parameter and buffer; ties are kept, quantised weights get their layout."""
    made: dict[int, tuple[Any, Any]] = {}  # beside the old tensor itself, so that its id stays taken
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    made[id(old)] = (_fake_like(old, fake, device), old)
                tensors[name] = made[id(old)][0]
    return model


def _fake_like(old: Any, fake: FakeTensorMode, device: str) -> Any:
    with fake:
        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
        if is_quantised(old):
            return _four_bits(new, old) if hasattr(old, "compress_statistics") else _eight_bits(new)
        return torch.nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, torch.nn.Parameter) else new


def is_quantised(parameter: Any) -> bool:
    """Whether bitsandbytes holds this parameter, or will, in 4 or 8 bits."""
    return hasattr(parameter, "compress_statistics") or hasattr(parameter, "SCB")


def _four_bits(weight: Any, like: Any) -> Any:
    """As bitsandbytes' Params4bit on its way to a device, by the library's own operators; that class itself takes no fake tensors."""
    from bitsandbytes.functional import quantize_4bit

    names = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
    options = {name: getattr(like, name) for name in names}
    with unset_fake_temporarily():
        quantize_4bit(torch.zeros(64), **options)  # the library keeps the tables of its first call: they must be real ones
    packed, state = quantize_4bit(weight, **options)
    parameter: Any = torch.nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = state
    return parameter


def _eight_bits(weight: Any) -> Any:
    """As bitsandbytes' Int8Params on its way to a device."""
    from bitsandbytes.functional import int8_vectorwise_quant

    rows, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
    parameter: Any = torch.nn.Parameter(rows, requires_grad=False)
    parameter.CB, parameter.SCB, parameter.has_fp16_weights = rows, scales, False
    return parameter


def weight_bytes(config: Any, precision: str, device: str) -> int:
    """Bytes that the base's weights and buffers take in `precision` on `device`."""
    model = meta_model(config, precision, device)
    if precision in QUANTISED:
        model = without_data(model, fake_mode(), device)
    return bytes_of(tensors_of(model))


def tensors_of(model: Any) -> Iterator[Any]:
    """Every tensor a model holds: parameters, buffers, and what quantised ones have beside their weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            yield from (held for held in (state.absmax, state.code, state.offset) if torch.is_tensor(held))
            state = state.state2
        if getattr(tensor, "SCB", None) is not None:
            yield tensor.SCB


def bytes_of(tensors: Iterator[Any]) -> int:
    """Bytes of the memory behind tensors, what several share counted once."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


PARTS = ("weights", "adapter", "optimiser", "activations", "logits", "cache", "heap", "file pages")
Memory = Counter[str]  # bytes of the PARTS at a phase's peak
TRACED = ("activations", "logits", "gradients", "backward")
# A C heap keeps holes between the blocks of one step that those of the next do not fill; blocks of 32 MiB and more (glibc's
# DEFAULT_MMAP_THRESHOLD_MAX) go back to the system at once. How much that is has no formula: as a share of the smaller blocks,
# `make plan MEASURE=1` with glibc 2.36 gave 0.46 for SmolLM2 135M in float32, 0.43 in bfloat16 and 0.32 for Gemma 3 270M; in nf4
# and int8, whose layers expand their weights for a moment in each pass, 0.85 and 0.99. Libraries' own buffers are in it.
HEAP_SHARE, HEAP_SHARE_QUANTISED, HEAP_BLOCK = 0.4, 0.85, 32 << 20


@dataclass(frozen=True)
class MemorySetting:
    """What is held where, and in what precision."""

    config: Any
    counts: Counts
    recipe: Recipe
    files: BaseFiles
    device: str
    precision: str  # of training
    scoring_precision: str

    @property
    def in_full(self) -> bool:
        """Whether every parameter is trained."""
        return self.recipe.lora.method == FULL

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
        weights = weight_bytes(self.config, precision, self.device)
        found = Counter({"weights": weights, "adapter": 0 if self.in_full else 4 * self.counts.trainable})
        if self.device == "cpu" and precision in QUANTISED and dtype_of(precision, self.device) == stated_dtype(self.config):
            kept = (parameter for parameter in meta_model(self.config, precision).parameters() if not is_quantised(parameter))
            found["file pages"] = max(0, file_bytes(self) - sum(parameter.nbytes for parameter in kept))
        return found


def training_memory(setting: MemorySetting, work: Workload) -> Memory:
    """A training step from the second on, when AdamW has its states."""
    if setting.in_full:  # gradients grow with the layers as activations shrink: the peak of a short model is another moment
        step = _largest_step(setting, work)
    else:
        step = extrapolate_layers(setting.config, lambda config: _largest_step(replace(setting, config=config), work))
    trained = 4 * setting.counts.trainable  # float32
    if sum(step[part] for part in TRACED) < trained:  # when all gradients are there, the step's own blocks are gone
        step = Counter({"gradients": trained})
    found = setting.held(setting.kept_precision)
    found["optimiser"] = 2 * trained + step["gradients"]  # AdamW's two states
    found["activations"] = step["activations"] + step["backward"]
    found["logits"] = step["logits"]
    found["heap"] = step["heap"]
    return found


def _largest_step(setting: MemorySetting, work: Workload) -> Memory:
    """The step's blocks at its peak: activations, logits, gradients, what the backward pass needs for a moment, and the heap's holes."""
    fake, model = _fake_model(setting, setting.kept_precision, row_attention=work.row_attention)
    rows = Collator(work.train, (), work.packed, work.pad_id, setting.recipe.train.pack_tokens, work.row_attention)
    several = any(len(step) > 1 for step in work.plan.steps)
    model.train()
    batches = (rows.batch([work.train[number] for number in pack]) for pack in largest_microbatch(work))
    blocks = max((_step(model, batch, fake, setting, several) for batch in batches), key=_total)
    return by_part(blocks) + _heap(blocks, setting.device, setting.kept_precision)


def _total(blocks: Sequence[Block]) -> int:
    return sum(size for size, _ in blocks)


def largest_microbatch(work: Workload) -> list[tuple[int, ...]]:
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


def _step(model: Any, batch: dict[str, Any], fake: FakeTensorMode, setting: MemorySetting, several: bool) -> list[Block]:
    """Forward and backward over one batch; with `several` in a step, the gradients of the one before are there."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trace = MemoryTrace(fake, tensors_of(model))
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


def _fake_model(setting: MemorySetting, precision: str, *, row_attention: bool = False, adapter: bool = True) -> tuple[FakeTensorMode, Any]:
    model = meta_model(setting.config, precision, setting.device)
    if row_attention:
        enable_varlen_attention(model)
    if adapter:
        model = with_meta_adapter(model, setting.recipe.lora, setting.files)
    fake = fake_mode()
    return fake, without_data(model, fake, setting.device)


def file_bytes(setting: MemorySetting) -> int:
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


def loading_memory(setting: MemorySetting, work: Workload) -> Memory:
    """Reading the weights, then trying whether rows can be packed, both before training, and the larger of the two."""
    found = setting.held(setting.kept_precision)
    del found["adapter"]
    short = replace(setting, config=with_layers(setting.config, 2))
    fake, model = _fake_model(short, setting.kept_precision, row_attention=work.row_attention, adapter=False)
    trace = MemoryTrace(fake, tensors_of(model))
    with trace.running(), trace.of("activations"):
        check_packing(model, work.train)
    check = _total(trace.timeline.at_peak())
    same = dtype_of(setting.kept_precision, setting.device) == stated_dtype(setting.config)
    mapped = 0 if same or found["file pages"] or setting.device != "cpu" else file_bytes(setting)
    # The pages of a file whose tensors are all converted are let go before the check begins.
    return found | Counter({"activations": check} if check > mapped else {"file pages": mapped})


def scoring_memory(setting: MemorySetting, work: Workload) -> Memory:
    """Prompts and references of the batch that needs most, then answers up to the longest allowed."""

    def of(batch: Sequence[Request]) -> Memory:
        return extrapolate_layers(setting.config, lambda config: _answering(replace(setting, config=config), work, batch))

    found = max(map(of, work.batches), key=Counter.total)
    held = setting.held(setting.scoring_precision)
    held["weights"] += _packed_copies(setting)
    if setting.in_full or setting.recipe.lora.method == "pissa":
        held["weights"] *= 2  # the base is loaded by itself
    return found + held


def _answering(setting: MemorySetting, work: Workload, batch: Sequence[Request]) -> Memory:
    """The beginning of a batch (beginnings.py), or what its cache has grown to at the end if that is more."""
    fake, model = _fake_model(setting, setting.scoring_precision, row_attention=work.answers_packed)
    model.eval().requires_grad_(False)
    begin = prefill_packed if work.answers_packed else prefill_padded
    limit = setting.recipe.eval.max_new_tokens
    trace = MemoryTrace(fake, tensors_of(model))
    with trace.running(), torch.no_grad(), trace.of("activations"):
        begun = begin(model, batch, pad_id=work.pad_id, limit=limit)
    states = [states for layer in begun.cache.layers if layer.is_initialized for states in (layer.keys, layer.values)]
    trace.timeline.rename(keys_of(states), "cache")
    blocks = trace.timeline.at_peak()
    grown = sum(state.numel() // state.shape[-2] * (state.shape[-2] + limit + SPARE) * state.element_size() for state in states)
    return (
        Counter({"cache": grown}) if grown > _total(blocks) else by_part(blocks) + _heap(blocks, setting.device, setting.scoring_precision)
    )


def _packed_copies(setting: MemorySetting) -> int:
    """Bytes of the head's weights where packed_linear.pack_linears copies them, since the embedding uses them too."""
    if not can_prepack(dtype_of(setting.scoring_precision, setting.device), setting.device):
        return 0
    model = meta_model(setting.config, setting.scoring_precision)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head.numel() * head.element_size() if head is embedding else 0


def gate_memory(setting: MemorySetting, trained: Memory) -> Memory:
    """A fresh base with the saved adapter beside the trained model and its optimiser.

    What training's activations took is free by then: on a GPU it is used again, a C heap keeps most of it all the same.
    """
    if setting.device == "cpu":
        return trained + Counter({part: trained[part] for part in ("weights", "adapter")})
    twice = Counter({part: 2 * trained[part] for part in ("weights", "adapter")})
    return twice + Counter({part: trained[part] for part in ("optimiser", "logits")})


def extrapolate_layers(config: Any, count: Callable[[Any], Counter[str]]) -> Counter[str]:
    """`count` of the whole model, from two short ones where all layers are alike: each further layer then adds the same.

    Layers of several kinds count as alike in periods of them. Whether layers are alike is seen from their parameters.
    """
    layers = config.get_text_config().num_hidden_layers
    period = _period(config)
    one = max(2, period)
    two = one + period
    if layers <= two or (layers - one) % period:
        return count(config)
    few, more, all_of = (_parameters(each) for each in (with_layers(config, one), with_layers(config, two), config))
    if (more - few) * (layers - one) != (all_of - few) * (two - one):
        return count(config)
    least, most = count(with_layers(config, one)), count(with_layers(config, two))
    return Counter({key: least[key] + (most[key] - least[key]) * (layers - one) // (two - one) for key in {*least, *most}})


def _period(config: Any) -> int:
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or [""])
    return next(length for length in range(1, len(kinds) + 1) if all(kind == kinds[place % length] for place, kind in enumerate(kinds)))


def _parameters(config: Any) -> int:

    return sum(parameter.numel() for parameter in meta_model(config, "float32").parameters())
