"""Views of a comparison: tables in a terminal of 80 columns, and compare.html, one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.reports import format as fmt
from nomoat.reports.charts import NARROW, WIDE, Point, cost_chart, curves_chart
from nomoat.reports.compare import (
    ARM,
    BenchmarkRow,
    Disagreement,
    RunComparison,
    benchmark_rows,
    disagreements,
    family_verdicts,
    repetition,
)
from nomoat.reports.html import page_environment
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import Interval, Report

NOT_COMPARABLE = "not comparable"
MAX_VALUE = 44  # characters of a recipe or environment value; hashes and lists are longer


def print_comparison(found: RunComparison, console: Console, benchmarks: Sequence[BenchmarkRow] = ()) -> None:
    """Print several runs side by side; where the comparison was forced every number is labelled as not comparable."""
    letters = [letter(index) for index in range(len(found.reports))]
    _print_runs(found, letters, console)
    for reason in found.obstacles:
        console.print(Text(f"{NOT_COMPARABLE}: {fmt.visible(reason)}", style="bold red"))
    for line in _repetitions(found, letters):
        console.print(Text(fmt.visible(line)))
    blocks = [
        (f"scores of the {ARM}, 95 % intervals", _score_table(found, letters)),
        (f"difference from {letters[found.reference]}, paired row by row", _difference_table(found, letters)),
        *([("standard benchmarks", _benchmark_table(found, letters, benchmarks))] if benchmarks else []),
        ("cost", _cost_table(found, letters)),
        ("differences in the recipe", _changes_table(found.recipe_changes, letters)),
        ("differences in the environment", _changes_table(found.environment_changes, letters)),
    ]
    for title, table in blocks:
        console.print(Text(f"\n{title}", style="bold"))
        console.print(table if table.row_count else Text("none"))


def _repetitions(found: RunComparison, letters: Sequence[str]) -> list[str]:
    first = found.reports[found.reference]
    pairs = [(name, report, of) for name, report, of in zip(letters, found.reports, found.differences, strict=True) if report is not first]
    said = [(name, repetition(report, first, of)) for name, report, of in pairs if not found.obstacles]
    return [f"{name}  {words}" for name, words in said if words]


def letter(index: int) -> str:
    """A, B, ... Z, A2, B2 ...: short names for long run names."""
    return ascii_uppercase[index % 26] + (str(index // 26 + 1) if index >= 26 else "")


def _print_runs(found: RunComparison, letters: Sequence[str], console: Console) -> None:
    for index, (name, report) in enumerate(zip(letters, found.reports, strict=True)):
        marks = [mark for mark, holds in (("reference", index == found.reference), ("failed", report.status == "failed")) if holds]
        console.print(Text(f"{name}  {fmt.visible(report.run)}" + (f" ({', '.join(marks)})" if marks else "")), soft_wrap=True)


def _score_table(found: RunComparison, letters: Sequence[str]) -> Table:
    table = _table("", *found.tiers)
    for name, report in zip(letters, found.reports, strict=True):
        scores = [report.arms[ARM].tiers.get(tier) for tier in found.tiers]
        table.add_row(name, *(_cell(found, score.score, score.interval) if score else Text("-") for score in scores))
    return table


def _difference_table(found: RunComparison, letters: Sequence[str]) -> Table:
    table = _table("", *found.tiers)
    for index, name in enumerate(letters):
        if index == found.reference:
            continue
        cells = []
        for tier in found.tiers:
            difference = found.differences[index].get(tier)
            cells.append(_cell(found, difference.difference, difference.interval, verdict=difference.verdict) if difference else Text("-"))
        table.add_row(name, *cells)
    return table


def _benchmark_table(found: RunComparison, letters: Sequence[str], rows: Sequence[BenchmarkRow]) -> Table:
    """Each adapter's score, and below it the difference from the reference's, or why there is none."""
    table = _table("", *letters)
    for row in rows:
        documents = f"\n{row.first.n} documents" if row.first.n else ""
        cells = []
        for score, one in zip(row.scores, row.differences, strict=True):
            cell = _cell(found, score.adapter, score.adapter_interval) if score else Text("-")
            if isinstance(one, str):
                cell.append(f"\n{one}", style="dim")
            elif one is not None:
                cell.append("\n").append(_cell(found, one.difference, one.interval, verdict=one.verdict))
            cells.append(cell)
        table.add_row(Text.assemble(fmt.visible(f"{row.first.task} {fmt.metric(row.first)}"), (documents, "dim")), *cells)
    return table


def _cell(found: RunComparison, value: float | None, interval: Interval | None, *, verdict: str = "") -> Text:
    """Value, interval and verdict below one another, and a warning where the comparison was forced."""
    signed = bool(verdict)
    lines: list[str | tuple[str, str]] = [fmt.number(value, signed=signed), (f"\n{fmt.interval(interval, signed=signed)}", "dim")]
    if verdict:
        lines.append(f"\n{verdict}")
    return _labelled(found, Text.assemble(*lines))


def _labelled(found: RunComparison, cell: Text) -> Text:
    return cell.append(f"\n{NOT_COMPARABLE}", style="red") if found.obstacles else cell


def _cost_table(found: RunComparison, letters: Sequence[str]) -> Table:
    table = _table("", "time", "money", "energy", "memory", "adapter")
    for name, report in zip(letters, found.reports, strict=True):
        table.add_row(name, *(_labelled(found, Text(value)) for value in cost_values(report)))
    return table


def cost_values(report: Report) -> list[str]:
    """Time, money, energy, memory and adapter size in words."""
    cost = report.cost
    rented = "" if cost.usd_as_if is None else f"\nas if {fmt.money(cost.usd_as_if)}"
    return [
        fmt.duration(cost.seconds),
        fmt.money(cost.usd) + rented,
        fmt.NOT_MEASURED if cost.energy_wh is None else f"{cost.energy_wh:.3g} Wh",
        fmt.size(cost.peak_memory_bytes),
        fmt.size(report.adapter.bytes),
    ]


def _changes_table(changes: Sequence[tuple[str, Sequence[str]]], letters: Sequence[str]) -> Table:
    """One line per run and key: values are too long for columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, values in changes:
        for index, (name, value) in enumerate(zip(letters, values, strict=True)):
            shown = fmt.visible(value)
            short = shown if len(shown) <= MAX_VALUE else f"{shown[:MAX_VALUE]}..."
            table.add_row(Text(fmt.visible(key) if index == 0 else ""), name, Text(short))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(Text(fmt.visible(column)), justify="left" if index == 0 else "right", vertical="top")
    return table


