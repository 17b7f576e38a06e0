"""The runs that the memo's verdict still lacks, made one after the other; each ends with its report among the published ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nomoat.errors import RunFailed
from nomoat.files import read_json

# In the order of spending: what decides most comes first. b_on_a begins with a's adapter of the same seed.
ROLES = ("lora", "full", "gemma", "a", "b", "b_on_a", "noisy25", "rank1", "rank4", "rank64", "noisy50")
SEEDS = {"noisy50": 1}  # shown, not judged
STARTS = {"b_on_a": "a"}


@dataclass(frozen=True)
class Planned:
    """A run of a role with a seed, and where its report goes."""

    role: str
    seed: int
    report: Path


def missing(root: Path) -> Iterator[Planned]:
    """Runs whose report is not there, a seed of every role before the next seed of any."""
    for seed in range(3):
        for role in ROLES:
            report = root / "recipes" / "memo" / "reports" / f"{role}.seed{seed}.json"
            if seed < SEEDS.get(role, 3) and not report.is_file():
                yield Planned(role, seed, report)


def make(planned: Planned, root: Path, runs_dir: Path, overrides: list[str], console: Console) -> None:
    """Train and score it as `make train` does; a run that was stopped goes on. RunFailed where it fails."""
    folder = runs_dir / f"{planned.role}.seed{planned.seed}"
    settings = [f"train.seed={planned.seed}", *overrides]
    if planned.role in STARTS:
        settings.append(f"lora.start={finished(runs_dir / f'{STARTS[planned.role]}.seed{planned.seed}')}")
    console.print(f"\n[bold]{planned.role}, seed {planned.seed}[/bold]", highlight=False)
    command = [sys.executable, str(root / "train" / "sft.py"), str(root / "recipes" / "memo" / f"{planned.role}.yaml"), *settings]
    done = subprocess.run([*command, f"--runs-dir={folder}"], check=False)
    if done.returncode:
        raise RunFailed(f"{planned.role} with seed {planned.seed} ended with exit code {done.returncode}; the same command goes on with it")
    planned.report.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(finished(folder) / "report.json", planned.report)


def finished(folder: Path) -> Path:
    """The last finished run below `folder`; RunFailed where there is none."""
    found = sorted(path.parent for path in folder.glob("*/report.json") if read_json(path)["status"] == "finished")
    if not found:
        raise RunFailed(f"{folder} holds no finished run: run again what should be in it")
    return found[-1]
