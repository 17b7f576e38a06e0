"""The page is whole, needs nothing from outside, and shows any output without running it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from make_run import GATE, ledger_lines, make_run, write_jsonl

from nomoat.reports.build import build_report
from nomoat.reports.format import headline
from nomoat.reports.html import excerpt, mark, render_html

VOID = {"meta", "br", "link", "img", "input"}
HOSTILE = [
    "</pre><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} {% include 'x' %}",
    "nul \x00 escape \x1b[31m half \ud800 end",
    "\u202egnidrow",
    "</title></style><svg onload=alert(3)>",
    "[" * 1_000_000,
]


class Page(HTMLParser):
    """Collects elements, attributes and text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run_dir: Path) -> tuple[str, Page]:
    html = render_html(build_report(run_dir))
    return html, Page(html)


def test_the_page_says_what_the_report_says(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "tiny-1a2b"))
    text = Page(render_html(report)).text
    assert all(sentence in text for sentence in headline(report))
    adapter = report.arms["adapter"].tiers["phrasing"]
    assert adapter is not None and adapter.interval is not None
    interval = f"[{adapter.interval[0]:.2f},\u00a0{adapter.interval[1]:.2f}]"
    for expected in (f"{adapter.score:.2f}", interval, "tiny-1a2b", "9.8 MB", "8 min 30 s"):
        assert expected in text


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    html, page = page_of(make_run(tmp_path / "run"))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"https?://[^\"' ]+", html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_hostile_outputs_are_escaped_and_shortened(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", outputs=HOSTILE * 40, per_family=40)
    html, page = page_of(run_dir)
    plain_tags = set(page_of(make_run(tmp_path / "plain", per_family=40))[1].tags)
    assert set(page.tags) == plain_tags, "an output became an element of the page"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text
    assert "\x00" not in html and "\x1b" not in html and "\u202e" not in html and "\u2400" in html
    html.encode("utf-8")
    assert len(html) < 400_000


def test_hostile_names_are_escaped_everywhere(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    for path in (run_dir / "eval").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"queue"', '"<b onclick=x>"'))
    (run_dir / "recipe.yaml").write_text('name: tiny\nbase: {path: ./model, note: "</dd><script>", display_name: "<i>"}\n')
    _, page = page_of(run_dir)
    assert not {"i", "script"} & set(page.tags) and "<b onclick=x>" in page.text
    assert "onclick" not in [name for name, _ in page.attributes]


def test_energy_nobody_measured_is_not_shown_as_zero(tmp_path: Path) -> None:
    text = Page(render_html(build_report(make_run(tmp_path / "run")))).text
    assert re.search(r"Energy\s*not measured", text) and not re.search(r"Energy\s*0", text)


def test_a_failed_run_is_headed_failed(tmp_path: Path) -> None:
    gate: dict[str, Any] = {"passed": False, "checks": [*GATE["checks"], {"name": "complete", "passed": False, "value": 0, "threshold": 4}]}
    html, page = page_of(make_run(tmp_path / "run", gate=gate))
    assert "<title>Failed: run</title>" in html
    assert "Failed: complete: 0 of 4 tensors saved" in page.text


def test_a_loss_in_retention_stands_in_the_heading(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", per_family=60, rates={"base": (0.0, 0.0, 0.0, 1.0), "adapter": (1.0, 1.0, 0.0, 0.1)})
    html, _ = page_of(run_dir)
    heading = re.sub(r"<[^>]*>", "", re.findall(r"<h2>(.*?)</h2>", html)[0])
    assert "Better on unseen phrasings" in heading and "worse on general questions" in heading


def test_too_few_groups_are_said_in_words(tmp_path: Path) -> None:
    _, page = page_of(make_run(tmp_path / "run", per_family=2))
    assert "too few groups for an interval" in page.text and "None" not in page.text


def test_a_result_that_was_taken_over_shows_what_it_took_when_it_was_made(tmp_path: Path) -> None:
    cached = {**ledger_lines()[4], "status": "cached", "elapsed_seconds": 0.0, "cost_when_made": {"seconds": 61.0}}
    _, page = page_of(make_run(tmp_path / "run", ledger=[*ledger_lines()[:4], cached]))
    assert "score the base (1 min 01 s)" in page.text


def test_a_run_that_never_scored_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: early\nbase: {path: ./model}\n")
    write_jsonl(tmp_path / "ledger.jsonl", [])
    _, page = page_of(tmp_path)
    assert "No rows were scored." in page.text and "Not checked" in page.text


def test_every_picture_and_table_has_words(tmp_path: Path) -> None:
    html, page = page_of(make_run(tmp_path / "run"))
    charts = re.findall(r"<svg [^>]*role=\"img\"[^>]*>", html)
    assert len(charts) == 4 and all("aria-label=" in chart for chart in charts)
    assert page.tags.count("table") == page.tags.count("caption") > 0
    assert page.tags.count("h1") == 1


def test_ids_are_unique(tmp_path: Path) -> None:
    _, page = page_of(make_run(tmp_path / "run"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 10


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "run"))
    assert render_html(report) == render_html(report)


def test_no_local_path_gets_into_the_page(tmp_path: Path) -> None:
    html, _ = page_of(make_run(tmp_path / "run"))
    assert str(tmp_path) not in html


def test_a_long_text_says_how_much_is_missing() -> None:
    assert excerpt("x" * 1000).endswith("x ... (300 more characters)")
    assert excerpt("short") == "short"


@pytest.mark.parametrize(("score", "word"), [(1.0, "right"), (0.0, "wrong"), (0.5, "0.50"), (None, "not scored")])
def test_a_mark_is_a_word(score: float | None, word: str) -> None:
    assert mark(score) == word
