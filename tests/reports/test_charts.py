"""Charts are text, take their colours from the page, and show what the report holds."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from make_run import make_run

from nomoat.reports.build import build_report
from nomoat.reports.charts import NARROW, WIDE, learning_curve_chart, score_chart
from nomoat.reports.schema import LossCurve


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_score_chart_is_text_in_the_colours_of_the_page(tmp_path: Path, width: float) -> None:
    report = build_report(make_run(tmp_path / "run"))
    svg = score_chart(report, width=width)
    assert svg == score_chart(report, width=width)
    ElementTree.fromstring(svg)
    assert not re.search(r"#[0-9a-fA-F]{6}", re.sub(r'href="#[^"]*"|url\(#[^)]*\)', "", svg))
    assert {"var(--base)", "var(--few_shot)", "var(--adapter)", "var(--baseline)"} <= set(re.findall(r"var\(--\w+\)", svg))
    for tier in ("values", "phrasing", "family", "retention"):
        assert f">{tier}</text>" in svg
    assert "<style" not in svg and "DejaVu" not in svg


def test_the_chart_in_words_holds_the_scores(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "run"))
    adapter = report.arms["adapter"].tiers["phrasing"]
    assert adapter is not None and f"adapter {adapter.score:.2f}" in score_chart(report, width=WIDE)


def test_no_curve_without_points() -> None:
    assert learning_curve_chart(LossCurve(training=[], validation=[]), width=WIDE) is None


def test_the_curve_says_where_validation_began_and_ended() -> None:
    curve = LossCurve(training=[(1.0, 3.0), (2.0, 1.0)], validation=[(0.0, 3.2, None), (2.0, 1.1, 0.9)])
    svg = learning_curve_chart(curve, width=NARROW)
    assert svg is not None and "from 3.20 to 1.10" in svg
