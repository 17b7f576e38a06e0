"""Training on top of an earlier run: the adapter begins as that run's, on the same base (`lora.start`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nomoat import foreign, whole_model
from nomoat.adapters import CONFIG, restore_adapter, weights_of
from nomoat.bases import BaseFiles
from nomoat.errors import NomoatError
from nomoat.files import read_json
from nomoat.recipe import Lora


def start_folder(lora: Lora, files: BaseFiles) -> Path | None:
    """The folder of the adapter to begin with; NomoatError where it is none, or not one that this recipe could go on with."""
    if lora.start is None:
        return None
    stated = Path(lora.start).expanduser()
    folder = stated / "adapter" if (stated / "adapter").is_dir() else stated
    if not weights_of(folder).is_file():
        raise NomoatError(f"lora.start: {lora.start} is neither a finished run nor an adapter's folder")
    whole = weights_of(folder).name == whole_model.WEIGHTS
    if whole != (lora.method == whole_model.METHOD):
        raise NomoatError(
            f"lora.start: {lora.start} was trained {'in full' if whole else 'as an adapter'}; seen: lora.method {lora.method}"
        )
    if not whole:
        _check_config(read_json(folder / CONFIG), lora, files)
    return folder


def _check_config(config: dict[str, Any], lora: Lora, files: BaseFiles) -> None:
    kinds = {"dora": config.get("use_dora"), "rslora": config.get("use_rslora")}
    method = next((name for name, on in kinds.items() if on), "lora")
    theirs = {"method": method, "rank": config.get("r"), "alpha": config.get("lora_alpha"), "base": config.get("base_model_name_or_path")}
    ours = {"method": lora.method, "rank": lora.rank, "alpha": lora.alpha, "base": files.name}
    apart = [f"{name} {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if apart:
        raise NomoatError(f"lora.start: {lora.start} cannot be gone on with: {', '.join(apart)}")


def begin_from(adapted: Any, folder: Path) -> None:
    """Put the weights of `folder` into the fresh adapter; NomoatError where they do not all find their place."""
    foreign.check_places(adapted, folder)
    restore_adapter(adapted, folder)
