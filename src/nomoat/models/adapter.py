"""The part of a model that is trained: a LoRA adapter or, with `method: full`, every parameter.

The same functions attach, save, restore, load and describe both, so that a run is one story and the two methods are compared by the
same code. An adapter's folder is loaded by peft alone, a whole model's by transformers alone, and no file names this machine.

Full fine-tuning keeps weights and optimiser state in float32; with `precision: bfloat16` only the matrix products are in 16 bits
(autocast): AdamW's steps of about 1e-4 would vanish in bfloat16 weights, whose next value lies 0.4 % away.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save, save_file
from transformers import set_seed

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError, did_you_mean
from nomoat.io import read_json, sha256_file, write_atomically, write_json
from nomoat.kernels.linear import with_fused_lora
from nomoat.models.base import BaseFiles
from nomoat.reports.schema import AdapterFacts

FULL = "full"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # of an adapter, as peft names them
MODEL_WEIGHTS = "model.safetensors"  # of a whole model, as transformers names them


@dataclass(frozen=True)
class AdapterSize:
    """Parameters that are trained and those of the base, as counts, and the number of modules that are trained."""

    parameters: int
    base_parameters: int
    modules: int


def attach_adapter(model: Any, lora: Lora, *, seed: int, files: BaseFiles, kernels: str = "auto") -> Any:
    """`model` with a fresh adapter in float32, its weights drawn from `seed`; with `method: full`, `model` with every parameter trained.

    `kernels="plain"` builds peft's own LoRA layers everywhere. Raises NomoatError where a target names no linear module.
    """
    if lora.method == FULL:
        return model.requires_grad_(True)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_checked_targets(model, lora),
        use_rslora=lora.method == "rslora",
        use_dora=lora.method == "dora",
        init_lora_weights="pissa" if lora.method == "pissa" else True,
    )
    set_seed(seed)
    adapted = get_peft_model(model, with_fused_lora(config, model, kernels))
    adapted.peft_config["default"].base_model_name_or_path = files.name
    adapted.peft_config["default"].revision = files.revision
    return adapted


def _checked_targets(model: Any, lora: Lora) -> str | list[str]:
    """peft raises only if no target matches at all, and ignores the others that match nothing."""
    if isinstance(lora.targets, str):
        return lora.targets
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.startswith(("Linear", "Conv1D"))}
    for target in lora.targets:
        if target not in linear:
            raise NomoatError(f"lora.targets: {target!r} is not a linear module of this base{did_you_mean(target, sorted(linear))}")
    return list(lora.targets)


def has_adapter(model: Any) -> bool:
    """Whether `model` is a base with an adapter, which can be switched off, and not a model trained in full."""
    return hasattr(model, "disable_adapter")


def adapter_tensors(model: Any) -> dict[str, Any]:
    """Copies of the trained tensors on the CPU, by the names under which they are saved: the adapter's, or the whole model's."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False) if has_adapter(model) else model_tensors(model)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}


def model_tensors(model: Any) -> dict[str, Any]:
    """Every tensor of a model by its name, tied ones once, none of them copied."""
    tensors = {}
    pointers: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in pointers:
            pointers.add(tensor.data_ptr())
            tensors[name] = tensor.detach()
    return tensors


def fingerprint(tensors: dict[str, Any]) -> str:
    """sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def adapter_size(model: Any) -> AdapterSize:
    """The size of what is trained; tied weights count once, quantised ones by their true number."""
    if not has_adapter(model):
        total = sum(parameter.numel() for parameter in model.parameters())
        return AdapterSize(total, total, sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules()))
    tensors = adapter_tensors(model)
    trained, total = sum(tensor.numel() for tensor in tensors.values()), model.get_nb_trainable_parameters()[1]
    return AdapterSize(trained, total - trained, sum(".lora_A." in name for name in tensors))


def save_adapter(model: Any, folder: Path, files: BaseFiles, *, start: dict[str, Any] | None = None) -> None:
    """Weights and config, nothing else; the config records the base by its public name, never by a path of this machine.

    `start`: the initial tensors of a PiSSA adapter, which is then saved as the LoRA that does the same to the untouched base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapter(model):
        _save_lora(model, folder, files, start)
    else:
        _save_whole(model, folder)


