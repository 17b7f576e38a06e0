"""Training on top of an earlier run: the adapter begins as that run's, on the same base (`lora.start`)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_file, write_atomically, write_json
from nomoat.models.base import BaseFiles
from nomoat.reports.schema import AdapterFacts

# MERGED whole_model:
# Full fine-tuning: every parameter of the base is trained, and what is shipped is the whole model.
#
# It takes the adapter's place in a run (the same folder, gate and arms), so that the two methods are compared by the same code. Weights and
# optimiser stay in float32; with `precision: bfloat16` only the products are in 16 bits (autocast): AdamW's steps of some 1e-4 would vanish
# in bfloat16 weights, whose next value lies 0.4 % away.

FULL = "full"
MODEL_WEIGHTS = "model.safetensors"  # what transformers reads in a model folder, and its Trainer in a checkpoint


def unfreeze(model: Any) -> Any:
    """`model` with every parameter trained."""
    return model.requires_grad_(True)


def model_tensors(model: Any) -> dict[str, Any]:
    """Every tensor of the model by its name, tied ones once, none of them copied."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach()
    return found


def save_model(model: Any, folder: Path, files: BaseFiles) -> None:
    """Weights and config, as transformers alone loads them; no file names this machine."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{MODEL_WEIGHTS}"
    save_file({name: tensor.cpu().contiguous() for name, tensor in model_tensors(model).items()}, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / MODEL_WEIGHTS)
    write_atomically(folder / "config.json", model.config.to_json_string(use_diff=False))
    if model.can_generate():
        write_atomically(folder / "generation_config.json", model.generation_config.to_json_string())


def load_weights_into(model: Any, folder: Path) -> Any:
    """`model`, a base of the same architecture, with the weights of `folder` in its own precision, in eval mode."""
    import torch
    from safetensors import safe_open

    own = model.state_dict()
    with torch.no_grad(), safe_open(folder / MODEL_WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a handle, not a dict
            own[name].copy_(file.get_tensor(name))
    return model.eval()


def _model_card(files: BaseFiles, note: str) -> str:
    """README.md of the folder: what it is and how to load it with transformers alone."""
    return f"""---
library_name: transformers
base_model: {files.name}
---
# A model fine-tuned in full with nomoat

Base: `{files.name}`{f" at revision `{files.revision}`" if files.revision else ""}.
{note}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
The report of the run that made it has its scores, its cost and the checksum of its weights.
"""


# MERGED adapters:
# The adapter: attached to a base from a recipe, fingerprinted, and saved so that peft alone can load it elsewhere.
#
# With `method: full` the whole model takes its place, through the same functions (whole_model.py).

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterSize:
    """What is trained and shipped, beside what stays home. Parameters are counts, sizes are bytes."""

    parameters: int
    base_parameters: int
    modules: int


def attach_adapter(model: Any, lora: Lora, *, seed: int, files: BaseFiles, kernels: str = "auto") -> Any:
    """A peft model with a fresh adapter in float32. Seeded here, since the initial weights are drawn at this point."""
    if lora.method == FULL:
        return unfreeze(model)
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from nomoat.kernels.linear import with_fused_lora

    targets = lora.targets if lora.targets == ALL_LINEAR else _checked_targets(model, list(lora.targets))
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.method == "rslora",
        use_dora=lora.method == "dora",
        init_lora_weights="pissa" if lora.method == "pissa" else True,
    )
    set_seed(seed)
    adapted = get_peft_model(model, config if kernels == "plain" else with_fused_lora(config, model))
    adapted.peft_config["default"].base_model_name_or_path = files.name
    adapted.peft_config["default"].revision = files.revision
    return adapted


def _checked_targets(model: Any, targets: list[str]) -> list[str]:
    """Every stated name must match a linear layer: peft itself trains whatever matches and says nothing of the rest."""
    import difflib

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.startswith(("Linear", "Conv1D"))}
    missing = [target for target in targets if target not in names]
    if missing:
        near = {target: difflib.get_close_matches(target, sorted(names), n=2) for target in missing}
        hints = "; ".join(f"'{target}'" + (f" (near: {', '.join(found)})" if found else "") for target, found in near.items())
        raise NomoatError(f"lora.targets: this base has no module named {hints}. Its linear modules are {', '.join(sorted(names))}")
    return targets


def adapter_size(adapted: Any) -> AdapterSize:
    """Counts of trained and base parameters; tied weights count once, quantised ones by their true number."""
    if not has_adapter(adapted):
        total = sum(parameter.numel() for parameter in adapted.parameters())
        return AdapterSize(total, total, sum(bool(module._parameters) for module in adapted.modules()))
    trainable, total = adapted.get_nb_trainable_parameters()
    modules = {name.rpartition(".lora_A")[0] for name in adapter_tensors(adapted) if ".lora_A" in name}
    return AdapterSize(trainable, total - trainable, len(modules))


def has_adapter(model: Any) -> bool:
    """Whether `model` is a base with an adapter on it, which can be switched off, and not a model trained in full."""
    return hasattr(model, "disable_adapter")


def adapter_tensors(adapted: Any) -> dict[str, Any]:
    """The adapter's tensors (or all, of a model trained in full) by their saved names, on the CPU."""
    from peft import get_peft_model_state_dict

    if not has_adapter(adapted):
        return {name: tensor.cpu().clone() for name, tensor in sorted(model_tensors(adapted).items())}
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}


