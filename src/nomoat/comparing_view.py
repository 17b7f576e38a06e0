"""A comparison in a terminal: scores, differences from the reference, cost, and what was not the same, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat import wording
from nomoat.comparing import ARM, Compared, repetition
from nomoat.comparing_benchmarks import BenchmarkRow
from nomoat.report_schema import Report
from nomoat.score_schema import Interval

NOT_COMPARABLE = "not comparable"
MAX_VALUE = 44  # characters of a recipe or environment value; hashes and lists are longer


def print_comparison(found: Compared, console: Console, benchmarks: Sequence[BenchmarkRow] = ()) -> None:
    """Print several runs side by side; where they were forced together every number says that it is not comparable."""
    letters = [letter(index) for index in range(len(found.reports))]
    _print_runs(found, letters, console)
    for reason in found.obstacles:
        console.print(Text(f"{NOT_COMPARABLE}: {wording.visible(reason)}", style="bold red"))
    for line in _repetitions(found, letters):
        console.print(Text(wording.visible(line)))
    blocks = [
        (f"scores of the {ARM}, 95 % intervals", _score_table(found, letters)),
        (f"difference from {letters[found.reference]}, paired row by row", _difference_table(found, letters)),
        *([("standard benchmarks", _benchmark_table(found, letters, benchmarks))] if benchmarks else []),
        ("cost", _cost_table(found, letters)),
        ("what differed in the recipe", _changes_table(found.recipe_changes, letters)),
        ("what differed in the environment", _changes_table(found.environment_changes, letters)),
    ]
    for title, table in blocks:
        console.print(Text(f"\n{title}", style="bold"))
        console.print(table if table.row_count else Text("nothing"))


def _repetitions(found: Compared, letters: Sequence[str]) -> list[str]:
    first = found.reports[found.reference]
    pairs = [(name, report, of) for name, report, of in zip(letters, found.reports, found.differences, strict=True) if report is not first]
    said = [(name, repetition(report, first, of)) for name, report, of in pairs if not found.obstacles]
    return [f"{name}  {words}" for name, words in said if words]


def letter(index: int) -> str:
    """A, B, ... Z, A2, B2 ...: short names for long run names."""
    return ascii_uppercase[index % 26] + (str(index // 26 + 1) if index >= 26 else "")


def _print_runs(found: Compared, letters: Sequence[str], console: Console) -> None:
    for index, (name, report) in enumerate(zip(letters, found.reports, strict=True)):
        marks = [mark for mark, holds in (("reference", index == found.reference), ("failed", report.status == "failed")) if holds]
        console.print(Text(f"{name}  {wording.visible(report.run)}" + (f" ({', '.join(marks)})" if marks else "")), soft_wrap=True)


def _score_table(found: Compared, letters: Sequence[str]) -> Table:
    table = _table("", *found.tiers)
    for name, report in zip(letters, found.reports, strict=True):
        scores = [report.arms[ARM].tiers.get(tier) for tier in found.tiers]
        table.add_row(name, *(_cell(found, score.score, score.interval) if score else Text("-") for score in scores))
    return table


def _difference_table(found: Compared, letters: Sequence[str]) -> Table:
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


def _benchmark_table(found: Compared, letters: Sequence[str], rows: Sequence[BenchmarkRow]) -> Table:
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
        table.add_row(Text.assemble(wording.visible(f"{row.first.task} {wording.metric(row.first)}"), (documents, "dim")), *cells)
    return table


def _cell(found: Compared, value: float | None, interval: Interval | None, *, verdict: str = "") -> Text:
    """Value, interval and verdict under one another, and the warning where the runs were forced together."""
    signed = bool(verdict)
    lines: list[str | tuple[str, str]] = [wording.number(value, signed=signed), (f"\n{wording.interval(interval, signed=signed)}", "dim")]
    if verdict:
        lines.append(f"\n{verdict}")
    return _labelled(found, Text.assemble(*lines))


def _labelled(found: Compared, cell: Text) -> Text:
    return cell.append(f"\n{NOT_COMPARABLE}", style="red") if found.obstacles else cell


def _cost_table(found: Compared, letters: Sequence[str]) -> Table:
    table = _table("", "time", "money", "energy", "memory", "adapter")
    for name, report in zip(letters, found.reports, strict=True):
        table.add_row(name, *(_labelled(found, Text(value)) for value in cost_values(report)))
    return table


def cost_values(report: Report) -> list[str]:
    """Time, money, energy, memory and adapter size in words."""
    cost = report.cost
    rented = "" if cost.usd_as_if is None else f"\nas if {wording.money(cost.usd_as_if)}"
    return [
        wording.duration(cost.seconds),
        wording.money(cost.usd) + rented,
        wording.NOT_MEASURED if cost.energy_wh is None else f"{cost.energy_wh:.3g} Wh",
        wording.size(cost.peak_memory_bytes),
        wording.size(report.adapter.bytes),
    ]


def _changes_table(changes: Sequence[tuple[str, Sequence[str]]], letters: Sequence[str]) -> Table:
    """One line for each run and key: values are too long to stand beside each other."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, values in changes:
        for index, (name, value) in enumerate(zip(letters, values, strict=True)):
            shown = wording.visible(value)
            short = shown if len(shown) <= MAX_VALUE else f"{shown[:MAX_VALUE]}..."
            table.add_row(Text(wording.visible(key) if index == 0 else ""), name, Text(short))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(Text(wording.visible(column)), justify="left" if index == 0 else "right", vertical="top")
    return table
