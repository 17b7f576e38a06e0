"""What is said about a run follows from its files, and a number that does not is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from make_run import ENVIRONMENT, GATE, ledger_lines, make_run, write_jsonl

from nomoat.errors import NomoatError
from nomoat.reports import format as fmt
from nomoat.reports.build import build_report, read_report, verify_files, write_report
from nomoat.reports.schema import Report
from nomoat.reports.summary import score_notes


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "tiny-1a2b")


def written(run_dir: Path) -> Path:
    write_report(build_report(run_dir), run_dir / "report.json")
    return run_dir / "report.json"


def edit(path: Path, *place: str | int, to: Any) -> None:
    """Set one value of a JSON file."""
    whole = json.loads(path.read_text())
    part = whole
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = to
    path.write_text(json.dumps(whole))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_report_reads_back_as_it_was_built(run_dir: Path) -> None:
    report = build_report(run_dir)
    write_report(report, run_dir / "report.json")
    assert read_report(run_dir / "report.json") == report
    verify_files(report, run_dir)


def test_building_twice_gives_the_same_bytes(run_dir: Path) -> None:
    first = written(run_dir).read_bytes()
    assert written(run_dir).read_bytes() == first


def test_the_fields_of_the_specification_are_all_there(run_dir: Path) -> None:
    found = json.loads(written(run_dir).read_text())
    assert found["schema_version"] == 2 and found["status"] == "finished"
    for arm in ("base", "few_shot", "adapter"):
        assert {"n", "groups", "score", "interval", "unscored", "unstopped", "families"} <= found["arms"][arm]["tiers"]["phrasing"].keys()
    assert {"majority", "nearest_row", "lenient_base", "lenient_adapter"} <= found["baselines"]["phrasing"].keys()
    assert {"difference", "interval", "p_value", "smallest_detectable", "verdict"} <= found["comparison"]["tiers"]["phrasing"].keys()
    assert {"primary", "verdict", "retention_verdict"} <= found["comparison"].keys()
    costs = "seconds seconds_by_phase usd usd_as_if energy_wh peak_memory_bytes tokens_seen tokens_trained tokens_per_second"
    assert set(costs.split()) <= found["cost"].keys()
    assert {"parameters", "base_parameters", "bytes", "base_bytes_16bit", "base_bytes_download", "gate"} <= found["adapter"].keys()
    assert found["rows"][0][:4] == ["queue-values-000", "values", "queue", "queue-values-p0"]
    assert {"base", "few_shot", "adapter"} <= found["rows"][0][4].keys()
    assert set(found["files"]) == {"eval/adapter.jsonl", "eval/base.jsonl", "eval/baselines.jsonl", "eval/few_shot.jsonl"}


def test_tier_scores_are_means_over_families_recomputed_by_hand(run_dir: Path) -> None:
    report = build_report(run_dir)
    for arm in ("base", "adapter"):
        lines = [line for line in lines_of(run_dir / "eval" / f"{arm}.jsonl") if line["tier"] == "phrasing"]
        means = []
        for family in ("queue", "edit"):
            scores = [line["score"] for line in lines if line["family"] == family]
            means.append(sum(scores) / len(scores))
        found = report.arms[arm].tiers["phrasing"]
        assert found is not None and found.score == pytest.approx(sum(means) / 2)
        assert (found.n, found.groups) == (48, 24)


def test_few_shot_has_no_score_where_it_was_not_run(run_dir: Path) -> None:
    tiers = build_report(run_dir).arms["few_shot"].tiers
    assert tiers["family"] is None and tiers["retention"] is None and tiers["values"] is not None


def test_unscored_and_unstopped_rows_are_counted_and_left_out(run_dir: Path) -> None:
    path = run_dir / "eval" / "adapter.jsonl"
    lines = lines_of(path)
    lines[0].update(score=None, lenient=None, note="the scorer raised")
    lines[1]["stopped"] = False
    write_jsonl(path, lines)
    found = build_report(run_dir).arms["adapter"].tiers["values"]
    assert found is not None and (found.n, found.unscored, found.unstopped) == (47, 1, 1)


def test_a_tier_with_one_family_is_noted_and_retention_is_not(run_dir: Path) -> None:
    notes = " ".join(score_notes(build_report(run_dir)))
    assert "family: a single task (rhyme); does not generalise to others." in notes
    assert "retention" not in notes and "phrasing" not in notes


def test_no_sentence_is_verified_so_rewording_refuses_no_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(run_dir)
    monkeypatch.setitem(fmt.TIER_WORDS, "phrasing", "other words")
    monkeypatch.setattr(fmt, "headline", lambda report: ["other words"])
    monkeypatch.setattr(fmt, "check_words", lambda check: "other words")
    assert read_report(path) == build_report(run_dir)


def test_families_that_do_not_clear_their_baselines_are_named(tmp_path: Path) -> None:
    rates = {"nearest_row": (0.2, 1.0, None, None)}
    report = build_report(make_run(tmp_path / "run", rates=rates))
    assert report.comparison.families_below_baseline["phrasing"] == ["edit", "queue"]
    assert report.comparison.families_below_baseline["values"] == []
    assert "retention" not in report.comparison.families_below_baseline


EDITS: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("arms", "adapter", "tiers", "phrasing", "score"), 0.99, "arms.adapter.tiers.phrasing.score"),
    (("arms", "base", "tiers", "values", "families", "edit", "n"), 3, "arms.base.tiers.values.families.edit.n"),
    (("arms", "base", "tiers", "values", "interval", 0), 0.0001, "arms.base.tiers.values.interval"),
    (("baselines", "phrasing", "nearest_row"), 0.0, "baselines.phrasing.nearest_row"),
    (("comparison", "tiers", "phrasing", "difference"), 0.9, "comparison.tiers.phrasing.difference"),
    (("comparison", "few_shot", "values", "verdict"), "worse", "comparison.few_shot.values.verdict"),
    (("comparison", "retention_verdict"), "better", "comparison.retention_verdict"),
    (("status",), "failed", "status"),
    (("cost", "seconds"), 1.0, "cost.seconds"),
]


@pytest.mark.parametrize(("place", "value", "field"), EDITS, ids=[field for _, _, field in EDITS])
def test_an_edited_number_is_refused_by_name(run_dir: Path, place: tuple[str | int, ...], value: Any, field: str) -> None:
    path = written(run_dir)
    edit(path, *place, to=value)
    with pytest.raises(NomoatError, match=re.escape(field)):
        read_report(path)


def test_a_score_changed_in_the_rows_is_refused(run_dir: Path) -> None:
    path = written(run_dir)
    rows = json.loads(path.read_text())["rows"]
    edit(path, "rows", 0, 4, "adapter", to=1.0 - rows[0][4]["adapter"])
    with pytest.raises(NomoatError, match=r"arms\.adapter\.tiers\.values"):
        read_report(path)


@pytest.mark.parametrize(("key", "value"), [("surprise", 1), ("schema_version", 3)])
def test_an_unknown_key_or_another_schema_is_refused(run_dir: Path, key: str, value: int) -> None:
    path = written(run_dir)
    edit(path, key, to=value)
    with pytest.raises(NomoatError, match=key):
        read_report(path)


def test_a_torn_or_missing_report_is_refused_in_a_sentence(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(NomoatError, match="is missing"):
        read_report(tmp_path / "report.json")
    path = written(run_dir)
    path.write_text(path.read_text()[:500])
    with pytest.raises(NomoatError, match="not readable JSON"):
        read_report(path)


def test_an_edited_output_file_is_detected(run_dir: Path) -> None:
    report = read_report(written(run_dir))
    path = run_dir / "eval" / "adapter.jsonl"
    path.write_text(path.read_text().replace("something else", "something nice", 1))
    with pytest.raises(NomoatError, match=r"eval/adapter\.jsonl"):
        verify_files(report, run_dir)


def test_a_missing_output_file_is_detected(run_dir: Path) -> None:
    report = read_report(written(run_dir))
    (run_dir / "eval" / "few_shot.jsonl").unlink()
    with pytest.raises(NomoatError, match=r"few_shot\.jsonl is missing"):
        verify_files(report, run_dir)


def test_a_report_whose_rows_are_not_those_of_its_files_is_detected(run_dir: Path, tmp_path: Path) -> None:
    report = build_report(run_dir)
    other = build_report(make_run(tmp_path / "other", seed=1))
    with pytest.raises(NomoatError, match="rows"):
        verify_files(report.model_copy(update={"rows": other.rows}), run_dir)


def test_the_headline_gives_both_scores_and_the_difference_with_its_interval(run_dir: Path) -> None:
    (headline,) = fmt.headline(build_report(run_dir))
    assert re.fullmatch(r"Unseen phrasings: 0\.\d\d vs 0\.\d\d for the base \(\+0\.\d\d \[\+0\.\d\d, \+0\.\d\d\]\)", headline), headline


def test_the_headline_has_a_second_sentence_for_what_was_forgotten(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "run", per_family=60, rates={"base": (0, 0, 0, 1.0), "adapter": (1, 1, 0, 0.1)}))
    assert report.comparison.retention_verdict == "worse"
    gained, forgotten = fmt.headline(report)
    assert gained.startswith("Unseen phrasings: 1.00 vs 0.00") and forgotten.startswith("General questions")


def test_a_failing_gate_makes_a_failed_run_and_the_headline_says_so(tmp_path: Path) -> None:
    loss = {"name": "lowers the loss", "passed": False, "value": 2.9, "threshold": 2.8, "total": 32}
    report = build_report(make_run(tmp_path / "run", gate={"passed": False, "checks": [*GATE["checks"], loss]}))
    assert report.status == "failed"
    assert fmt.headline(report)[0].startswith("Failed: lowers the loss: 2.9 with the adapter, 2.8 with the base, in nats per token")


def test_a_run_that_ended_before_scoring_still_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: early\nbase: {path: ./model}\n")
    write_jsonl(tmp_path / "ledger.jsonl", ledger_lines()[:2])
    report = build_report(tmp_path)
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert report.status == "failed" and report.comparison.verdict is None and report.cost.seconds == 10.0
    assert "ended before its adapter was checked" in fmt.headline(report)[0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match="not a run directory"):
        build_report(tmp_path)


def test_a_file_of_another_shape_is_named_with_the_field(run_dir: Path) -> None:
    (run_dir / "gate.json").write_text('{"passed": "perhaps", "checks": []}')
    with pytest.raises(NomoatError, match=r"gate\.json: passed"):
        build_report(run_dir)


def test_cost_counts_killed_and_failed_stretches(tmp_path: Path) -> None:
    lines = [*ledger_lines(), {**ledger_lines()[2], "status": "killed", "elapsed_seconds": 40.0, "compute_seconds": 36.0}]
    cost = build_report(make_run(tmp_path / "run", ledger=lines)).cost
    assert cost.seconds == 550.0 and cost.seconds_by_phase["train"] == 340.0
    assert cost.tokens_seen == 240_000 and cost.tokens_per_second == pytest.approx(240_000 / 306)
    assert (cost.segments, cost.interrupted) == (8, 1)


def test_energy_that_was_not_measured_is_null_and_never_zero(run_dir: Path) -> None:
    assert build_report(run_dir).cost.energy_wh is None


def test_money_is_null_with_a_reason_where_no_rate_is_known(run_dir: Path) -> None:
    cost = build_report(run_dir).cost
    assert cost.usd is None and cost.usd_reason == "no rate is known for 2-core CPU" and cost.rate_unknown


def test_a_stated_rate_prices_all_seconds_and_names_its_source(tmp_path: Path) -> None:
    rate = {"usd_per_hour": 3.6, "source": "invoice", "date": "2026-03-10"}
    cost = build_report(make_run(tmp_path / "run", rate=rate)).cost
    assert cost.usd == pytest.approx(0.51) and cost.usd_reason and "invoice" in cost.usd_reason


def test_the_learning_curve_is_thinned_to_means_and_keeps_validation(run_dir: Path) -> None:
    points = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    write_jsonl(run_dir / "metrics.jsonl", [*points, {"step": 500, "loss": 0.0}, {"step": 1000, "validation_loss": 0.5}])
    curve = build_report(run_dir).learning_curve
    assert len(curve.training) == 334 and curve.training[0] == (2.0, 2.0)
    assert curve.validation == [(1000.0, 0.5, None)]
    assert min(loss for _, loss in curve.training) == 2.0 and curve.training[166] == (500.0, round(1000 / 3, 6))


def test_twenty_samples_of_all_kinds_are_the_same_each_time(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "run", per_family=60))
    kinds = [sample.kind for sample in report.samples]
    assert len(kinds) == 20 and set(kinds) == {"won", "lost", "both_wrong", "both_right"}
    assert report.samples == build_report(tmp_path / "run").samples
    won = [sample for sample in report.samples if sample.kind == "won"]
    assert all(sample.scores["adapter"] == 1.0 and sample.scores["base"] == 0.0 for sample in won)
    assert len({(sample.tier, sample.family) for sample in won}) > 1


def test_hostile_outputs_are_kept_short_and_the_report_stays_readable(tmp_path: Path) -> None:
    hostile = ["x" * 300_000, "nul \x00 half \ud800 end", "<script>alert(1)</script>"] * 60
    run_dir = make_run(tmp_path / "run", outputs=hostile, per_family=40)
    report = build_report(run_dir)
    write_report(report, run_dir / "report.json")
    assert read_report(run_dir / "report.json") == report
    assert (run_dir / "report.json").stat().st_size < 300_000
    assert any("more characters)" in text for sample in report.samples for text in sample.outputs.values())


def test_provenance_is_what_the_run_recorded(run_dir: Path) -> None:
    report: Report = build_report(run_dir)
    known = {key: value for key, value in ENVIRONMENT.items() if value is not None}
    assert report.provenance.record() == {**known, "kernels": "auto"} and report.created == ENVIRONMENT["created"]


def test_no_path_of_the_machine_gets_into_the_recipe_of_a_report(run_dir: Path) -> None:
    (run_dir / "recipe.yaml").write_text(f"name: tiny\nbase: {{path: {Path.home()}/model}}\n")
    assert str(Path.home()) not in written(run_dir).read_text()