def _save_lora(model: Any, folder: Path, files: BaseFiles, start: dict[str, Any] | None) -> None:
    tensors, config = adapter_tensors(model), model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": files.name, "revision": files.revision, "inference_mode": True}
    if start is not None:
        tensors = as_plain_lora(tensors, start)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    plain = json.loads(json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
    if isinstance(plain.get("target_modules"), list):
        plain["target_modules"] = sorted(plain["target_modules"])  # peft keeps a set: its order changes between processes
    write_json(folder / CONFIG, plain)


def _save_whole(model: Any, folder: Path) -> None:
    unfinished = folder / f".{MODEL_WEIGHTS}"  # a file and not bytes in memory: the model is held there already
    save_file({name: tensor.cpu().contiguous() for name, tensor in model_tensors(model).items()}, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / MODEL_WEIGHTS)
    write_atomically(folder / "config.json", model.config.to_json_string(use_diff=False))
    if model.can_generate():
        write_atomically(folder / "generation_config.json", model.generation_config.to_json_string())


def as_plain_lora(tensors: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """A PiSSA adapter as a LoRA of twice the rank and alpha.

    PiSSA (Meng et al. 2024, arXiv:2404.02948) takes s B0 A0, the principal part of the base's weights W, out of them and trains from
    there: the layer computes W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]. peft's own conversion gives the same bits, but needs the
    initial adapter in a folder.
    """
    joined = {}
    for name, tensor in tensors.items():
        is_a = ".lora_A." in name
        joined[name] = torch.cat([tensor, start[name]], dim=0) if is_a else torch.cat([tensor, -start[name]], dim=1)
    return joined


def weights_of(folder: Path) -> Path:
    """The weights file of `folder`: a whole model's if there is one, otherwise an adapter's, whether it exists or not."""
    whole = folder / MODEL_WEIGHTS
    return whole if whole.is_file() else folder / WEIGHTS


def load_adapter(model: Any, folder: Path, *, kernels: str = "auto") -> Any:
    """`model` with the adapter of `folder` attached, or with the weights of a whole model, in eval mode (peft leaves dropout on).

    `kernels` as in `attach_adapter`. Raises NomoatError where the folder has no weights in safetensors.
    """
    if not weights_of(folder).is_file():
        raise NomoatError(f"{folder} has no {WEIGHTS}: not a finished adapter (other formats are not loaded)")
    if weights_of(folder).name == MODEL_WEIGHTS:
        load_model(model, folder / MODEL_WEIGHTS)
        return model.eval()
    config = with_fused_lora(LoraConfig.from_pretrained(folder), model, kernels)
    return PeftModel.from_pretrained(model, folder, is_trainable=False, config=config).eval()


def restore_adapter(model: Any, folder: Path) -> None:
    """Put the weights saved in `folder` into what `model` trains; NomoatError unless every tensor has its counterpart."""
    check_tensor_shapes(model, folder)
    if has_adapter(model):
        set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    else:
        load_model(model, folder / MODEL_WEIGHTS)


def check_tensor_shapes(model: Any, folder: Path) -> int:
    """The number of tensors saved in `folder`; NomoatError unless they are those that `model` trains, name by name and shape by shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
    with safe_open(weights_of(folder), framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - a handle, not a dict
    unexpected = sorted(name for name, shape in saved.items() if expected.get(name) != shape)
    missing = sorted(set(expected) - set(saved))
    if unexpected or missing:
        raise NomoatError(
            f"the adapter does not belong to this base: {len(unexpected)} of its {len(saved)} tensors have no counterpart of their "
            f"shape in the model, and {len(missing)} of the model's are missing (such as {(unexpected or missing)[0]})"
        )
    return len(saved)


def warm_start_folder(lora: Lora, files: BaseFiles) -> Path | None:
    """The folder of the adapter that training continues from, or None; NomoatError where there is none or it does not fit the recipe."""
    if lora.start is None:
        return None
    stated = Path(lora.start).expanduser()
    folder = stated / "adapter" if (stated / "adapter").is_dir() else stated
    if not weights_of(folder).is_file():
        raise NomoatError(f"lora.start: {lora.start} is neither a finished run nor the folder of an adapter")
    there = _training_settings(folder)
    here: dict[str, Any] = {"method": lora.method}
    if lora.method != FULL and there["method"] != FULL:
        here |= {"rank": lora.rank, "alpha": lora.alpha, "base": files.name}
    different = [f"{name} {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
    if different:
        raise NomoatError(f"lora.start: cannot continue from {lora.start}: {'; '.join(different)}")
    return folder


def _training_settings(folder: Path) -> dict[str, Any]:
    if weights_of(folder).name == MODEL_WEIGHTS:
        return {"method": FULL}
    config = read_json(folder / CONFIG)
    base = config.get("base_model_name_or_path")
    return {"method": method_of(config), "rank": config.get("r"), "alpha": config.get("lora_alpha"), "base": base}


def method_of(config: dict[str, Any]) -> Literal["lora", "rslora", "dora"]:
    """`lora.method` of an adapter, from peft's config."""
    return "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"


def adapter_facts(size: AdapterSize, lora: Lora, folder: Path, files: BaseFiles) -> AdapterFacts:
    """The adapter block of a report."""
    whole = lora.method == FULL
    return AdapterFacts(
        method=lora.method,
        rank=None if whole else lora.rank,
        alpha=None if whole else lora.alpha,
        parameters=size.parameters,
        base_parameters=size.base_parameters,
        bytes=weights_of(folder).stat().st_size,
        base_bytes_16bit=2 * size.base_parameters,
        base_bytes_download=files.identity["download_bytes"],
        sha256=sha256_file(weights_of(folder)),
    )


def add_tokenizer_and_card(folder: Path, tokenizer: Any, files: BaseFiles) -> None:
    """What a recipient of only this folder needs: the tokenizer with its chat template, how to load it, and the base's notice."""
    tokenizer.save_pretrained(folder)
    whole = weights_of(folder).name == MODEL_WEIGHTS
    templates = Environment(
        loader=PackageLoader("nomoat", "models/templates"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    card = templates.get_template("model_card.md.j2").render(base=files, whole=whole)
    write_atomically(folder / "README.md", card)
    if files.identity.get("notice"):
        made = "a model, made by training that base" if whole else "a LoRA adapter, made by training on that base"
        notice, terms = files.identity["notice"], files.identity["terms"]
        write_atomically(folder / "NOTICE", f"{notice}\n\nTerms: {terms}\nThe files in this folder are {made}.\n")
