"""The origin of a run: code, versions, machine, base, data and settings. No path, user name or secret is recorded.

A `Provenance` is what environment.json holds and what a report repeats. Keys that came later are null in older runs.
"""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nomoat.config.load import parse_yaml
from nomoat.config.schema import AsIfRented
from nomoat.io import Record, sha256_of, validated
from nomoat.runs.costs import Rate

CLAIMS = "recipes/memo/claims.yaml"  # below the repository; its hash goes into every run

PACKAGES = (
    "nomoat",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
)

# Runs write these into the tree themselves: without the exception the report of one run would mark the code of the next as changed.
RESULTS = ("recipes/memo/reports", "recipes/memo/memo.json", "recipes/reference")


class DeviceFacts(Record):
    """Where the work was done; `memory_bytes` is the device's own memory, or the machine's for a CPU."""

    kind: str = ""
    name: str | None = None
    memory_bytes: int | None = None


class BaseFacts(Record):
    """The base as a report may describe it: never by a path of the machine."""

    name: str = ""  # as peft records it: hub id, wheel with its file, or folder name
    display_name: str = ""
    source: Literal["wheel", "hub", "path", ""] = ""
    package: str | None = None
    version: str | None = None
    file: str | None = None
    pieces: list[str] | None = None
    revision: str | None = None
    sha256: str | None = None
    download_bytes: int | None = None
    license: str | None = None
    terms: str | None = None
    notice: str | None = None
    note: str | None = None


class DataOrigin(Record):
    """The data set: hashes of its splits, and of a published set its revision and what was left out."""

    name: str = ""
    train_sha256: str | None = None
    heldout_sha256: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    license: str | None = None
    left_out: int | None = None
    leaks_left_out: int | None = None
    validation_leaks_left_out: int | None = None


class Decoding(Record):
    """How answers were produced."""

    method: str
    max_new_tokens: int
    batch_rows: int
    order: str
    prompts: str
    dtype: str
    device: str


class ScoredFrom(Record):
    """For a finished adapter scored again: the run that trained it, or the run in whose place a foreign one was scored."""

    run: str
    created: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    adapter_initial_sha256: str | None = None
    learning_rate: float | None = None
    adapter_sha256: str
    foreign: bool


class Provenance(Record):
    """Everything that a run records of where it comes from."""

    created: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    python: str | None = None
    platform: str | None = None
    claims_sha256: str | None = None
    device: DeviceFacts = DeviceFacts()
    dtype: str | None = None
    scoring_dtype: str | None = None
    threads: int | None = None
    kernels: Literal["auto", "plain"] = "auto"
    seed: int | None = None
    base: BaseFacts = BaseFacts()
    start_sha256: str | None = None
    data: DataOrigin = DataOrigin()
    decoding: Decoding | None = None
    scorer_version: str | None = None
    rate: Rate | None = None
    as_if_rented: AsIfRented | None = None
    matrix_gflops: float | None = None
    rendering_sha256: str | None = None
    adapter_initial_sha256: str | None = None
    learning_rate: float | None = None
    arms_from_one_load: bool | None = None
    scored_from: ScoredFrom | None = None

    def record(self) -> dict[str, Any]:
        """As environment.json holds it: keys that are not known are left out, the creation date comes first."""
        return self.model_dump(mode="json", exclude_none=True)


def read_provenance(run_dir: Path) -> Provenance:
    """environment.json of a run directory, empty where there is none; NomoatError where its shape is not one this version knows."""
    path = run_dir / "environment.json"
    return validated(Provenance, path.read_bytes(), str(path)) if path.exists() else Provenance()


def claims_sha256(root: Path) -> str | None:
    """Hash of the memo's claims and thresholds as they stood before the runs: any other word or number gives another hash.

    A threshold that was changed after a look at the results keeps the hash only where `looked_at` states the one before.
    None where the repository holds no claims.
    """
    path = root / CLAIMS
    if not path.is_file():
        return None
    return sha256_of([_as_it_stood(claim) for claim in parse_yaml(path.read_text(encoding="utf-8"), str(path))])


def _as_it_stood(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim's hashed fields with their defaults: the hash is that of the table in its first form."""
    stated = {"limits": {}, "runs": [], "leaves_out": "", "out_of_reach": "", **claim}
    before = stated.pop("looked_at", None)
    return stated if before is None else {**stated, "limits": before}


def code_state(root: Path) -> dict[str, Any]:
    """Commit and whether the tree differs from it in anything but RESULTS; nulls outside a git checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    others = (f":(exclude){path}" for path in RESULTS)
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return {"commit": commit or None, "dirty": None if commit is None else bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of the installed packages that produce the numbers."""
    return {name: version(name) for name in PACKAGES if find_spec(name)}


def machine() -> dict[str, Any]:
    """Python and platform, without host or user names."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
