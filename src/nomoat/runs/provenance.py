"""Where a run comes from: code, versions, machine, base and data. No path, user name or secret is recorded."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


# What runs write into the tree themselves: a second one would be marked by the report of the first, which cannot change what it does.
RESULTS = ("recipes/memo/reports", "recipes/memo/memo.json", "recipes/reference")


def code_state(root: Path) -> dict[str, Any]:
    """Commit and whether the tree differs from it in anything but RESULTS; nulls outside a git checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    but_for = (f":(exclude){path}" for path in RESULTS)
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *but_for)
    return {"commit": commit or None, "dirty": None if commit is None else bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of what produced the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Python and platform, without host or user names."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