def fingerprint(tensors: dict[str, Any]) -> str:
    """sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def save_adapter(adapted: Any, folder: Path, files: BaseFiles, *, start: dict[str, Any] | None = None) -> None:
    """Weights and config only; the config names the base by its public name, never by a path of this machine.

    `start`: the tensors that a PiSSA adapter began with; it is then saved as the plain LoRA that does the same to the untouched base.
    """
    from safetensors.torch import save

    if not has_adapter(adapted):
        return save_model(adapted, folder, files)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(adapted)
    config = adapted.peft_config["default"].to_dict()
    config["base_model_name_or_path"], config["revision"], config["inference_mode"] = files.name, files.revision, True
    if start is not None:
        tensors = as_plain_lora(tensors, start)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    plain = json.loads(json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
    if isinstance(plain.get("target_modules"), list):
        plain["target_modules"] = sorted(plain["target_modules"])  # peft keeps a set: its order changes between processes
    write_json(folder / CONFIG, plain)


def as_plain_lora(tensors: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """A PiSSA adapter as a plain LoRA of twice the rank and alpha.

    PiSSA (Meng et al. 2024, arXiv:2404.02948) takes s B0 A0, the base's principal part, out of its weights W and trains from there, so
    that the layer computes W - s B0 A0 + s B A = W + s [B, -B0] [A; A0].
    """
    import torch

    joined = {}
    for name, tensor in tensors.items():
        is_a = ".lora_A." in name
        joined[name] = torch.cat([tensor, start[name]], dim=0) if is_a else torch.cat([tensor, -start[name]], dim=1)
    return joined


def add_tokenizer_and_card(folder: Path, tokenizer: Any, files: BaseFiles) -> None:
    """What someone needs who receives only this folder: the tokenizer with its template, and how to load it."""
    tokenizer.save_pretrained(folder)
    whole = weights_of(folder).name == MODEL_WEIGHTS
    write_atomically(folder / "README.md", _model_card(files, _note(files)) if whole else _adapter_card(files))
    if files.identity.get("notice"):
        made = "a model, made by training that base" if whole else "a LoRA adapter, made by training on that base"
        notice, terms = files.identity["notice"], files.identity["terms"]
        write_atomically(folder / "NOTICE", f"{notice}\n\nTerms: {terms}\nThe files in this folder are {made}.\n")


def _note(files: BaseFiles) -> str:
    return f"\nThe base: {files.identity['note']}.\n" if files.identity.get("note") else ""


def _adapter_card(files: BaseFiles) -> str:
    return f"""---
library_name: peft
base_model: {files.name}
---
# A LoRA adapter made with nomoat

