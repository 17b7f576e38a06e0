"""The two views of a report: the terminal summary, which is here, and the page, which is `report_page`.

The summary gives verdict, scores, baselines, cost and where the rest is, in 80 columns.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.reports import format as fmt
from nomoat.reports import summary
from nomoat.reports.schema import ARMS, Harness, Interval, Report

STYLES = {"better": "bold green", "worse": "bold red", "cannot tell": "bold yellow"}


def print_summary(report: Report, console: Console, *, where: str | None = None) -> None:
    """Print what a run came to; `where` is the path of its report.html, said last."""
    console.print()
    console.print(Text(fmt.visible(report.comparison.headline), style=_style(report)))
    if report.baselines:
        _print_blocks(console, _score_table(report), _baseline_table(report))
        _print_blocks(console, *(summary.score_notes(report) + _below(report)), apart=False)
    if report.harness:
        _print_blocks(console, _benchmark_table(report.harness), *summary.harness_notes(report))
    _print_blocks(console, *summary.lost_sentences(report), apart=False)
    _print_blocks(console, _fact_table(report), _phase_table(report))
    if reused := summary.reused_sentence(report):
        _print_blocks(console, reused)
    if where:
        console.print(f"\nreport: {where}", soft_wrap=True, markup=False, highlight=False)


def _style(report: Report) -> str:
    if report.status == "failed":
        return STYLES["worse"]
    return STYLES.get(report.comparison.verdict or "", "bold")


def _score_table(report: Report) -> Table:
    """Score over interval for each arm, so that all arms fit into 80 columns."""
    table = _table("tier", "base", "few-shot", "adapter", "difference", "verdict")
    for tier in fmt.in_tier_order(set(report.baselines)):
        difference = report.comparison.tiers.get(tier)
        adapter = report.arms["adapter"].tiers.get(tier)
        verdict = difference.verdict if difference else "-"
        table.add_row(
            Text.assemble(fmt.visible(tier), (f"\n{adapter.n} in {adapter.groups}" if adapter else "", "dim")),
            *(_score_cell(found.score, found.interval) if (found := report.arms[arm].tiers.get(tier)) else Text("-") for arm in ARMS),
            _score_cell(difference.difference, difference.interval, signed=True) if difference else Text("-"),
            Text.assemble((verdict, STYLES.get(verdict, "")), (f"\n{fmt.p_value(difference.p_value)}" if difference else "", "dim")),
        )
    return table


def _score_cell(value: float | None, bounds: Interval | None, *, signed: bool = False) -> Text:
    if value is None:
        return Text("-")
    return Text.assemble(fmt.number(value, signed=signed), ("\n" + fmt.interval(bounds, signed=signed), "dim"))


def _baseline_table(report: Report) -> Table:
    table = _table("to compare", "majority", "nearest row", "lenient base", "lenient adapter", "over few-shot")
    for tier, baseline in report.baselines.items():
        values = (baseline.majority, baseline.nearest_row, baseline.lenient_base, baseline.lenient_adapter)
        few_shot = report.comparison.few_shot.get(tier)
        gain = fmt.number(few_shot.difference, signed=True) if few_shot else "-"
        table.add_row(fmt.visible(tier), *(fmt.number(value) for value in values), gain)
    return table


def _benchmark_table(found: Harness) -> Table:
    table = _table("benchmark", "base", "adapter", "difference", "verdict")
    for score in found.scores:
        table.add_row(
            Text.assemble(fmt.visible(f"{score.task} {fmt.metric(score)}"), (f"\n{score.n} documents" if score.n else "", "dim")),
            _score_cell(score.base, score.base_interval),
            _score_cell(score.adapter, score.adapter_interval),
            _score_cell(score.difference, score.interval, signed=True),
            Text(score.verdict, style=STYLES.get(score.verdict, "")),
        )
    return table


def _below(report: Report) -> list[str]:
    below = report.comparison.families_below_baseline
    return [f"not clear of its baselines on {tier}: {', '.join(names)}." for tier, names in below.items() if names]


def _fact_table(report: Report) -> Table:
    table = _grid()
    for fact in [*summary.spent_facts(report), summary.adapter_fact(report)]:
        table.add_row(fact.name, Text(fact.value, style="bold"), Text(fmt.visible(fact.more), style="dim"))
    return table


def _phase_table(report: Report) -> Table:
    table = _grid()
    total = report.cost.seconds or 1.0
    for name, seconds in summary.phase_seconds(report):
        table.add_row(fmt.visible(name), fmt.duration(seconds), Text("\u2588" * round(24 * seconds / total), style="blue"))
    return table


def _table(*columns: str) -> Table:
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    return shown


def _grid() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), show_header=False)


def _print_blocks(console: Console, *blocks: str | Table, apart: bool = True) -> None:
    """Print tables and sentences after an empty line, and with one between them where they stand `apart`."""
    for index, block in enumerate(blocks):
        if apart or index == 0:
            console.print()
        console.print(Text(fmt.visible(block)) if isinstance(block, str) else block)
