"""The runs that the memo's verdict lacks: made one after the other, or two adapters added; each report joins the published ones."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save

from nomoat.errors import NomoatError, RunFailed
from nomoat.io import read_json, sha256_file, write_atomically, write_json
from nomoat.memo.evidence import BOTH, ROLES, SUMMANDS, ModuleRanks, Spent, SumRanks, rental
from nomoat.memo.verdict import RANKS_FILE, SPENT_FILE, read_spent
from nomoat.models.adapter import CONFIG, WEIGHTS
from nomoat.reports.build import run_cost
from nomoat.runs.provenance import read_provenance

MADE_ROLES = tuple(role for role, facts in ROLES.items() if facts.seeds)
GRACE_SECONDS = 10.0  # Ctrl-C in a terminal reaches the child process too, which then ends by itself
RANK_THRESHOLD = 1e-3  # a singular value counts towards the rank if it exceeds this share of the largest
UP, DOWN = ".lora_B.weight", ".lora_A.weight"
Factors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a role with a seed, and the path of its report."""

    role: str
    seed: int
    report: Path


def missing_runs(root: Path, roles: Sequence[str] = MADE_ROLES) -> Iterator[PlannedRun]:
    """Runs of these roles that have no report, one seed of every role before the next seed; NomoatError for an unknown role."""
    unknown = sorted(set(roles) - set(MADE_ROLES))
    if unknown:
        raise NomoatError(f"--roles: no such role: {', '.join(unknown)} (allowed: {', '.join(MADE_ROLES)})")
    for seed in range(max(ROLES[role].seeds for role in MADE_ROLES)):
        for role in MADE_ROLES:
            report = root / "recipes" / "memo" / "reports" / f"{role}.seed{seed}.json"
            if role in roles and seed < ROLES[role].seeds and not report.is_file():
                yield PlannedRun(role, seed, report)


def make_missing_run(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str], console: Console) -> None:
    """Train and score it as `make train` does, resuming a run that was stopped. RunFailed if it fails."""
    folder = runs_dir / f"{planned.role}.seed{planned.seed}"
    console.print(f"\n[bold]{planned.role}, seed {planned.seed}[/bold]", highlight=False)
    command = (_sum_command if planned.role == BOTH else _train_command)(planned, root, runs_dir, overrides)
    try:
        code = run_process([sys.executable, *command, f"--runs-dir={folder}"])
    finally:
        write_spent(runs_dir, planned.report.parent)
    if code:
        raise RunFailed(f"{planned.role} with seed {planned.seed} ended with exit code {code}; the same command resumes it")
    shutil.copyfile(finished_run(runs_dir, planned.role, planned.seed) / "report.json", planned.report)


def run_process(command: Sequence[str]) -> int:
    """The exit code of a process. KeyboardInterrupt stops it too, and waits until it has written its results."""
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


