"""The runs that the memo's verdict still lacks, made one after the other; each ends with its report among the published ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nomoat.errors import NomoatError, RunFailed
from nomoat.files import read_json, write_json
from nomoat.findings import rental
from nomoat.judges import BOTH
from nomoat.memo import RANKS_FILE, SPENT_FILE
from nomoat.report_parts import run_cost
from nomoat.summing import add_adapters, ranks

# In the order of spending: what decides most comes first. b_on_a begins with a's adapter of the same seed. The roles `default`, `quarter`
# and `gemma` are not made here: they are the published runs of recipes of their own.
ROLES = ("lora", "full", "a", "b", "b_on_a", BOTH, "noisy25", "rank1", "rank4", "rank64", "noisy50")
SEEDS = {"rank1": 1, "rank4": 1, "rank64": 1, "noisy50": 1}  # ranks for want of hours; half noise is shown, not judged
STARTS = {"b_on_a": "a"}
SUMMANDS = ("a", "b")
GRACE_SECONDS = 10.0  # Ctrl-C in a terminal reaches a run as well, which then ends by itself


@dataclass(frozen=True)
class Planned:
    """A run of a role with a seed, and where its report goes."""

    role: str
    seed: int
    report: Path


def missing(root: Path, roles: Sequence[str] = ROLES) -> Iterator[Planned]:
    """Runs of these roles whose report is not there, a seed of every role before the next seed of any; NomoatError for an unknown role."""
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise NomoatError(f"--roles: no such role: {', '.join(unknown)}; known are {', '.join(ROLES)}")
    for seed in range(3):
        for role in ROLES:
            report = root / "recipes" / "memo" / "reports" / f"{role}.seed{seed}.json"
            if role in roles and seed < SEEDS.get(role, 3) and not report.is_file():
                yield Planned(role, seed, report)


def make(planned: Planned, root: Path, runs_dir: Path, overrides: list[str], console: Console) -> None:
    """Train and score it as `make train` does; a run that was stopped goes on. RunFailed where it fails."""
    folder = runs_dir / f"{planned.role}.seed{planned.seed}"
    console.print(f"\n[bold]{planned.role}, seed {planned.seed}[/bold]", highlight=False)
    command = _added(planned, root, runs_dir, overrides) if planned.role == BOTH else _trained(planned, root, runs_dir, overrides)
    try:
        code = run_to_its_end([sys.executable, *command, f"--runs-dir={folder}"])
    finally:
        write_spent(runs_dir, planned.report.parent)
    if code:
        raise RunFailed(f"{planned.role} with seed {planned.seed} ended with exit code {code}; the same command goes on with it")
    shutil.copyfile(finished(folder) / "report.json", planned.report)


def run_to_its_end(command: Sequence[str]) -> int:
    """The exit code of a process; whoever stops us stops it too, and it has written what it has when we end."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            raise


def _trained(planned: Planned, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    settings = [f"train.seed={planned.seed}", *overrides]
    if planned.role in STARTS:
        settings.append(f"lora.start={_run(runs_dir, STARTS[planned.role], planned.seed)}")
    return [str(root / "train" / "sft.py"), str(root / "recipes" / "memo" / f"{planned.role}.yaml"), *settings]


def _added(planned: Planned, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    """Nothing is trained: the two adapters are added, their ranks written down, and the sum answers the rows of the first one's run."""
    first, second = (_run(runs_dir, role, planned.seed) for role in SUMMANDS)
    summed = (runs_dir / f"{BOTH}.seed{planned.seed}" / "adapters" / BOTH).absolute()
    add_adapters(first / "adapter", second / "adapter", summed)
    if planned.seed == 0:
        write_json(planned.report.parent / RANKS_FILE, ranks(first / "adapter", second / "adapter"))
    return [str(root / "eval" / "score.py"), str(first), f"--adapter={summed}", *(one for one in overrides if one.startswith("hardware."))]


def write_spent(runs_dir: Path, reports: Path) -> None:
    """What every run below `runs_dir` took so far, failed and broken-off ones too, added to what other machines wrote there."""
    path = reports / SPENT_FILE
    known = {one["run"]: one for one in (read_json(path) if path.is_file() else [])}
    for ledger in sorted(runs_dir.glob("*/*/ledger.jsonl")):
        cost = run_cost(ledger.parent, read_json(ledger.parent / "environment.json"))
        name = ledger.parent.name
        known[name] = {"run": name, "seconds": cost.seconds, "usd": rental(cost)}
    reports.mkdir(parents=True, exist_ok=True)
    write_json(path, [known[name] for name in sorted(known)])


def _run(runs_dir: Path, role: str, seed: int) -> Path:
    return finished(runs_dir / f"{role}.seed{seed}").absolute()


def finished(folder: Path) -> Path:
    """The last finished run below `folder`; RunFailed where there is none."""
    found = sorted(path.parent for path in folder.glob("*/report.json") if read_json(path)["status"] == "finished")
    if not found:
        raise RunFailed(f"{folder} holds no finished run: run again what should be in it")
    return found[-1]
