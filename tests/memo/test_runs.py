"""Missing runs are planned, made and paid for; the sum of two adapters does what both do, and its rank is that of the full matrices."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_file, write_json
from nomoat.memo.evidence import BOTH, ROLES, load_claims
from nomoat.memo.rules import judge
from nomoat.memo.runs import MADE_ROLES, PlannedRun, add_adapters, make_missing_run, missing_runs, rank_of
from nomoat.memo.verdict import gather
from nomoat.models.adapter import CONFIG, WEIGHTS, attach_adapter, load_adapter, save_adapter
from nomoat.models.base import BaseFiles, load_model
from tests.stories import ROOT, environment, make_workplace
from tests.tiny import make_base


def make_adapter(files: BaseFiles, folder: Path, seed: int, lora: Lora) -> Any:
    """An adapter whose B is not zero, as after training."""
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), lora, seed=seed, files=files)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, folder, files)
    return model


@pytest.fixture
def pair(tmp_path: Path) -> tuple[BaseFiles, Path, Path]:
    files = make_base(tmp_path / "base")
    make_adapter(files, tmp_path / "a", 1, Lora(rank=3, alpha=12))
    make_adapter(files, tmp_path / "b", 2, Lora(rank=2, alpha=2, method="rslora"))
    return files, tmp_path / "a", tmp_path / "b"


def updates(files: BaseFiles, folder: Path) -> dict[str, Any]:
    """By weight, what merging the adapter changes."""
    base = dict(load_model(files, precision="float32", device="cpu").named_parameters())
    merged = load_adapter(load_model(files, precision="float32", device="cpu"), folder).merge_and_unload()
    changed = {name: value.detach() - base[name].detach() for name, value in merged.named_parameters()}
    return {name: change for name, change in changed.items() if change.abs().max() > 0}


def test_the_sum_of_two_adapters_changes_the_base_by_the_sum_of_their_updates(pair: tuple[BaseFiles, Path, Path], tmp_path: Path) -> None:
    files, a, b = pair
    add_adapters(a, b, tmp_path / "sum")
    ours, theirs, both = (updates(files, folder) for folder in (a, b, tmp_path / "sum"))
    assert ours.keys() == theirs.keys() == both.keys() and len(both) > 4
    for name in both:
        torch.testing.assert_close(both[name], ours[name] + theirs[name], rtol=0, atol=1e-6)
    assert read_json(tmp_path / "sum" / CONFIG)["r"] == 5


def test_ranks_are_those_of_the_products(pair: tuple[BaseFiles, Path, Path], tmp_path: Path) -> None:
    _, a, b = pair
    ranks = add_adapters(a, b, tmp_path / "sum")
    assert all((module.a, module.b, module.sum) == (3, 2, 5) for module in ranks.modules) and len(ranks.modules) > 4
    assert ranks.share_higher == 1.0 and (ranks.a_sha256, ranks.b_sha256) == (sha256_file(a / WEIGHTS), sha256_file(b / WEIGHTS))
    twice = add_adapters(a, a, tmp_path / "twice")
    assert all(module.sum == module.a == 3 for module in twice.modules), "the same update twice has no higher rank"
    assert twice.share_higher == 0.0


def test_the_rank_agrees_with_a_decomposition_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    up, down = torch.randn(40, 8, dtype=torch.float64), torch.randn(8, 30, dtype=torch.float64)
    up *= torch.logspace(0, -6, 8, dtype=torch.float64)  # some below the threshold
    values = torch.linalg.svdvals(up @ down)
    assert rank_of(up, down) == int((values > 1e-3 * values[0]).sum()) < 8
    assert rank_of(torch.zeros(4, 2), torch.zeros(2, 4)) == 0


def test_adapters_that_cannot_be_added_are_refused(pair: tuple[BaseFiles, Path, Path], tmp_path: Path) -> None:
    files, a, b = pair
    target = tmp_path / "sum"
    make_adapter(files, tmp_path / "few", 1, Lora(rank=3, targets=("q_proj",)))
    with pytest.raises(NomoatError, match="do not adapt the same modules"):
        add_adapters(a, tmp_path / "few", target)
    write_json(b / CONFIG, {**read_json(b / CONFIG), "base_model_name_or_path": "another"})
    with pytest.raises(NomoatError, match=r"different bases \(base, another\)"):
        add_adapters(a, b, target)
    write_json(b / CONFIG, {**read_json(b / CONFIG), "use_dora": True})
    with pytest.raises(NomoatError, match="only plain LoRA"):
        add_adapters(a, b, target)
    assert not target.exists()


def test_a_seed_of_every_role_is_planned_before_the_next_seed_and_starts_before_what_needs_them(root: Path) -> None:
    planned = list(missing_runs(root))
    runs = {(run.role, run.seed) for run in planned}
    assert not {role for role, _ in runs} & {"lora", "full", "default"} and ("noisy50", 0) in runs and ("noisy50", 1) not in runs
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)
    order = [run.role for run in planned if run.seed == 0]
    assert order.index("a") < order.index("b_on_a")
    assert order.index("b_on_a") < order.index(BOTH)
    assert {run.role for run in missing_runs(root, ["rank1", "a"])} == {"rank1", "a"}


def test_an_unknown_role_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(NomoatError, match=r"no such role: rank2 \(allowed: lora, full"):
        list(missing_runs(root, ["rank2"]))


def test_every_role_that_is_trained_has_a_recipe() -> None:
    recipes = {path.stem for path in (ROOT / "recipes" / "memo").glob("*.yaml")} - {"claims", "literature"}
    assert recipes == set(MADE_ROLES) - {BOTH}, "a sum has no recipe"
    assert {role for claim in load_claims(ROOT) for role in claim.runs} <= set(ROLES)


@pytest.mark.slow
def test_two_adapters_are_trained_added_scored_and_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workplace(tmp_path / "root")
    memo_folder = folder / "recipes" / "memo"
    memo_folder.mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "memo" / "claims.yaml", memo_folder)  # the scripts record the hash of the repository's table
    for role in "ab":
        files = "base: {path: ../../model}\ndata: {rows: ../../rows.jsonl}\n"
        (memo_folder / f"{role}.yaml").write_text(f"extends: ../../tiny.yaml\n{files}train: {{max_steps: {4 if role == 'a' else 5}}}\n")
    for script in ("train", "eval"):
        (folder / script).symlink_to(ROOT / script)
    for key, value in environment(folder).items():
        monkeypatch.setenv(key, value)
    made, rate = folder / "runs", ["hardware.rate.usd_per_hour=36", "hardware.rate.source=a test", "hardware.rate.date=2026-03-10"]
    for role in ("a", "b", BOTH):
        planned = PlannedRun(role, 0, memo_folder / "reports" / f"{role}.seed0.json")
        make_missing_run(planned, folder, made, rate, Console(file=io.StringIO()))
    evidence = gather(folder)
    assert set(evidence.runs) == {"a", "b", BOTH} and evidence.ranks is not None and len(evidence.ranks.modules) > 4
    added = evidence.of(BOTH)[0]
    assert added.adapter.rank == 32 and added.provenance.scored_from is not None and added.provenance.scored_from.foreign
    assert {run.run for run in evidence.spent} == {report.run for reports in evidence.runs.values() for report in reports}
    assert all(run.usd == pytest.approx(run.seconds / 100) for run in evidence.spent)
    findings = {finding.id: finding for finding in judge(load_claims(ROOT), evidence)}
    assert findings["M10"].measured[0].exact and findings["M9"].lacking == "no run of b_on_a"


def test_stopping_the_script_stops_the_run_that_it_started() -> None:
    sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import sys; from nomoat import cli; from nomoat.memo import runs; runs.GRACE_SECONDS = 0.1; "
        f"cli.run_script(lambda: runs.run_process([sys.executable, '-c', {sleeps!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = int(process.stdout.readline())
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "same command" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)
