"""Views of a comparison: tables in a terminal of 80 columns, and compare.html, one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.reports import format as fmt
from nomoat.reports.charts import Point, both_widths, cost_chart, curves_chart
from nomoat.reports.compare import ARM, BenchmarkRow, RunComparison, benchmark_rows, disagreements, family_verdicts, repetition
from nomoat.reports.html import page_environment
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import Report
from nomoat.reports.summary import benchmark_name, energy_fact, grid, score_cell, table
from nomoat.stats.intervals import Interval

NOT_COMPARABLE = "not comparable"
MAX_VALUE = 44  # characters of a recipe or environment value; hashes and lists are longer
MOST_ROWS = 400  # of the rows where runs disagree: nobody reads a page of thousands, and it opens slowly


def print_comparison(runs: RunComparison, console: Console, benchmarks: Sequence[BenchmarkRow] = ()) -> None:
    """Print a table for each kind of difference; where the comparison was forced every number is labelled as not comparable."""
    for index, (letter, report) in enumerate(zip(runs.letters, runs.reports, strict=True)):
        notes = _notes(runs, index)
        console.print(Text(f"{letter}  {fmt.visible(report.run)}" + (f" ({', '.join(notes)})" if notes else "")), soft_wrap=True)
    for reason in runs.obstacles:
        console.print(Text(f"{NOT_COMPARABLE}: {fmt.visible(reason)}", style="bold red"))
    for index, letter in enumerate(runs.letters):
        if words := _repetition(runs, index):
            console.print(Text(fmt.visible(f"{letter}  {words}")))
    blocks = [
        (f"scores of the {ARM}, 95 % intervals", _score_table(runs)),
        (f"difference from {runs.letters[runs.reference]}, paired row by row", _difference_table(runs)),
        *([("standard benchmarks", _benchmark_table(runs, benchmarks))] if benchmarks else []),
        ("cost", _cost_table(runs)),
        ("differences in the recipe", _changes_table(runs.recipe_changes, runs.letters)),
        ("differences in the environment", _changes_table(runs.environment_changes, runs.letters)),
    ]
    for title, block in blocks:
        console.print(Text(f"\n{title}", style="bold"))
        console.print(block if block.row_count else Text("none"))


def _notes(runs: RunComparison, index: int) -> list[str]:
    failed = runs.reports[index].status == "failed"
    return [*(["reference"] if index == runs.reference else []), *(["failed"] if failed else [])]


def _repetition(runs: RunComparison, index: int) -> str | None:
    if index == runs.reference or runs.obstacles:
        return None
    return repetition(runs.reports[index], runs.reports[runs.reference], runs.differences[index])


def _score_table(runs: RunComparison) -> Table:
    rows = []
    for letter, report in zip(runs.letters, runs.reports, strict=True):
        scores = [report.arms[ARM].tiers.get(tier) for tier in runs.tiers]
        rows.append([Text(letter), *(_cell(runs, score.score, score.interval) if score else Text("-") for score in scores)])
    return table(["", *runs.tiers], rows)


def _difference_table(runs: RunComparison) -> Table:
    rows: list[list[str | Text]] = []
    for letter, by_tier in zip(runs.letters, runs.differences, strict=True):
        changes = [by_tier.get(tier) for tier in runs.tiers]
        rows.append(
            [letter, *(_cell(runs, change.difference, change.interval, change.verdict) if change else Text("-") for change in changes)]
        )
    del rows[runs.reference]
    return table(["", *runs.tiers], rows)


def _benchmark_table(runs: RunComparison, rows: Sequence[BenchmarkRow]) -> Table:
    """Each adapter's score, and below it the difference from the reference's, or why there is none."""
    lines = []
    for row in rows:
        cells = [benchmark_name(row.first)]
        for score, difference in zip(row.scores, row.differences, strict=True):
            cell = _cell(runs, score.adapter, score.adapter_interval) if score else Text("-")
            if isinstance(difference, str):
                cell.append(f"\n{difference}", style="dim")
            elif difference is not None:
                cell.append("\n").append(_cell(runs, difference.difference, difference.interval, difference.verdict))
            cells.append(cell)
        lines.append(cells)
    return table(["", *runs.letters], lines)


def _cell(runs: RunComparison, value: float | None, interval: Interval | None, verdict: str = "") -> Text:
    """Value, interval and verdict below one another; a value with a verdict is a difference and signed."""
    cell = score_cell(value, interval, signed=bool(verdict))
    return _labelled(runs, cell.append(f"\n{verdict}") if verdict else cell)


def _labelled(runs: RunComparison, cell: Text) -> Text:
    return cell.append(f"\n{NOT_COMPARABLE}", style="red") if runs.obstacles else cell


def _cost_table(runs: RunComparison) -> Table:
    costs = [_cost_values(report) for report in runs.reports]
    rows = [
        [Text(letter), *(_labelled(runs, Text(value)) for value in cost.values())] for letter, cost in zip(runs.letters, costs, strict=True)
    ]
    return table(["", *costs[0]], rows)


def _cost_values(report: Report) -> dict[str, str]:
    cost = report.cost
    return {
        "time": fmt.duration(cost.seconds),
        "money": fmt.money(cost.usd) + ("" if cost.usd_as_if is None else f"\nas if {fmt.money(cost.usd_as_if)}"),
        "energy": energy_fact(report).value,
        "memory": fmt.size(cost.peak_memory_bytes),
        "adapter": fmt.size(report.adapter.bytes),
    }


def _changes_table(changes: Sequence[tuple[str, Sequence[str]]], letters: Sequence[str]) -> Table:
    """One line per run and key: values are too long for columns."""
    rows = []
    for key, values in changes:
        for index, (letter, value) in enumerate(zip(letters, map(fmt.visible, values), strict=True)):
            short = value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}..."
            rows.append((Text(fmt.visible(key) if index == 0 else ""), letter, Text(short)))
    return grid(rows)


def render_comparison(runs: RunComparison, paths: Sequence[Path]) -> str:
    """The page as one string; `paths` are the run directories (or report files) in the order of the reports.

    One inline script filters the rows where runs disagree; without scripts all of them are shown.
    """
    rows = disagreements(runs, paths)
    template = page_environment().get_template("compare.html.j2")
    return str(
        template.render(
            comparison=runs,
            arm=ARM,
            letters=runs.letters,
            runs=[_run(runs, index, path) for index, path in enumerate(paths)],
            others=[index for index in range(len(paths)) if index != runs.reference],
            families={tier: _families(runs, tier) for tier in runs.tiers},
            verdicts=[family_verdicts(differences) for differences in runs.differences],
            benchmarks=benchmark_rows(runs, paths),
            rows=rows[:MOST_ROWS],
            left_out=max(0, len(rows) - MOST_ROWS),
            filters={"tier": in_tier_order({row.tier for row in rows}), "family": sorted({row.family for row in rows})},
            charts=_charts(runs),
            sentences=_sentences(runs),
        )
    )


def _run(runs: RunComparison, index: int, path: Path) -> dict[str, Any]:
    report = runs.reports[index]
    return {
        "letter": runs.letters[index],
        "name": report.run,
        "notes": ", ".join(_notes(runs, index) + ([] if path.is_dir() else ["only its report"])),
        "report": report,
        "cost": _cost_values(report),
        "differences": runs.differences[index],
    }


def _families(runs: RunComparison, tier: str) -> list[str]:
    scores = [report.arms[ARM].tiers.get(tier) for report in runs.reports]
    return sorted({name for score in scores if score for name in score.families})


def _sentences(runs: RunComparison) -> list[str]:
    """The result of each run on the reference's primary tier, with the tiers on which it is worse in the same sentence."""
    first = runs.letters[runs.reference]
    primary = runs.reports[runs.reference].comparison.primary
    sentences = []
    for index, (letter, differences) in enumerate(zip(runs.letters, runs.differences, strict=True)):
        if index == runs.reference or primary not in differences:
            continue
        verdict = differences[primary].verdict
        words = f"is not significantly different from {first}" if verdict == "cannot tell" else f"is {verdict} than {first}"
        sentence = f"{letter} {words} on {fmt.tier_words(primary)}, {fmt.change(differences[primary])}"
        worse = [fmt.tier_words(tier) for tier, difference in differences.items() if difference.verdict == "worse" and tier != primary]
        joint = "and also" if verdict == "worse" else "but"
        sentences.append(sentence + (f"; {joint} worse on {', '.join(worse)}" if worse else ""))
        if repeated := _repetition(runs, index):
            sentences.append(f"{letter} {repeated}")
    return sentences


def _charts(runs: RunComparison) -> dict[str, Any]:
    """Scores by dollars where every run has a figure, else by minutes; and the curves of validation loss."""
    tier = runs.reports[runs.reference].comparison.primary
    priced = all(report.cost.usd is not None for report in runs.reports)
    unit = "US dollars" if priced else "minutes, in all"
    points = []
    for letter, report in zip(runs.letters, runs.reports, strict=True):
        score = report.arms[ARM].tiers.get(tier)
        if score is not None and score.score is not None:
            cost = report.cost.usd if priced and report.cost.usd is not None else report.cost.seconds / 60
            points.append(Point(letter, cost, score.score, score.interval))
    curves = [(letter, report.learning_curve) for letter, report in zip(runs.letters, runs.reports, strict=True)]
    return both_widths(
        {
            "cost": lambda width: cost_chart(points, unit=unit, tier=tier, width=width) if points else None,
            "curves": lambda width: curves_chart(curves, width=width),
        }
    )
