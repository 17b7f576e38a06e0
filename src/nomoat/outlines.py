"""A base, with or without its adapter, as an outline: every parameter has its shape, type and device, and none has data.

Built from the base's configuration by the same calls as the real one, so that counts and bytes are those of the real one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from nomoat import bases, whole_model
from nomoat.adapters import attach_adapter
from nomoat.bases import BaseFiles
from nomoat.devices import QUANTISED
from nomoat.recipe import Lora


@dataclass(frozen=True)
class Counts:
    """What is trained and shipped, beside the base. Parameters are counts (tied ones once), `saved_bytes` is the file with the weights."""

    base_parameters: int
    trainable: int
    saved_bytes: int


def outline(config: Any, precision: str, device: str = "cpu") -> Any:
    """The base on the meta device as `bases.load_model` would load it in `precision` on `device`, frozen and in eval mode."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=bases.dtype_of(precision, device))
    if precision in QUANTISED:
        _quantise(model, precision, device)
    return model.eval().requires_grad_(False)


def _quantise(model: Any, precision: str, device: str) -> None:
    """transformers' own choice of what is quantised; the bytes follow in `without_data`."""
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(bases.quantization(precision, device), pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    quantizer.postprocess_model(model)
    for module in model.modules():
        if hasattr(getattr(module, "state", None), "threshold"):
            module.state.threshold = 0.0  # which columns are kept in 16 bits depends on data; they are few


def adapted(model: Any, lora: Lora, files: BaseFiles) -> Any:
    """An outline with the recipe's adapter on it, or opened for full fine-tuning."""
    # PiSSA's first values come from the base's, of which there are none; its shapes are those of a plain LoRA.
    plain = lora.model_copy(update={"method": "lora"}) if lora.method == "pissa" else lora
    with torch.device("meta"):
        return attach_adapter(model, plain, seed=0, files=files)


def counts(config: Any, lora: Lora, files: BaseFiles) -> Counts:
    """Exact, for every architecture; NomoatError for `lora.targets` that this base does not have."""
    base = outline(config, "float32")
    parameters = sum(parameter.numel() for parameter in base.parameters())
    model = adapted(base, lora, files)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainable = sum(parameter.numel() for parameter in trained.values())
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    if lora.method != whole_model.METHOD:
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
    model = outline(config, precision, device)
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
