"""Terminal, page and tables show the same verdict in the field's words, and show what is unknown or was changed as such."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

from rich.console import Console

from nomoat.memo.evidence import ROLES, Measurement
from nomoat.memo.verdict import MemoVerdict, gather, judge_memo
from nomoat.memo.views import VERDICT_WORDS, describe_test, load_literature, minutes_block, print_verdict, readme_block, render_memo
from nomoat.reports.schema import Report
from tests.memo.conftest import publish
from tests.stories import ROOT


def printed(verdict: MemoVerdict) -> str:
    text = io.StringIO()
    print_verdict(verdict, Console(file=text, width=120))
    return text.getvalue()


def page_of(verdict: MemoVerdict) -> str:
    return html.unescape(render_memo(verdict, load_literature(ROOT)))


def test_the_terminal_has_a_line_per_claim_with_its_verdict_in_the_fields_words(verdict: MemoVerdict) -> None:
    lines = printed(verdict).splitlines()
    for claim in verdict.claims:
        assert any(line.startswith(f"{claim.id:<4} {VERDICT_WORDS[claim.verdict]} ") for line in lines), claim.id
    counts = [sum(claim.verdict == key for claim in verdict.claims) for key in VERDICT_WORDS]
    assert lines[-1] == ", ".join(f"{count} {word}" for count, word in zip(counts, VERDICT_WORDS.values(), strict=True))


def test_a_tested_value_is_shown_with_interval_threshold_and_verdict() -> None:
    value = Measurement(what="total time", value=2700.0, interval=(2400.0, 3000.0), unit="s", seeds=3)
    held = describe_test(value.test(14400.0, above=False))
    assert held == "total time: 45 min 00 s ([40 min 00 s, 50 min 00 s], 3 seeds); the claim needs at most 4 h 00 min: supported"
    open_test = describe_test(value.test(2600.0, above=False))
    assert open_test.endswith("at most 43 min 20 s: inconclusive; about 9.0 times the rows or seeds might decide it")
    exact = Measurement(what="share", value=0.5).test(0.9, above=True, exact=True)
    assert describe_test(exact) == "share: 0.50 (exact); the claim needs more than 0.90: refuted"
    assert "x: not known (no interval, 1 seed)" in describe_test(Measurement(what="x", value=None).test(0.0, above=True))


def test_the_page_has_a_chart_per_judged_claim_and_what_others_published(verdict: MemoVerdict) -> None:
    page = page_of(verdict)
    judged = [claim for claim in verdict.claims if any(test.value is not None for test in claim.measured)]
    assert page.count("<svg") >= 2 * len(judged) >= 8 and "<script" not in page
    assert "PEFT's comparison" in page and all(claim.quote in page for claim in verdict.claims)


def test_the_page_begins_with_the_counts_and_says_once_what_the_words_mean(verdict: MemoVerdict) -> None:
    page = page_of(verdict)
    counts = {key: sum(claim.verdict == key for claim in verdict.claims) for key in VERDICT_WORDS}
    assert f"{counts['held']} are supported, {counts['failed']} refuted, {counts['cannot tell']} inconclusive" in page
    assert "judged from 9 runs of Tiny on 2-core CPU" in " ".join(page.split())
    assert page.count("Inconclusive:") == 1 and all(page.count(f">{word}</span>") for word in ("supported", "inconclusive", "not testable"))


def test_the_page_describes_every_role_and_marks_shared_runs(root: Path) -> None:
    path = publish(root, "rank1.seed0", seed=0)
    record = json.loads(path.read_text())
    record["recipe"]["hardware"] = {"shared": True}
    path.write_text(Report.model_validate(record).model_dump_json())
    page = page_of(judge_memo(gather(root), root))
    assert ROLES["rank1"].description in page and page.count("shared with other runs") == 1


def test_a_table_has_a_line_per_claim_and_four_columns(verdict: MemoVerdict) -> None:
    lines = readme_block(verdict).splitlines()[2:]
    for claim, line in zip(verdict.claims, lines, strict=True):
        assert line.startswith(f"| {claim.id} | **{VERDICT_WORDS[claim.verdict]}** |") and line.count(" | ") == 3, line
        assert not claim.measured or describe_test(claim.measured[0]) in line


def test_what_the_runs_took_is_a_line_per_role(verdict: MemoVerdict) -> None:
    lines = minutes_block(verdict).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `default`", "| `full`", "| `lora`"]
    assert lines[2].startswith("| `default` | 0, 1, 2 | ") and lines[2].endswith("| 5 min 00 s | 8 min 30 s |")


def test_a_threshold_changed_after_looking_is_shown_with_both_verdicts(root: Path) -> None:
    path = root / "recipes" / "memo" / "claims.yaml"
    limits = "limits: {seconds: 14400.0}"
    changed = path.read_text().replace(limits, "limits: {seconds: 1.0}\n  looked_at: {seconds: 14400.0}", 1)
    path.write_text(changed)
    verdict = judge_memo(gather(root), root)
    assert verdict.claims[0].verdict == "failed"
    assert "changed after looking: under {'seconds': 14400.0} it was supported" in printed(verdict)
    assert "Under {'seconds': 14400.0} the verdict was: supported" in page_of(verdict)


def test_every_published_result_belongs_to_a_claim(verdict: MemoVerdict) -> None:
    results = load_literature(ROOT)
    assert len(results) == 11 and all(set(result) == {"claims", "work", "numbers", "leaves_out", "source"} for result in results)
    assert {claim for result in results for claim in result["claims"]} <= {claim.id for claim in verdict.claims}
