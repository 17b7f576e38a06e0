"""Published reports of made-up runs, in a folder laid out like the repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nomoat.memo.verdict import MemoVerdict, gather, judge_memo
from nomoat.reports.build import build_report, write_report
from nomoat.runs.provenance import claims_sha256
from tests.make_run import RATES, make_run
from tests.stories import ROOT

GOOD, BAD = 0.9, 0.1


def publish(root: Path, name: str, *, seed: int, rate: float = GOOD, table: str | None = None) -> Path:
    """Write the report of a finished run, made under this table of claims, where it would be committed."""
    rates = {**RATES, "adapter": (rate, rate, 0.1, 0.75)}
    run_dir = make_run(root / "runs" / f"{name}-{seed}-{rate}", seed=seed, per_family=40, rates=rates)
    environment = json.loads((run_dir / "environment.json").read_text())
    price = {"usd_per_hour": 0.5, "source": "a test", "date": "2026-03-10"}
    facts = {**environment, "seed": seed, "claims_sha256": table or claims_sha256(ROOT), "rate": price}
    (run_dir / "environment.json").write_text(json.dumps(facts))
    folder = root / "recipes" / ("reference" if name.startswith("smollm2-135m") else "memo/reports")
    folder.mkdir(parents=True, exist_ok=True)
    write_report(build_report(run_dir), folder / f"{name}.json")
    return folder / f"{name}.json"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of the roles default, lora and full."""
    folder = tmp_path_factory.mktemp("published")
    for seed in range(3):
        publish(folder, "smollm2-135m" + (f".seed{seed}" if seed else ""), seed=seed)
        publish(folder, f"lora.seed{seed}", seed=seed)
        publish(folder, f"full.seed{seed}", seed=seed)
    for name in ("claims.yaml", "literature.yaml"):
        shutil.copy(ROOT / "recipes" / "memo" / name, folder / "recipes" / "memo" / name)
    return folder


@pytest.fixture(scope="session")
def verdict(published: Path) -> MemoVerdict:
    """The verdict on them."""
    return judge_memo(gather(published), published)


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may change."""
    shutil.copytree(published / "recipes", tmp_path / "recipes")
    return tmp_path