MOST_ROWS = 400  # of the rows where runs disagree: nobody reads a page of thousands, and it opens slowly


# The page


def render_comparison(found: RunComparison, paths: Sequence[Path]) -> str:
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


def _run(found: RunComparison, number: int, letters: Sequence[str], *, alone: bool) -> dict[str, Any]:
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


def _families(found: RunComparison, tier: str) -> list[str]:
    scores = [report.arms[ARM].tiers.get(tier) for report in found.reports]
    return sorted({name for score in scores if score for name in score.families})


def _filters(rows: Sequence[Disagreement]) -> dict[str, list[str]]:
    return {"tier": in_tier_order({row.tier for row in rows}), "family": sorted({row.family for row in rows})}


def _sentences(found: RunComparison, letters: Sequence[str]) -> list[str]:
    """The result of each run on the reference's primary tier; a loss elsewhere is in the same sentence."""
    first = letters[found.reference]
    primary = found.reports[found.reference].comparison.primary
    said = []
    for number, differences in enumerate(found.differences):
        if number == found.reference or primary not in differences:
            continue
        verdict = differences[primary].verdict
        words = f"is not significantly different from {first}" if verdict == "cannot tell" else f"is {verdict} than {first}"
        sentence = f"{letters[number]} {words} on {fmt.tier_words(primary)}, {fmt.change(differences[primary])}"
        worse = [tier for tier, of in differences.items() if of.verdict == "worse" and tier != primary]
        joint = "and also" if verdict == "worse" else "but"
        said.append(sentence + (f"; {joint} worse on {', '.join(map(fmt.tier_words, worse))}" if worse else ""))
        repeated = repetition(found.reports[number], found.reports[found.reference], differences)
        said += [f"{letters[number]} {repeated}"] if repeated else []
    return said


def _charts(found: RunComparison, letters: Sequence[str]) -> dict[str, Any]:
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
