"""compare.html: several runs on one page that needs nothing else, computed from their reports and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nomoat import wording
from nomoat.comparing import ARM, Compared, family_verdicts, repetition
from nomoat.comparing_benchmarks import benchmark_rows
from nomoat.comparing_plots import Point, cost_chart, curves_chart
from nomoat.comparing_rows import Disagreement, disagreements
from nomoat.comparing_view import cost_values, letter
from nomoat.plots import NARROW, WIDE
from nomoat.report_page import page_environment
from nomoat.report_schema import Report

MOST_ROWS = 400  # of the rows where runs disagree: a page of thousands is read by nobody and opens slowly


def render_comparison(found: Compared, paths: Sequence[Path]) -> str:
    """The page as one string; `paths` are the run directories (or report files) in the order of the reports.

    One inline script filters the rows where runs disagree; without scripts all of them are shown.
    """
    letters = [letter(number) for number in range(len(found.reports))]
    rows = disagreements(found, paths, letters)
    return (
        page_environment()
        .get_template("compare.html.j2")
        .render(
            found=found,
            arm=ARM,
            letters=letters,
            runs=[_run(found, number, letters, alone=not path.is_dir()) for number, path in enumerate(paths)],
            others=[number for number in range(len(letters)) if number != found.reference],
            families={tier: _families(found, tier) for tier in found.tiers},
            verdicts=[family_verdicts(differences) for differences in found.differences],
            benchmarks=benchmark_rows(found, paths),
            rows=rows[:MOST_ROWS],
            left_out=max(0, len(rows) - MOST_ROWS),
            filters=_filters(rows),
            charts=_charts(found, letters),
            sentences=_sentences(found, letters),
        )
    )


def _run(found: Compared, number: int, letters: Sequence[str], *, alone: bool) -> dict[str, Any]:
    report = found.reports[number]
    marks = (("reference", number == found.reference), ("failed", report.status == "failed"), ("only its report", alone))
    notes = [words for words, holds in marks if holds]
    names = ("time", "money", "energy", "memory", "adapter")
    return {
        "letter": letters[number],
        "name": report.run,
        "notes": ", ".join(notes),
        "report": report,
        "cost": list(zip(names, cost_values(report), strict=True)),
        "differences": found.differences[number],
    }


def _families(found: Compared, tier: str) -> list[str]:
    scores = [report.arms[ARM].tiers.get(tier) for report in found.reports]
    return sorted({name for score in scores if score for name in score.families})


def _filters(rows: Sequence[Disagreement]) -> dict[str, list[str]]:
    return {"tier": wording.in_tier_order({row.tier for row in rows}), "family": sorted({row.family for row in rows})}


def _sentences(found: Compared, letters: Sequence[str]) -> list[str]:
    """What follows, run by run, on the reference's primary tier; a loss elsewhere is said in the same sentence."""
    first = letters[found.reference]
    primary = found.reports[found.reference].comparison.primary
    said = []
    for number, differences in enumerate(found.differences):
        if number == found.reference or primary not in differences:
            continue
        verdict = differences[primary].verdict
        words = f"cannot be told from {first}" if verdict == "cannot tell" else f"is {verdict} than {first}"
        sentence = f"{letters[number]} {words} on {wording.tier_words(primary)}, {wording.change(differences[primary])}"
        worse = [tier for tier, of in differences.items() if of.verdict == "worse" and tier != primary]
        joint = "and also" if verdict == "worse" else "but"
        said.append(sentence + (f"; {joint} worse on {', '.join(map(wording.tier_words, worse))}" if worse else ""))
        repeated = repetition(found.reports[number], found.reports[found.reference], differences)
        said += [f"{letters[number]} {repeated}"] if repeated else []
    return said


def _charts(found: Compared, letters: Sequence[str]) -> dict[str, Any]:
    from markupsafe import Markup

    tier = found.reports[found.reference].comparison.primary
    unit, points = _points(found.reports, letters, tier)
    curves = [(name, report.learning_curve) for name, report in zip(letters, found.reports, strict=True)]
    charts: dict[str, str | None] = {}
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        charts[f"cost_{name}"] = cost_chart(points, unit=unit, tier=tier, width=width) if points else None
        charts[f"curves_{name}"] = curves_chart(curves, width=width)
    return {name: Markup(svg) if svg else None for name, svg in charts.items()}  # our own drawing, escaped where it was made


def _points(reports: Sequence[Report], letters: Sequence[str], tier: str) -> tuple[str, list[Point]]:
    """Scores by dollars where every run has a figure, else by minutes."""
    priced = all(report.cost.usd is not None for report in reports)
    points = []
    for name, report in zip(letters, reports, strict=True):
        score = report.arms[ARM].tiers.get(tier)
        if score is not None and score.score is not None:
            cost = report.cost.usd if priced and report.cost.usd is not None else report.cost.seconds / 60
            points.append(Point(name, cost, score.score, score.interval))
    return ("US dollars" if priced else "minutes, in all"), points