Base: `{files.name}`{f" at revision `{files.revision}`" if files.revision else ""}.
{_note(files)}
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("PATH_OR_ID_OF_THE_BASE")
model = PeftModel.from_pretrained(base, "THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
The report of the run that made it has its scores, its cost and the checksum of its weights.
"""


def weights_of(folder: Path) -> Path:
    """The file with the weights of `folder`: an adapter's, or a whole model's."""
    whole = folder / MODEL_WEIGHTS
    return whole if whole.is_file() else folder / WEIGHTS


def load_adapter(model: Any, folder: Path, *, kernels: str = "auto") -> Any:
    """`model` with the adapter of `folder` attached (or with its weights), in eval mode (peft alone leaves dropout on)."""
    from peft import LoraConfig, PeftModel

    from nomoat.kernels.linear import with_fused_lora

    if weights_of(folder).name == MODEL_WEIGHTS:
        return load_weights_into(model, folder)
    if not (folder / WEIGHTS).is_file():
        raise NomoatError(f"{folder} holds no {WEIGHTS}: not a finished adapter (other formats are not loaded)")
    config = LoraConfig.from_pretrained(folder)
    if kernels != "plain":
        config = with_fused_lora(config, model)
    return PeftModel.from_pretrained(model, folder, is_trainable=False, config=config).eval()


def restore_adapter(adapted: Any, folder: Path) -> None:
    """Put the weights saved in `folder` into the adapter that `adapted` has already."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not has_adapter(adapted):
        load_weights_into(adapted, folder)
        return
    set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))


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


def warm_start_folder(lora: Lora, files: BaseFiles) -> Path | None:
    """The folder of the adapter to begin with; NomoatError where it is none, or not one that this recipe could go on with."""
    if lora.start is None:
        return None
    stated = Path(lora.start).expanduser()
    folder = stated / "adapter" if (stated / "adapter").is_dir() else stated
    if not weights_of(folder).is_file():
        raise NomoatError(f"lora.start: {lora.start} is neither a finished run nor an adapter's folder")
    whole = weights_of(folder).name == MODEL_WEIGHTS
    if whole != (lora.method == FULL):
        raise NomoatError(
            f"lora.start: {lora.start} was trained {'in full' if whole else 'as an adapter'}; seen: lora.method {lora.method}"
        )
    if not whole:
        _check_warm_start(read_json(folder / CONFIG), lora, files)
    return folder


def _check_warm_start(config: dict[str, Any], lora: Lora, files: BaseFiles) -> None:
    kinds = {"dora": config.get("use_dora"), "rslora": config.get("use_rslora")}
    method = next((name for name, on in kinds.items() if on), "lora")
    theirs = {"method": method, "rank": config.get("r"), "alpha": config.get("lora_alpha"), "base": config.get("base_model_name_or_path")}
    ours = {"method": lora.method, "rank": lora.rank, "alpha": lora.alpha, "base": files.name}
    apart = [f"{name} {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if apart:
        raise NomoatError(f"lora.start: {lora.start} cannot be gone on with: {', '.join(apart)}")


def init_from_adapter(adapted: Any, folder: Path) -> None:
    """Put the weights of `folder` into the fresh adapter; NomoatError where they do not all find their place."""
    check_tensor_shapes(adapted, folder)
    restore_adapter(adapted, folder)


def check_tensor_shapes(adapted: Any, folder: Path) -> int:
    """How many tensors the file of `folder` has; NomoatError where one has no place in `adapted`, or another shape."""
    from safetensors import safe_open

    loaded = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(adapted).items()}
    with safe_open(weights_of(folder), framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    strange = sorted(name for name, shape in saved.items() if loaded.get(name) != shape)
    empty = sorted(set(loaded) - set(saved))
    if strange or empty:
        example = (strange or empty)[0]
        raise NomoatError(
            f"the adapter does not belong to this base: {len(strange)} of its {len(saved)} tensors have no place in it and {len(empty)} "
            f"places stay empty (such as {example})"
        )
    return len(saved)
