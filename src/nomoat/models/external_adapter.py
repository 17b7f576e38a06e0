"""Other people's adapters: a peft folder or a hub id, fetched as safetensors alone and checked against the base it is to sit on.

peft loads what fits and warns of the rest, so that an adapter for another base looks like one that does nothing. Here every tensor
of the file has to find its place.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import fetch_from_hub, read_json, write_json
from nomoat.models.adapter import CONFIG, WEIGHTS, AdapterSize, adapter_facts
from nomoat.models.base import BaseFiles
from nomoat.reports.schema import AdapterFacts

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
KEPT = (CONFIG, WEIGHTS)
EDITS_THE_BASE = ("pissa", "olora", "corda", "loftq")  # ways of initialising that leave the base other than it was


def fetch_adapter(source: str) -> Path:
    """The folder of an adapter given as a folder or as `owner/name@<40 hex digits>`; NomoatError for anything that is not a plain LoRA."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _fetch_hub_adapter(source)
    missing = [name for name in KEPT if not (folder / name).is_file()]
    if missing:
        raise NomoatError(f"adapter {source}: no {' and no '.join(missing)} in it; only peft adapters saved as safetensors are loaded")
    lora_settings(folder)
    return folder


def _fetch_hub_adapter(source: str) -> Path:
    named = HUB_ID.fullmatch(source)
    if named is None:
        raise NomoatError(f"adapter {source}: neither a folder nor a hub id with its revision, owner/name@<40 hex digits of a commit>")
    return fetch_from_hub(f"adapter {named['name']}", named["name"], named["revision"], KEPT)


def lora_settings(folder: Path) -> Lora:
    """What its config says of the adapter, in a recipe's words; NomoatError for what would not be scored as it was meant."""
    config = _adapter_config(folder)
    refused = {
        f"peft_type {config.get('peft_type')}": config.get("peft_type") != "LORA",
        f"init_lora_weights {config.get('init_lora_weights')}": str(config.get("init_lora_weights")).startswith(EDITS_THE_BASE),
        "modules_to_save": bool(config.get("modules_to_save")),
        "megatron_config": bool(config.get("megatron_config")),
    }
    reasons = [name for name, holds in refused.items() if holds]
    if reasons:
        raise NomoatError(f"{folder.name}/{CONFIG}: {', '.join(reasons)}: only plain LoRA, rsLoRA and DoRA adapters are scored")
    targets = config.get("target_modules")
    return _lora(
        folder,
        method="dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora",
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=tuple(sorted(targets)) if isinstance(targets, list) else "all-linear",
    )


def _lora(folder: Path, **stated: Any) -> Lora:
    try:
        return Lora(**stated)
    except ValidationError as error:
        first = error.errors()[0]
        raise NomoatError(f"{folder.name}/{CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise NomoatError(f"{folder.name}/{CONFIG} is not readable JSON ({error})") from error
    numbers = isinstance(config, dict) and all(isinstance(config.get(key), int | float) for key in ("r", "lora_alpha"))
    if not numbers:
        raise NomoatError(f"{folder.name}/{CONFIG} states no r and lora_alpha: not the config of a LoRA adapter")
    return dict(config)


def copy_adapter(source: Path, target: Path, files: BaseFiles) -> None:
    """Weights and config into a run directory; the config names the base that is used, not a path of its author's machine."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    config = {**_adapter_config(source), "base_model_name_or_path": files.name, "revision": files.revision, "inference_mode": True}
    write_json(target / CONFIG, config)


def external_adapter_facts(folder: Path, adapted: Any, lora: Lora, files: BaseFiles) -> AdapterFacts:
    """The adapter block of a report."""
    trainable = sum(tensor.numel() for name, tensor in adapted.named_parameters() if ".lora_" in name)
    base = sum(tensor.numel() for name, tensor in adapted.named_parameters() if ".lora_" not in name)
    places = sum(".lora_A" in name for name, _ in adapted.named_parameters())
    return adapter_facts(AdapterSize(trainable, base, places), lora, folder, files)
