"""The published reports: whole, of the recipes and rows as they are, and the only source of the READMEs' figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.config.schema import Recipe
from nomoat.data.prepare import load_raw_data
from nomoat.errors import NomoatError
from nomoat.memo.evidence import BOTH, ROLES
from nomoat.reports import format as fmt
from nomoat.reports.build import build_report, read_report, write_report
from nomoat.reports.compare import agreement_with_published, paired_tiers
from nomoat.reports.readme_tables import (
    fewer_table,
    fill_blocks,
    precision_table,
    published_runs,
    recipes_table,
    score_table,
    seeds_score,
)
from nomoat.reports.schema import Report, TierScore
from nomoat.runs.provenance import DeviceFacts
from nomoat.scorers import SCORER_VERSION
from tests.make_run import make_run

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "reference"
REPORTS = sorted(FOLDER.glob("*.json"))


def changes_of(variant: str, recipe: Recipe) -> list[str]:
    """What the name of a published report says of its recipe."""
    if variant == "quarter":
        return [f"data.fraction={recipe.data.fraction / 4:g}"]
    if variant.startswith("rows"):
        return [f"data.fraction={int(variant.removeprefix('rows')) / 100:g}"]
    return [f"train.seed={variant.removeprefix('seed')}"] if variant.startswith("seed") else []


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_published_report_is_of_the_recipe_and_the_rows_that_are_here(path: Path) -> None:
    report = read_report(path)
    name, _, variant = path.stem.partition(".")
    file = ROOT / "recipes" / f"{name}.yaml"
    recipe = load_recipe(file, changes_of(variant, load_recipe(file)))
    made = report.recipe
    base = made.base.model_copy(update={"accept_license": None})  # each user's own
    assert made.model_copy(update={"hardware": recipe.hardware, "base": base}) == recipe, "all but what its machine is and costs"
    rows = load_raw_data(recipe, ROOT).rows
    assert report.provenance.data.heldout_sha256 == rows.heldout_sha256
    assert report.provenance.data.train_sha256 == rows.train_sha256
    assert report.provenance.scorer_version == SCORER_VERSION
    assert report.status == "finished" and not report.provenance.dirty


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "memo" / "reports").glob("*.seed*.json")), ids=lambda path: path.stem)
def test_a_report_of_the_memo_is_of_its_role(path: Path) -> None:
    report = read_report(path)
    role, _, seed = path.stem.partition(".seed")
    made = report.recipe
    assert report.status == "finished" and not report.provenance.dirty and report.provenance.seed == int(seed)
    if role == BOTH:
        assert made.name == "a" and report.run.partition("@")[2].startswith(BOTH), "the first summand's run is asked again"
        return
    recipe = load_recipe(ROOT / "recipes" / "memo" / f"{role}.yaml", [f"train.seed={seed}"])
    assert (made.lora.start is not None) == (ROLES[role].starts_from is not None)
    made = made.model_copy(update={"lora": made.lora.model_copy(update={"start": None})})
    assert made.model_copy(update={"hardware": recipe.hardware, "precision": recipe.precision}) == recipe


def test_the_reports_in_several_precisions_are_of_one_recipe_and_the_rows_that_are_here() -> None:
    reports = {path.stem: read_report(path) for path in (FOLDER / "precision").glob("*.json")}
    assert set(reports) == {"bfloat16", "int8", "nf4"}
    for name, report in reports.items():
        made = report.recipe
        assert report.status == "finished" and not report.provenance.dirty and report.provenance.dtype == name
        recipe = load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", [f"data.fraction={made.data.fraction}"])
        may_differ = {"precision": recipe.precision, "hardware": recipe.hardware, "eval": recipe.eval}
        assert made.model_copy(update=may_differ) == recipe
        rows = load_raw_data(recipe, ROOT).rows
        assert report.provenance.data.heldout_sha256 == rows.heldout_sha256
        assert report.provenance.data.train_sha256 == rows.train_sha256
    assert len({report.recipe.data.fraction for report in reports.values()}) == 1


def test_the_tables_are_those_of_the_reports() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "eval" / "reference.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_default_recipe_keeps_its_promises() -> None:
    """What its published runs have to show, so that a score means something: reached, not for free, and with room above and below."""
    found = published_runs(FOLDER)["smollm2-135m"]
    assert len({report.provenance.seed for report in found.seeds}) == 3 and found.quarter is not None
    lost = paired_tiers(found.main, found.quarter)
    for tier, promised in (("values", 0.90), ("phrasing", 0.75)):
        mean = seeds_score(found.seeds, tier)
        assert mean is not None and mean >= promised
        for report in found.seeds:
            free, few_shot = report.baselines[tier], report.arms["few_shot"].tiers[tier]
            assert few_shot is not None and few_shot.score is not None and few_shot.score <= 0.50
            assert free.nearest_row is not None and free.nearest_row <= 0.40
            assert all((family.majority or 0.0) <= 0.40 for family in free.families.values())
            assert report.comparison.families_below_baseline[tier] == []
        assert lost[tier].difference > (lost[tier].smallest_detectable or 0.0), "a quarter of the rows is seen to give less"
    by_family: dict[str, list[float]] = {}
    for report in found.seeds:
        for name, family in tier_of(report, "phrasing").families.items():
            by_family.setdefault(name, []).append(family.score or 0.0)
    between = [name for name, scores in by_family.items() if 0.40 <= sum(scores) / len(scores) <= 0.90]
    assert len(between) >= 2, "better and worse runs must differ"


def tier_of(report: Report, tier: str) -> TierScore:
    found = report.arms["adapter"].tiers[tier]
    assert found is not None
    return found


def make_reports(folder: Path, *, seeds: int) -> Path:
    published = folder / "published"
    published.mkdir()
    for seed in range(seeds):
        report = build_report(make_run(folder / f"run{seed}", seed=seed))
        write_report(report, published / f"tiny{f'.seed{seed}' if seed else ''}.json")
    return published


def test_several_seeds_are_shown_as_their_mean_and_never_as_the_best(tmp_path: Path) -> None:
    found = published_runs(make_reports(tmp_path, seeds=3))["tiny"]
    scores = [score(report) for report in found.seeds]
    assert seeds_score(found.seeds, "phrasing") == pytest.approx(sum(scores) / 3) and len(set(scores)) > 1
    table = score_table(found)
    assert "mean of 3 seeds" in table and f"{sum(scores) / 3:.2f}" in table


def score(report: Report) -> float:
    found = tier_of(report, "phrasing").score
    assert found is not None
    return found


def test_one_seed_claims_no_more(tmp_path: Path) -> None:
    found = published_runs(make_reports(tmp_path, seeds=1))["tiny"]
    assert "seeds" not in score_table(found)


def test_a_rental_that_nobody_paid_is_called_as_if(tmp_path: Path) -> None:
    found = published_runs(make_reports(tmp_path, seeds=1))["tiny"]
    for usd, shown in ((None, "| as if $0.0600 |"), (0.07, "| $0.0700 |")):
        cost = found.main.cost.model_copy(update={"usd": usd, "usd_as_if": 0.06})
        report = found.main.model_copy(update={"cost": cost})
        assert shown in recipes_table([replace(found, seeds=(report,))])


def test_a_run_on_another_machine_has_a_line_of_its_own_and_is_no_seed(tmp_path: Path) -> None:
    folder = make_reports(tmp_path, seeds=2)
    run = read_report(folder / "tiny.json")
    device = DeviceFacts(kind="cuda", name="NVIDIA L4")
    cost = run.cost.model_copy(update={"peak_device_bytes": 1_700_000_000})
    moved = run.model_copy(update={"provenance": run.provenance.model_copy(update={"device": device, "dtype": "bfloat16"}), "cost": cost})
    write_report(moved, folder / "tiny.l4.json")
    found = published_runs(folder)["tiny"]
    assert len(found.seeds) == 2 and [report.cost for report in found.elsewhere] == [cost]
    _, _, first, second = recipes_table([found]).splitlines()
    assert "mean of 2 seeds" in first and "L4" not in first
    assert "| NVIDIA L4, bfloat16 |" in second and ", 1.7 GB on the GPU |" in second and "mean" not in second


def test_a_run_on_fewer_rows_is_shown_with_what_it_loses_and_is_no_seed(tmp_path: Path) -> None:
    folder = make_reports(tmp_path, seeds=2)
    run = build_report(make_run(tmp_path / "fewer", seed=7))
    recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"fraction": 0.25})})
    write_report(run.model_copy(update={"recipe": recipe}), folder / "tiny.rows25.json")
    found = published_runs(folder)["tiny"]
    (fewer,) = found.fewer
    lost = paired_tiers(fewer, found.main)["phrasing"]
    _, _, line, whole = fewer_table(found).splitlines()
    assert len(found.seeds) == 2 and found.elsewhere == () and fmt.change(lost) in line and whole.endswith("| - | - |")
    assert "(data.fraction=0.25) |" in recipes_table([found]).splitlines()[3]


def test_a_quantised_base_is_shown_with_what_it_loses(tmp_path: Path) -> None:
    reports = {name: build_report(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate(("bfloat16", "nf4"))}
    folder = tmp_path / "published"
    folder.mkdir()
    for name, report in reports.items():
        write_report(report, folder / f"{name}.json")
    first, second = precision_table(folder).splitlines()[2:]
    lost = paired_tiers(reports["nf4"], reports["bfloat16"])["phrasing"]
    assert lost.interval is not None and first.startswith("| bfloat16 | ") and first.endswith("| - | - |")
    assert second.startswith("| nf4 | ") and second.endswith(f"{lost.difference:+.2f} [{lost.interval[0]:+.2f}, {lost.interval[1]:+.2f}] |")
    (folder / "bfloat16.json").unlink()
    with pytest.raises(NomoatError, match=r"bfloat16\.json"):
        precision_table(folder)


def test_a_published_report_that_does_not_hold_is_said_to_be_so_and_stops_nothing(tmp_path: Path) -> None:
    folder = make_reports(tmp_path, seeds=1)
    run = read_report(folder / "tiny.json")
    named = run.model_copy(update={"recipe": run.recipe.model_copy(update={"name": "tiny"})})
    record = json.loads((folder / "tiny.json").read_text())
    record["arms"]["adapter"]["tiers"]["phrasing"]["score"] = 0.123
    (folder / "tiny.json").write_text(json.dumps(record))
    said = agreement_with_published(named, folder)
    assert said is not None and "does not hold" in said and "arms.adapter.tiers.phrasing.score" in said


def test_a_variant_without_its_main_run_is_refused(tmp_path: Path) -> None:
    published = make_reports(tmp_path, seeds=2)
    (published / "tiny.json").unlink()
    with pytest.raises(NomoatError, match=r"tiny\.json"):
        published_runs(published)


def test_only_what_stands_between_the_marks_is_written() -> None:
    text = "a\n<!-- generated: report -->\nold\n<!-- end -->\nb\n"
    assert fill_blocks(text, {"report": "new"}) == "a\n<!-- generated: report -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(NomoatError, match="nothing generates 'report'"):
        fill_blocks(text, {})
