"""Adapters that others trained: a peft folder or a hub id, fetched as safetensors only and checked against the base.

peft loads the tensors that fit and only warns of the rest, so that an adapter for another base looks like one without effect. Here
`check_tensor_shapes` (models/adapter.py) demands a counterpart for every tensor of the file.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pydantic import ValidationError

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError, quoted
from nomoat.io import fetch_from_hub, read_json, write_json
from nomoat.models.adapter import CONFIG, WEIGHTS, method_of
from nomoat.models.base import BaseFiles

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
EDITS_THE_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that change the weights of the base


def fetch_adapter(source: str) -> Path:
    """The folder of an adapter, given as a folder or as `owner/name@<40 hex digits of a commit>`.

    Raises NomoatError where it cannot be fetched or is not a plain LoRA, rsLoRA or DoRA adapter in safetensors.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        hub = HUB_ID.fullmatch(source)
        if hub is None:
            raise NomoatError(f"adapter {source}: neither a folder nor a hub id with its revision, owner/name@<40 hex digits of a commit>")
        folder = fetch_from_hub(f"adapter {hub['name']}", hub["name"], hub["revision"], (CONFIG, WEIGHTS))
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise NomoatError(f"adapter {source}: {' and '.join(missing)} missing; only peft adapters saved as safetensors are loaded")
    lora_settings(folder)
    return folder


def lora_settings(folder: Path) -> Lora:
    """The adapter's config as the `lora` block of a recipe; NomoatError for what would not be scored as it was meant."""
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise NomoatError(f"{folder.name}/{CONFIG} is not readable JSON ({error})") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(key), int | float) for key in ("r", "lora_alpha")):
        raise NomoatError(f"{folder.name}/{CONFIG} has no numbers r and lora_alpha: not the config of a LoRA adapter")
    refused = {
        f"peft_type {config.get('peft_type')}": config.get("peft_type") != "LORA",
        f"init_lora_weights {config.get('init_lora_weights')}": str(config.get("init_lora_weights")).startswith(EDITS_THE_BASE),
        "modules_to_save": bool(config.get("modules_to_save")),
        "megatron_config": bool(config.get("megatron_config")),
    }
    reasons = [name for name, is_refused in refused.items() if is_refused]
    if reasons:
        raise NomoatError(f"{folder.name}/{CONFIG}: {', '.join(reasons)}: only plain LoRA, rsLoRA and DoRA adapters are scored")
    targets = config.get("target_modules")
    try:
        return Lora(
            method=method_of(config),
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=tuple(sorted(targets)) if isinstance(targets, list) else "all-linear",
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise NomoatError(f"{folder.name}/{CONFIG}: {key}: {first['msg']} (seen: {quoted(first['input'])})") from error


def copy_adapter(source: Path, target: Path, files: BaseFiles) -> None:
    """Weights and config into a run directory; the config names the base that is used, not a path of its author's machine."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    config = {**read_json(source / CONFIG), "base_model_name_or_path": files.name, "revision": files.revision, "inference_mode": True}
    write_json(target / CONFIG, config)
