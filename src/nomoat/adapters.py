"""The adapter: attached to a base from a recipe, fingerprinted, and saved so that peft alone can load it elsewhere.

With `method: full` the whole model takes its place, through the same functions (whole_model.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat import whole_model
from nomoat.bases import BaseFiles
from nomoat.errors import NomoatError
from nomoat.files import sha256_file, write_atomically, write_json
from nomoat.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterSize:
    """What is trained and shipped, beside what stays home. Parameters are counts, sizes are bytes."""

    parameters: int
    base_parameters: int
    modules: int


def attach_adapter(model: Any, lora: Lora, *, seed: int, files: BaseFiles) -> Any:
    """A peft model with a fresh adapter in float32. Seeded here, since the initial weights are drawn at this point."""
    if lora.method == whole_model.METHOD:
        return whole_model.open_for_training(model)
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from nomoat.fused_lora import use_fused_lora

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
    adapted = get_peft_model(model, use_fused_lora(config, model))
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
    if not is_adapted(adapted):
        total = sum(parameter.numel() for parameter in adapted.parameters())
        return AdapterSize(total, total, sum(bool(module._parameters) for module in adapted.modules()))
    trainable, total = adapted.get_nb_trainable_parameters()
    modules = {name.rpartition(".lora_A")[0] for name in adapter_tensors(adapted) if ".lora_A" in name}
    return AdapterSize(trainable, total - trainable, len(modules))


def is_adapted(model: Any) -> bool:
    """Whether `model` is a base with an adapter on it, which can be switched off, and not a model trained in full."""
    return hasattr(model, "disable_adapter")


def adapter_tensors(adapted: Any) -> dict[str, Any]:
    """The adapter's tensors (or all, of a model trained in full) by their saved names, on the CPU."""
    from peft import get_peft_model_state_dict

    if not is_adapted(adapted):
        return {name: tensor.cpu().clone() for name, tensor in sorted(whole_model.tensors(adapted).items())}
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

    if not is_adapted(adapted):
        return whole_model.save(adapted, folder, files)
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
    whole = weights_of(folder).name == whole_model.WEIGHTS
    write_atomically(folder / "README.md", whole_model.card(files, _note(files)) if whole else _card(files))
    if files.identity.get("notice"):
        made = "a model, made by training that base" if whole else "a LoRA adapter, made by training on that base"
        notice, terms = files.identity["notice"], files.identity["terms"]
        write_atomically(folder / "NOTICE", f"{notice}\n\nTerms: {terms}\nThe files in this folder are {made}.\n")


def _note(files: BaseFiles) -> str:
    return f"\nThe base: {files.identity['note']}.\n" if files.identity.get("note") else ""


def _card(files: BaseFiles) -> str:
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
    whole = folder / whole_model.WEIGHTS
    return whole if whole.is_file() else folder / WEIGHTS


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter of `folder` attached (or with its weights), in eval mode (peft alone leaves dropout on)."""
    from peft import LoraConfig, PeftModel

    from nomoat.fused_lora import use_fused_lora

    if weights_of(folder).name == whole_model.WEIGHTS:
        return whole_model.load_into(model, folder)
    if not (folder / WEIGHTS).is_file():
        raise NomoatError(f"{folder} holds no {WEIGHTS}: not a finished adapter (other formats are not loaded)")
    config = use_fused_lora(LoraConfig.from_pretrained(folder), model)
    return PeftModel.from_pretrained(model, folder, is_trainable=False, config=config).eval()


def restore_adapter(adapted: Any, folder: Path) -> None:
    """Put the weights saved in `folder` into the adapter that `adapted` has already."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not is_adapted(adapted):
        whole_model.load_into(adapted, folder)
        return
    set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))


def adapter_facts(size: AdapterSize, lora: Lora, folder: Path, files: BaseFiles) -> dict[str, Any]:
    """The adapter block of a report."""
    whole = lora.method == whole_model.METHOD
    return {
        "method": lora.method,
        "rank": None if whole else lora.rank,
        "alpha": None if whole else lora.alpha,
        "parameters": size.parameters,
        "base_parameters": size.base_parameters,
        "bytes": weights_of(folder).stat().st_size,
        "base_bytes_16bit": 2 * size.base_parameters,
        "base_bytes_download": files.identity["download_bytes"],
        "sha256": sha256_file(weights_of(folder)),
    }
