"""Runs are set side by side only where that means something, and differences are paired row by row."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_run import ENVIRONMENT, GATE, RECIPE, make_run
from rich.console import Console

from nomoat.errors import NomoatError
from nomoat.reports.build import build_report, write_report
from nomoat.reports.charts import Point, ends_together, pareto_front
from nomoat.reports.compare import compare, family_verdicts, finished_runs, incomparabilities, load_run
from nomoat.reports.compare_views import print_comparison, render_comparison
from nomoat.reports.schema import Report
from nomoat.stats.intervals import holm
from nomoat.stats.paired import p_of_interval
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parents[2]
WEAKER = {"adapter": (0.3, 0.2, 0.1, 0.75)}


def finished(run_dir: Path, **changes: Any) -> Path:
    make_run(run_dir, **changes)
    write_report(build_report(run_dir), run_dir / "report.json")
    return run_dir


def run_script(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_warm([str(ROOT / "eval" / "compare.py"), *map(str, words)], cwd, {**os.environ, "COLUMNS": "80"}, 120)


def printed(*run_dirs: Path, force: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_comparison(compare([load_run(path) for path in run_dirs], force=force), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_differences_are_paired_on_rows_and_agree_with_doing_it_by_hand(tmp_path: Path) -> None:
    strong, weak = finished(tmp_path / "strong"), finished(tmp_path / "weak", rates=WEAKER)
    found = compare([load_run(strong), load_run(weak)])
    means = []
    for family in ("queue", "edit"):
        scores = []
        for run_dir in (weak, strong):
            lines = [json.loads(line) for line in (run_dir / "eval" / "adapter.jsonl").read_text().splitlines()]
            scores.append([line["score"] for line in lines if line["tier"] == "phrasing" and line["family"] == family])
        means.append(sum(a - b for a, b in zip(*scores, strict=True)) / len(scores[0]))
    difference = found.differences[1]["phrasing"]
    assert difference.difference == pytest.approx(sum(means) / 2) and difference.verdict == "worse"
    assert found.differences[0]["phrasing"].difference == 0.0
    assert found.tiers == ("values", "phrasing", "family", "retention")


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"data": {**ENVIRONMENT["data"], "heldout_sha256": "f" * 64}}, "data.heldout_sha256", ("b" * 64, "f" * 64)),
        ({"scorer_version": "2"}, "scorer_version", ("1", "2")),
        ({"decoding": {**ENVIRONMENT["decoding"], "max_new_tokens": 256}}, "decoding.max_new_tokens", ("64", "256")),
        ({"decoding": {**ENVIRONMENT["decoding"], "batch_rows": 4}}, "decoding.batch_rows", ("8", "4")),
        ({"per_family": 20}, "scored rows", ("144", "120")),
    ],
    ids=["held-out rows", "scorer version", "answer length", "batch size", "fewer rows"],
)
def test_what_is_not_comparable_is_refused_with_the_field_and_both_values(
    tmp_path: Path, changes: dict[str, Any], field: str, values: tuple[str, str]
) -> None:
    reports = [load_run(finished(tmp_path / "one")), load_run(finished(tmp_path / "two", **changes))]
    with pytest.raises(NomoatError) as caught:
        compare(reports)
    message = str(caught.value)
    assert field in message and f"one has {values[0]}" in message and f"two has {values[1]}" in message


def test_runs_that_recorded_no_held_out_hash_are_not_taken_for_equal(tmp_path: Path) -> None:
    reports = [load_run(finished(tmp_path / name, data={"name": "mine"})) for name in ("one", "two")]
    with pytest.raises(NomoatError, match="recorded by neither"):
        compare(reports)


def test_forced_runs_say_not_comparable_beside_every_number(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", scorer_version="2")
    text = printed(one, two, force=True)
    tables = text[text.index("scores of the adapter") :]
    scores = 2 * 4 + 1 * 4  # two runs on four tiers, one difference on each
    costs = 2 * 5
    assert tables.count("not comparable") == scores + costs
    assert "not comparable: scorer version" in text
    assert "not comparable" not in printed(one)


def test_a_quantised_base_is_compared_though_it_answers_in_its_own_precision(tmp_path: Path) -> None:
    def scored_in(dtype: str) -> Path:
        return finished(tmp_path / dtype, rates=WEAKER if dtype == "nf4" else None, decoding={**ENVIRONMENT["decoding"], "dtype": dtype})

    exact, four_bits = load_run(scored_in("float32")), load_run(scored_in("nf4"))
    found = compare([exact, four_bits])
    assert found.differences[1]["phrasing"].verdict == "worse" and found.differences[1]["phrasing"].interval is not None
    assert ("decoding.dtype", ("float32", "nf4")) in found.environment_changes
    with pytest.raises(NomoatError, match=r"decoding\.dtype"):
        compare([exact, load_run(scored_in("bfloat16"))])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_a_row_was_scored_matters_unless_it_was_in_float32(tmp_path: Path, dtype: str) -> None:
    def scored_on(device: str, prompts: str) -> Path:
        decoding = {**ENVIRONMENT["decoding"], "dtype": dtype, "device": device, "prompts": prompts}
        return finished(tmp_path / device, decoding=decoding)

    reports = [load_run(scored_on("cpu", "end to end")), load_run(scored_on("cuda", "padded"))]
    if dtype == "float32":
        assert ("decoding.device", ("cpu", "cuda")) in compare(reports).environment_changes
        return
    with pytest.raises(NomoatError, match=r"decoding\.device.*\n.*decoding\.prompts"):
        compare(reports)


def test_the_reference_is_the_run_asked_for(tmp_path: Path) -> None:
    strong, weak = finished(tmp_path / "strong"), finished(tmp_path / "weak", rates=WEAKER)
    found = compare([load_run(strong), load_run(weak)], reference=1)
    assert found.differences[0]["phrasing"].verdict == "better"


def test_what_differed_is_listed_and_what_did_not_is_not(tmp_path: Path) -> None:
    one = finished(tmp_path / "one")
    two = finished(tmp_path / "two", recipe=RECIPE.replace("rank: 8", "rank: 16"), seed=3)
    found = compare([load_run(one), load_run(two)])
    assert found.recipe_changes == (("lora.rank", ("8", "16")),)
    assert found.environment_changes == ()


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    one = finished(tmp_path / "one")
    text = printed(one, finished(tmp_path / "two", rates=WEAKER, recipe=RECIPE.replace("8", "16"), created="2026-06-01"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\u2026" not in text and "2026-06-01" not in text


def test_a_run_edited_by_hand_is_refused(tmp_path: Path) -> None:
    run_dir = finished(tmp_path / "one")
    path = run_dir / "eval" / "base.jsonl"
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    with pytest.raises(NomoatError, match=r"base\.jsonl"):
        load_run(run_dir)


def test_a_report_alone_can_be_compared(tmp_path: Path) -> None:
    run_dir = finished(tmp_path / "one")
    assert load_run(run_dir / "report.json") == load_run(run_dir)


def test_failed_runs_are_not_among_the_finished_ones(tmp_path: Path) -> None:
    finished(tmp_path / "good")
    finished(tmp_path / "bad", gate={"passed": False, "checks": GATE["checks"]})
    make_run(tmp_path / "unfinished")
    assert finished_runs(tmp_path) == [tmp_path / "good"]


def test_the_script_compares_all_finished_runs_and_exits_0(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "one")
    finished(tmp_path / "runs" / "two", rates=WEAKER)
    done = run_script("--reference", "runs/two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "A  one" in done.stdout and "B  two (reference)" in done.stdout and "better" in done.stdout


def test_the_page_is_there_though_nobody_reads_the_table(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "runs" / name, seed=seed) for seed, name in enumerate("ab")]
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, once it has enough
    command = [sys.executable, str(ROOT / "eval" / "compare.py"), *map(str, runs)]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.DEVNULL, timeout=120)
    os.close(writing)
    assert done.returncode != 0 and (tmp_path / "runs" / "compare.html").stat().st_size > 10_000


def test_the_script_refuses_with_exit_2_and_goes_on_when_forced(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", scorer_version="2")
    refused = run_script(one, two, cwd=tmp_path)
    assert refused.returncode == 2 and "scorer_version" in refused.stderr and "Traceback" not in refused.stderr
    forced = run_script(one, two, "--force", cwd=tmp_path)
    assert forced.returncode == 0 and "not comparable" in forced.stdout


def test_the_page_shows_every_row_where_runs_disagree_and_only_those(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "one"), finished(tmp_path / "two", rates=WEAKER)]
    reports = [load_run(path) for path in runs]
    page = render_comparison(compare(reports), runs)
    scores = [{row[0]: row[4]["adapter"] for row in report.rows} for report in reports]
    apart = [row_id for row_id in scores[0] if scores[0][row_id] != scores[1][row_id]]
    shown = re.findall(r"&middot; ([a-z]+-[a-z]+-[0-9]{3})</h4>", page)
    assert sorted(shown) == sorted(apart) and len(apart) > 10
    assert page.count("question ") >= len(apart) and "something else by adapter" in page
    assert "B is worse than A on unseen phrasings" in page
    assert "http:" not in page.replace("http://www.w3.org/", "") and "https:" not in page


def test_a_report_alone_has_its_scores_on_the_page_and_says_that_its_answers_are_missing(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "one"), finished(tmp_path / "two", rates=WEAKER) / "report.json"]
    page = render_comparison(compare([load_run(path) for path in runs]), runs)
    assert "only the report is here" in page and "<pre>answer " in page


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    hostile = ["<script>alert(1)</script>", "\x00\ud800", "]" * 3_000, "</pre></article>"]
    runs = [finished(tmp_path / "one", outputs=hostile * 30), finished(tmp_path / "two", rates=WEAKER, outputs=hostile * 30)]
    page = render_comparison(compare([load_run(path) for path in runs]), runs)
    page.encode("utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "]" * 2_500 not in page
    assert page.count("<article") == page.count("</article>") > 10


def test_every_number_of_forced_runs_is_labelled_on_the_page_too(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "one"), finished(tmp_path / "two", scorer_version="2")]
    page = render_comparison(compare([load_run(path) for path in runs], force=True), runs)
    cells = len(re.findall(r"<td>[^<-]", page))
    assert page.count(">not comparable<") == cells >= 40


def test_families_get_a_verdict_only_where_it_holds_for_all_of_them_together(tmp_path: Path) -> None:
    found = compare([load_run(finished(tmp_path / "strong")), load_run(finished(tmp_path / "weak", rates=WEAKER))])
    verdicts = family_verdicts(found.differences[1])
    alone = {(tier, name): one for tier, of in found.differences[1].items() for name, one in of.families.items()}
    known = [(one.difference, one.interval) for one in alone.values() if one.interval is not None]
    adjusted = holm([p_of_interval(*one) for one in known])
    assert sum(verdict == "worse" for verdict in verdicts.values()) == sum(p < 0.05 for p in adjusted) > 0
    assert all(verdict in ("cannot tell", alone[place].verdict) for place, verdict in verdicts.items())
    assert set(family_verdicts(found.differences[0]).values()) == {"cannot tell"}


def test_a_repeated_recipe_is_said_to_agree_or_not(tmp_path: Path) -> None:
    first = load_run(finished(tmp_path / "first"))
    again = first.model_copy(update={"run": "again"})
    (said,) = [line for line in printed_reports(first, again).splitlines() if "same recipe as" in line]
    assert said.startswith("B  same recipe as first, and no significant difference on any tier")
    weak = load_run(finished(tmp_path / "weak", rates=WEAKER))
    assert "same recipe as first, other scores: worse on" in " ".join(printed_reports(first, weak).split())
    other = with_rank(first, 99).model_copy(update={"run": "other"})
    assert "same recipe" not in printed_reports(first, other)


def with_rank(report: Report, rank: int) -> Report:
    lora = report.recipe.lora.model_copy(update={"rank": rank})
    return report.model_copy(update={"recipe": report.recipe.model_copy(update={"lora": lora})})


def test_a_report_from_before_a_key_was_known_differs_in_nothing_by_it(tmp_path: Path) -> None:
    now = finished(tmp_path / "now")
    content = json.loads((now / "report.json").read_text())
    del content["recipe"]["hardware"]["kernels"], content["recipe"]["data"]["columns"], content["provenance"]["kernels"]
    then = tmp_path / "then.json"
    then.write_text(json.dumps({**content, "run": "then"}))
    found = compare([load_run(now), load_run(then)])
    assert found.recipe_changes == () and found.environment_changes == ()


def test_plain_and_fast_scoring_are_compared_in_float32_only(tmp_path: Path) -> None:
    fast = load_run(finished(tmp_path / "fast"))
    for dtype, comparable in (("float32", True), ("bfloat16", False)):
        decoding = fast.provenance.decoding.model_copy(update={"method": "greedy, drafted by the reference", "dtype": dtype})
        plain = decoding.model_copy(update={"method": "greedy, plain"})
        one, two = (fast.model_copy(update={"provenance": fast.provenance.model_copy(update={"decoding": d})}) for d in (decoding, plain))
        assert (incomparabilities(one, two) == []) is comparable


def printed_reports(*reports: Report) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_comparison(compare(reports), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_nobody_beats_a_run_on_the_front() -> None:
    points = [Point("A", 10, 0.5, None), Point("B", 5, 0.4, None), Point("C", 20, 0.5, None), Point("D", 5, 0.3, None)]
    assert [point.letter for point in pareto_front(points)] == ["B", "A"]


def test_curves_that_end_in_one_place_share_a_label() -> None:
    lines = [("A", [(0.0, 2.0), (100.0, 0.10)]), ("B", [(0.0, 2.0), (50.0, 0.10)]), ("C", [(0.0, 2.0), (99.0, 0.12)]), ("D", [(0.0, 2.0)])]
    assert ends_together(lines) == [(["A", "C"], (100.0, 0.10)), (["B"], (50.0, 0.10))]


def test_a_regression_ends_with_exit_1_only_when_asked_for(tmp_path: Path) -> None:
    strong, weak = finished(tmp_path / "strong"), finished(tmp_path / "weak", rates=WEAKER)
    out = ("--out", tmp_path / "page.html")
    assert run_script(strong, weak, *out, cwd=tmp_path).returncode == 0
    assert (tmp_path / "page.html").is_file()
    done = run_script(strong, weak, "--fail-on-regression", *out, cwd=tmp_path)
    assert done.returncode == 1 and "weak on phrasing: -" in done.stderr
    assert run_script(weak, strong, "--fail-on-regression", *out, cwd=tmp_path).returncode == 0


def test_the_script_says_what_to_do_where_there_is_nothing_to_compare(tmp_path: Path) -> None:
    done = run_script(cwd=tmp_path)
    assert done.returncode == 2 and "make train" in done.stderr
    missing = run_script("runs/none", cwd=tmp_path)
    assert missing.returncode == 2 and "not a run directory" in missing.stderr
