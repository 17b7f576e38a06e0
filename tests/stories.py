"""Running the scripts as a user does, in a separate folder, on a tiny base and the user's rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import make_base, write_user_rows
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
base: {path: ./model}
data: {rows: rows.jsonl}
train: {epochs: 3, batch_tokens: 512, pack_tokens: 256, max_row_tokens: 128, validation_points: 2, learning_rate: 3e-3}
eval: {max_new_tokens: 8}
"""


def make_workplace(folder: Path) -> Path:
    """A folder with a model, rows and a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    make_base(folder / "model")
    write_user_rows(folder / "rows.jsonl", 60)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """The user's environment: offline, one thread (two would only wait for each other), a separate cache."""
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NOMOAT_CACHE": str(folder / "cache"), "SECRET_TOKEN": "hunter2-hunter2"}
    return {**os.environ, **own, **extra}


def command(script: str, *words: str) -> list[str]:
    """The script's command line with this interpreter."""
    return [sys.executable, str(ROOT / script), *words]


def run(folder: Path, script: str, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in `folder`; in a fresh interpreter where `extra` changes the environment."""
    if not extra:
        return run_warm(command(script, *words)[1:], folder, environment(folder), 600)
    return subprocess.run(
        command(script, *words), cwd=folder, env=environment(folder, **extra), capture_output=True, text=True, timeout=600
    )


def adapter_sha(run_dir: Path) -> str:
    """The sha256 of a run's adapter, as the run recorded it."""
    return str(json.loads((run_dir / "adapter.json").read_text())["sha256"])


def only_run(folder: Path) -> Path:
    """The one run directory made in `folder`."""
    (found,) = (folder / "runs").iterdir()
    return found