def _train_command(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    settings = [f"train.seed={planned.seed}", *overrides]
    start = ROLES[planned.role].starts_from
    if start:
        settings.append(f"lora.start={finished_run(runs_dir, start, planned.seed)}")
    return [str(root / "train" / "sft.py"), str(root / "recipes" / "memo" / f"{planned.role}.yaml"), *settings]


def _sum_command(planned: PlannedRun, root: Path, runs_dir: Path, overrides: list[str]) -> list[str]:
    """Add the two adapters, write down their ranks, and score the sum on the held-out rows of the first one's run."""
    first, second = (finished_run(runs_dir, role, planned.seed) for role in SUMMANDS)
    folder = (runs_dir / f"{BOTH}.seed{planned.seed}" / "adapters" / BOTH).absolute()
    ranks = add_adapters(first / "adapter", second / "adapter", folder)
    if planned.seed == 0:
        write_json(planned.report.parent / RANKS_FILE, ranks.model_dump())
    hardware = (override for override in overrides if override.startswith("hardware."))
    return [str(root / "eval" / "score.py"), str(first), f"--adapter={folder}", *hardware]


def write_spent(runs_dir: Path, reports: Path) -> None:
    """Add to spent.json what every run below `runs_dir` took so far, including failed and interrupted ones; other machines' runs stay."""
    spent = {line.run: line for line in read_spent(reports)}
    for ledger in runs_dir.glob("*/*/ledger.jsonl"):
        name, cost = ledger.parent.name, run_cost(ledger.parent, read_provenance(ledger.parent))
        spent[name] = Spent(run=name, seconds=cost.seconds, usd=rental(cost))
    write_json(reports / SPENT_FILE, [spent[name].model_dump() for name in sorted(spent)])


def finished_run(runs_dir: Path, role: str, seed: int) -> Path:
    """The last finished run of the role with this seed; RunFailed if there is none."""
    folder = (runs_dir / f"{role}.seed{seed}").absolute()
    finished = sorted(path.parent for path in folder.glob("*/report.json") if read_json(path)["status"] == "finished")
    if not finished:
        raise RunFailed(f"{folder} holds no finished run: make that run again")
    return finished[-1]


# The exact sum of two LoRA adapters. An update is s B A, with B (outputs, r), A (r, inputs) and s = alpha / r (alpha / sqrt(r) for rsLoRA).
# The sum of two is [s1 B1, s2 B2] [A1; A2], a LoRA of rank r1 + r2 and scale 1. peft's add_weighted_adapter(combination_type="cat") scales
# A instead of B and needs the base in memory: its file is not the one whose hash the published reports hold.


def add_adapters(a: Path, b: Path, folder: Path) -> SumRanks:
    """Write the sum of two adapters to `folder`, in the format in which peft saves one; returns the ranks of the updates.

    Raises NomoatError unless both are plain LoRA adapters of the same modules of one base.
    """
    tensors: dict[str, torch.Tensor] = {}
    ranks = []
    for name, (one, other, both) in _summands_and_sum(a, b).items():
        ranks.append(ModuleRanks(module=name, a=rank_of(*one), b=rank_of(*other), sum=rank_of(*both)))
        tensors |= {f"{name}{suffix}": factor.float().contiguous() for suffix, factor in zip((UP, DOWN), both, strict=True)}
    config = read_json(a / CONFIG)
    rank = config["r"] + read_json(b / CONFIG)["r"]
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**config, "r": rank, "lora_alpha": float(rank), "use_rslora": False})
    files = {"a_sha256": sha256_file(a / WEIGHTS), "b_sha256": sha256_file(b / WEIGHTS)}
    return SumRanks(threshold=RANK_THRESHOLD, modules=tuple(ranks), **files)


def _summands_and_sum(a: Path, b: Path) -> dict[str, tuple[Factors, Factors, Factors]]:
    """By module, the factors s B (outputs, r) and A (r, inputs) of `a`, of `b` and of their sum, in double precision."""
    (ours, our_base), (theirs, their_base) = _scaled_factors(a), _scaled_factors(b)
    if our_base != their_base:
        raise NomoatError(f"{a} and {b} belong to different bases ({our_base}, {their_base}): they cannot be added")
    unmatched = sorted(ours.keys() ^ theirs.keys())
    if unmatched or not ours:
        raise NomoatError(f"{a} and {b} do not adapt the same modules ({(unmatched or ['none at all'])[0]}): they cannot be added")
    modules = {}
    for name in sorted(ours):
        (up, down), (other_up, other_down) = ours[name], theirs[name]
        modules[name] = ours[name], theirs[name], (torch.cat([up, other_up], dim=1), torch.cat([down, other_down], dim=0))
    return modules


def _scaled_factors(folder: Path) -> tuple[dict[str, Factors], str | None]:
    """By module, s B and A; and the name of the base."""
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA" or any(config.get(key) for key in ("use_dora", "rank_pattern", "alpha_pattern")):
        raise NomoatError(f"{folder}: only plain LoRA adapters with one rank for all modules can be added")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    tensors = load_file(folder / WEIGHTS)
    names = [name.removesuffix(UP) for name in tensors if name.endswith(UP)]
    factors = {name: (scale * tensors[name + UP].double(), tensors[name + DOWN].double()) for name in names}
    return factors, config.get("base_model_name_or_path")


def rank_of(up: torch.Tensor, down: torch.Tensor) -> int:
    """Rank of `up @ down`: with QR of both factors, the singular values are those of the small matrix R_up R_down^T."""
    values = torch.linalg.svdvals(torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T)
    return int((values > RANK_THRESHOLD * values[0]).sum()) if values[0] > 0 else 0
