"""Two LoRA adapters added, exactly: of what rank their sum is (the memo's M10), and the sum as an adapter that peft loads.

An adapter's update of a module is s B A, with B (outputs, r), A (inputs along its columns, r rows) and s = alpha / r. The sum of two is
[s1 B1, s2 B2] [A1; A2], a LoRA of rank r1 + r2 and scale 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nomoat.adapters import CONFIG, WEIGHTS
from nomoat.errors import NomoatError
from nomoat.files import read_json, sha256_file, write_atomically, write_json

THRESHOLD = 1e-3  # a singular value counts towards the rank above this share of the largest
UP, DOWN = ".lora_B.weight", ".lora_A.weight"


def ranks(a: Path, b: Path) -> dict[str, Any]:
    """Module by module, the rank of each adapter's update and of their sum; with the files they were computed from.

    Raises NomoatError where the two are not plain LoRAs of the same modules of one base.
    """
    ours, theirs = _factors(a), _factors(b)
    _check(a, b, ours, theirs)
    found = [
        {"module": name, "a": _rank(*ours[name]), "b": _rank(*theirs[name]), "sum": _rank(*_joined(ours[name], theirs[name]))}
        for name in sorted(ours)
    ]
    return {"threshold": THRESHOLD, "a_sha256": sha256_file(a / WEIGHTS), "b_sha256": sha256_file(b / WEIGHTS), "modules": found}


def add_adapters(a: Path, b: Path, folder: Path) -> None:
    """Write the sum of the two to `folder`, as peft saves an adapter."""
    from safetensors.torch import save

    ours, theirs = _factors(a), _factors(b)
    _check(a, b, ours, theirs)
    tensors: dict[str, Any] = {}
    for name in sorted(ours):
        up, down = _joined(ours[name], theirs[name])
        tensors |= {f"{name}{UP}": up.float().contiguous(), f"{name}{DOWN}": down.float().contiguous()}
    config = read_json(a / CONFIG)
    rank = config["r"] + read_json(b / CONFIG)["r"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**config, "r": rank, "lora_alpha": float(rank), "use_rslora": False})


def _factors(folder: Path) -> dict[str, tuple[Any, Any]]:
    """By module, s B and A in double precision."""
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    plain = config.get("peft_type") == "LORA" and not config.get("use_dora") and not config.get("rank_pattern")
    if not plain or config.get("alpha_pattern"):
        raise NomoatError(f"{folder}: only plain LoRA adapters, of one rank throughout, can be added")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    tensors = load_file(folder / WEIGHTS)
    names = [name.removesuffix(UP) for name in tensors if name.endswith(UP)]
    return {name: (scale * tensors[name + UP].double(), tensors[name + DOWN].double()) for name in names}


def _check(a: Path, b: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    bases = [read_json(folder / CONFIG).get("base_model_name_or_path") for folder in (a, b)]
    if bases[0] != bases[1]:
        raise NomoatError(f"{a} and {b} sit on different bases ({bases[0]}, {bases[1]}): they cannot be added")
    apart = sorted(ours.keys() ^ theirs.keys())
    if apart or not ours:
        raise NomoatError(f"{a} and {b} do not adapt the same modules ({apart[0] if apart else 'none at all'}): they cannot be added")


def _joined(one: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
    import torch

    return torch.cat([one[0], other[0]], dim=1), torch.cat([one[1], other[1]], dim=0)


def _rank(up: Any, down: Any) -> int:
    """Rank of `up @ down` from its factors: with Q R of each, the singular values are those of the small R_up R_down^T."""
    import torch

    small = torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T
    values = torch.linalg.svdvals(small)
    return int((values > THRESHOLD * values[0]).sum()) if values[0] > 0 else 0
