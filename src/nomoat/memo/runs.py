"""The runs that the memo's verdict still lacks, made one after the other; each ends with its report among the published ones."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nomoat.errors import NomoatError, RunFailed
from nomoat.io import read_json, sha256_file, write_atomically, write_json
from nomoat.memo.evidence import rental
from nomoat.memo.rules import BOTH
from nomoat.memo.verdict import RANKS_FILE, SPENT_FILE
from nomoat.models.adapter import CONFIG, WEIGHTS
from nomoat.reports.build import run_cost
from nomoat.runs.provenance import read_provenance

# MERGED summing:
# Two LoRA adapters added, exactly: of what rank their sum is (the memo's M10), and the sum as an adapter that peft loads.
#
# An adapter's update of a module is s B A, with B (outputs, r), A (inputs along its columns, r rows) and s = alpha / r. The sum of two is
# [s1 B1, s2 B2] [A1; A2], a LoRA of rank r1 + r2 and scale 1.

RANK_THRESHOLD = 1e-3  # a singular value counts towards the rank above this share of the largest
UP, DOWN = ".lora_B.weight", ".lora_A.weight"


def update_ranks(a: Path, b: Path) -> dict[str, Any]:
    """Module by module, the rank of each adapter's update and of their sum; with the files they were computed from.

    Raises NomoatError where the two are not plain LoRAs of the same modules of one base.
    """
    ours, theirs = _scaled_factors(a), _scaled_factors(b)
    _check_summable(a, b, ours, theirs)
    found = [
        {
            "module": name,
            "a": _rank_of(*ours[name]),
            "b": _rank_of(*theirs[name]),
            "sum": _rank_of(*_concatenated(ours[name], theirs[name])),
        }
        for name in sorted(ours)
    ]
    return {"threshold": RANK_THRESHOLD, "a_sha256": sha256_file(a / WEIGHTS), "b_sha256": sha256_file(b / WEIGHTS), "modules": found}


def add_adapters(a: Path, b: Path, folder: Path) -> None:
    """Write the sum of the two to `folder`, as peft saves an adapter."""
    from safetensors.torch import save

    ours, theirs = _scaled_factors(a), _scaled_factors(b)
    _check_summable(a, b, ours, theirs)
    tensors: dict[str, Any] = {}
    for name in sorted(ours):
        up, down = _concatenated(ours[name], theirs[name])
        tensors |= {f"{name}{UP}": up.float().contiguous(), f"{name}{DOWN}": down.float().contiguous()}
    config = read_json(a / CONFIG)
    rank = config["r"] + read_json(b / CONFIG)["r"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**config, "r": rank, "lora_alpha": float(rank), "use_rslora": False})


def _scaled_factors(folder: Path) -> dict[str, tuple[Any, Any]]:
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


def _check_summable(a: Path, b: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    bases = [read_json(folder / CONFIG).get("base_model_name_or_path") for folder in (a, b)]
    if bases[0] != bases[1]:
        raise NomoatError(f"{a} and {b} sit on different bases ({bases[0]}, {bases[1]}): they cannot be added")
    apart = sorted(ours.keys() ^ theirs.keys())
    if apart or not ours:
        raise NomoatError(f"{a} and {b} do not adapt the same modules ({apart[0] if apart else 'none at all'}): they cannot be added")


def _concatenated(one: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
    import torch

    return torch.cat([one[0], other[0]], dim=1), torch.cat([one[1], other[1]], dim=0)


def _rank_of(up: Any, down: Any) -> int:
    """Rank of `up @ down` from its factors: with Q R of each, the singular values are those of the small R_up R_down^T."""
    import torch

    small = torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T
    values = torch.linalg.svdvals(small)
    return int((values > RANK_THRESHOLD * values[0]).sum()) if values[0] > 0 else 0


# In the order of spending: what decides most comes first. b_on_a begins with a's adapter of the same seed. The roles `default`, `quarter`
# and `gemma` are not made here: they are the published runs of recipes of their own.
MADE_ROLES = ("lora", "full", "a", "b", "b_on_a", BOTH, "noisy25", "rank1", "rank4", "rank64", "noisy50")
SEEDS = {"rank1": 1, "rank4": 1, "rank64": 1, "noisy50": 1}  # ranks for want of hours; half noise is shown, not judged
STARTS = {"b_on_a": "a"}
SUMMANDS = ("a", "b")
GRACE_SECONDS = 10.0  # Ctrl-C in a terminal reaches a run as well, which then ends by itself


@dataclass(frozen=True)
class PlannedRun:
    """A run of a role with a seed, and where its report goes."""

    role: str
    seed: int
    report: Path


def missing_runs(root: Path, roles: Sequence[str] = MADE_ROLES) -> Iterator[PlannedRun]:
    """Runs of these roles whose report is not there, a seed of every role before the next seed of any; NomoatError for an unknown role."""
    unknown = sorted(set(roles) - set(MADE_ROLES))
    if unknown:
        raise NomoatError(f"--roles: no such role: {', '.join(unknown)}; known are {', '.join(MADE_ROLES)}")
    for seed in range(3):
        for role in MADE_ROLES:
            report = root / "recipes" / "memo" / "reports" / f"{role}.seed{seed}.json"
            if role in roles and seed < SEEDS.get(role, 3) and not report.is_file():
                yield PlannedRun(role, seed, report)


def make_missing_run(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str], console: Console) -> None:
    """Train and score it as `make train` does; a run that was stopped goes on. RunFailed where it fails."""
    folder = runs_dir / f"{planned.role}.seed{planned.seed}"
    console.print(f"\n[bold]{planned.role}, seed {planned.seed}[/bold]", highlight=False)
    command = _added(planned, root, runs_dir, overrides) if planned.role == BOTH else _trained(planned, root, runs_dir, overrides)
    try:
        code = run_process([sys.executable, *command, f"--runs-dir={folder}"])
    finally:
        write_spent(runs_dir, planned.report.parent)
    if code:
        raise RunFailed(f"{planned.role} with seed {planned.seed} ended with exit code {code}; the same command goes on with it")
    shutil.copyfile(last_finished(folder) / "report.json", planned.report)


def run_process(command: Sequence[str]) -> int:
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


def _trained(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    settings = [f"train.seed={planned.seed}", *overrides]
    if planned.role in STARTS:
        settings.append(f"lora.start={_finished_run(runs_dir, STARTS[planned.role], planned.seed)}")
    return [str(root / "train" / "sft.py"), str(root / "recipes" / "memo" / f"{planned.role}.yaml"), *settings]


def _added(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    """Nothing is trained: the two adapters are added, their ranks written down, and the sum answers the rows of the first one's run."""
    first, second = (_finished_run(runs_dir, role, planned.seed) for role in SUMMANDS)
    summed = (runs_dir / f"{BOTH}.seed{planned.seed}" / "adapters" / BOTH).absolute()
    add_adapters(first / "adapter", second / "adapter", summed)
    if planned.seed == 0:
        write_json(planned.report.parent / RANKS_FILE, update_ranks(first / "adapter", second / "adapter"))
    return [str(root / "eval" / "score.py"), str(first), f"--adapter={summed}", *(one for one in overrides if one.startswith("hardware."))]


def write_spent(runs_dir: Path, reports: Path) -> None:
    """What every run below `runs_dir` took so far, failed and broken-off ones too, added to what other machines wrote there."""
    path = reports / SPENT_FILE
    known = {one["run"]: one for one in (read_json(path) if path.is_file() else [])}
    for ledger in sorted(runs_dir.glob("*/*/ledger.jsonl")):
        cost = run_cost(ledger.parent, read_provenance(ledger.parent))
        name = ledger.parent.name
        known[name] = {"run": name, "seconds": cost.seconds, "usd": rental(cost)}
    reports.mkdir(parents=True, exist_ok=True)
    write_json(path, [known[name] for name in sorted(known)])


def _finished_run(runs_dir: Path, role: str, seed: int) -> Path:
    return last_finished(runs_dir / f"{role}.seed{seed}").absolute()


def last_finished(folder: Path) -> Path:
    """The last finished run below `folder`; RunFailed where there is none."""
    found = sorted(path.parent for path in folder.glob("*/report.json") if read_json(path)["status"] == "finished")
    if not found:
        raise RunFailed(f"{folder} holds no finished run: run again what should be in it")
    return found[-1]
