"""Summary of a report: its figures and sentences, shared by the terminal and the page, and the terminal's view of them in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.reports import format as fmt
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import ARMS, Benchmark, Harness, Report
from nomoat.runs.costs import HOW_TO_STATE, WAITING
from nomoat.stats.intervals import Interval


@dataclass(frozen=True)
class Figure:
    """One figure to print, such as Figure("Peak memory", "2.9 GB", "resident")."""

    name: str
    value: str
    more: str = ""


PHASE_WORDS = {
    "start": "start up",
    "fetch": "fetch the base",
    "load": "load the base",
    "prepare": "prepare the rows",
    "train": "train",
    "gate": "check the adapter",
    "score_base": "score the base",
    "score_few_shot": "score the base with examples",
    "score_adapter": "score the adapter",
    "score_merged": "score the merged model",
    "harness": "standard benchmarks",
    "report": "write the report",
}

SIMILARITY = (
    "Rows with a score between 0 and 1 are scored by ROUGE-L: how much of one reference's words an answer repeats in their order. Neither "
    "that nor bits per byte says whether an answer is true, complete, safe or well written, and a good answer in other words scores low."
)


def time_fact(report: Report) -> Figure:
    """Elapsed time of all segments of the run."""
    cost = report.cost
    training = cost.seconds_by_phase.get("train")
    notes = [f"{fmt.duration(training)} of it training"] if training else []
    if report.shared:
        notes.append("other work ran on the machine meanwhile")
    waited = cost.waited_share or 0.0
    if waited >= WAITING:
        notes.append(f"its threads waited for a CPU for {waited:.0%} of their runnable time, so it is not compared by time")
    return Figure("Time", fmt.duration(cost.seconds), "; ".join(notes))


def money_facts(report: Report) -> list[Figure]:
    """Rental at the stated rate or why there is none; separately, electricity and the rental-equivalent price."""
    cost = report.cost
    facts = [Figure("Money", fmt.money(cost.usd), cost.usd_reason + (f": {HOW_TO_STATE}" if cost.rate_unknown else ""))]
    if cost.usd_electricity is not None:
        facts.append(Figure("Electricity", fmt.money(cost.usd_electricity), cost.usd_electricity_reason))
    if cost.usd_as_if_label is not None:
        facts.append(Figure("As if rented", fmt.money(cost.usd_as_if), cost.usd_as_if_label))
    return facts


def energy_fact(report: Report) -> Figure:
    """Energy; "not measured" is never shown as 0."""
    cost = report.cost
    return Figure("Energy", fmt.NOT_MEASURED if cost.energy_wh is None else f"{cost.energy_wh:.3g} Wh", cost.energy_note)


def spent_facts(report: Report) -> list[Figure]:
    """Time, money, energy and peak memory."""
    cost = report.cost
    device = f", and {fmt.size(cost.peak_device_bytes)} on the accelerator" if cost.peak_device_bytes is not None else ""
    memory = Figure("Peak memory", fmt.size(cost.peak_memory_bytes), f"resident memory of the process{device}")
    return [time_fact(report), *money_facts(report), energy_fact(report), memory]


def adapter_fact(report: Report) -> Figure:
    """Size of the adapter and of its base."""
    adapter = report.adapter
    base = f"its base has {fmt.size(adapter.base_bytes_16bit)} in 16 bits" if adapter.base_bytes_16bit else ""
    if base and adapter.base_bytes_download:
        base += f", {fmt.size(adapter.base_bytes_download)} to download"
    return Figure("Adapter", fmt.size(adapter.bytes), base)


def main_facts(report: Report) -> list[Figure]:
    """The three figures next to the verdict: time, money and the adapter's size."""
    money, *others = money_facts(report)
    if report.cost.usd is None:
        known = [f"{other.name.lower()}: {other.value}" for other in others if other.value != money.value]
        money = Figure(money.name, money.value, "; ".join([report.cost.usd_reason, *known]))
    return [time_fact(report), money, adapter_fact(report)]


def cost_facts(report: Report) -> list[Figure]:
    """All figures: cost, size of the adapter, training tokens and speed, trained parameters."""
    cost, adapter = report.cost, report.adapter
    speed, share = Figure("Training speed", fmt.NOT_MEASURED), ""
    if cost.tokens_per_second is not None:
        value = f"{fmt.counted(cost.tokens_per_second)} tokens/s"
        speed = Figure("Training speed", value, "over the time of optimiser steps, padding not counted")
    if adapter.parameters is not None and adapter.base_parameters:
        share = f"{100 * adapter.parameters / adapter.base_parameters:.2g} % of the base's {fmt.counted(adapter.base_parameters)}"
    return [
        *spent_facts(report),
        adapter_fact(report),
        Figure("Training tokens", fmt.counted(cost.tokens_seen), f"{fmt.counted(cost.tokens_trained)} of them with a label"),
        speed,
        Figure("Trained parameters", fmt.counted(adapter.parameters), share),
    ]


def reused_sentence(report: Report) -> str | None:
    """Results reused from an earlier run, and their time in it."""
    reused = [f"{PHASE_WORDS.get(phase, phase)} ({fmt.duration(seconds)})" for phase, seconds in (report.cost.reused_seconds or {}).items()]
    return f"Reused from an earlier run, not counted above: {', '.join(reused)}." if reused else None


def phase_seconds(report: Report) -> list[tuple[str, float]]:
    """(phase in words, seconds) in the order of the work."""
    order = list(PHASE_WORDS)
    phases = sorted(report.cost.seconds_by_phase.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    return [(PHASE_WORDS.get(phase, phase), seconds) for phase, seconds in phases]


def score_notes(report: Report) -> list[str]:
    """Notes to the score table: single-task tiers, unscored and truncated answers, rows left out."""
    notes = []
    if any(difference.p_value is not None for difference in report.comparison.tiers.values()):
        notes.append("p is McNemar's, which ignores that rows come in clusters: verdicts follow the intervals.")
    for tier, whole in report.arms["adapter"].tiers.items():
        if whole and len(whole.families) == 1 and tier != "retention":
            notes.append(f"{tier}: a single task ({next(iter(whole.families))}); does not generalise to others.")
    for arm, by_tier in report.arms.items():
        scores = [score for score in by_tier.tiers.values() if score]
        unscored, unstopped = sum(score.unscored for score in scores), sum(score.unstopped for score in scores)
        total = sum(score.n for score in scores) + unscored
        if unscored:
            notes.append(f"{arm.replace('_', '-')}: {unscored} of {total} rows could not be scored and are left out.")
        if unstopped:
            notes.append(f"{arm.replace('_', '-')}: {unstopped} of {total} answers were cut off at the token limit.")
    if any(value not in (None, 0, 1) for row in report.rows for value in map(row.values.get, report.arms)):
        notes.append(SIMILARITY)
    notes += [_merged(tier, report) for tier in report.comparison.merged]
    heldout = report.data.heldout
    if heldout and heldout.scored < heldout.available:
        notes.append(f"{heldout.scored} of {heldout.available} held-out rows were scored.")
    return notes


def harness_notes(report: Report) -> list[str]:
    """Version, prompting and tasks of the standard benchmarks."""
    harness = report.harness
    if harness is None:
        return []
    asked = "through the base's chat template" if harness.chat_template else "as plain text"
    limit = f", the first {harness.limit:,} documents of each task" if harness.limit else ""
    tasks = "; ".join(f"{name} version {task.get('version')}, {task.get('num_fewshot') or 0}-shot" for name, task in harness.tasks.items())
    return [
        f"lm-evaluation-harness {harness.lm_eval}, {asked}{limit}; {tasks}. Which of them are in the base's training data is not known."
    ]


def _merged(tier: str, report: Report) -> str:
    """The effect of merging into 16 bits on a tier's score."""
    difference, merged = report.comparison.merged[tier], report.arms["merged"].tiers[tier]
    score = fmt.number(merged.score if merged else None)
    return f"Merged into the 16-bit base, {tier}: {score}; the adapter minus that: {fmt.change(difference)}, {difference.verdict}."


def lost_sentences(report: Report) -> list[str]:
    """Forgetting: general questions and a reference text, base against adapter."""
    return [_retention(report), _neutral(report)]


def _retention(report: Report) -> str:
    difference = report.comparison.tiers.get("retention")
    base, adapter = (report.arms[arm].tiers.get("retention") for arm in ("base", "adapter"))
    if difference is None or base is None or adapter is None:
        return "Forgetting was not measured."
    detectable = ""
    if difference.smallest_detectable is not None:
        detectable = f" The smallest detectable difference is {fmt.number(difference.smallest_detectable)}."
    return (
        f"General questions: {fmt.number(base.score)} with the base, {fmt.number(adapter.score)} with the adapter, "
        f"{fmt.change(difference)}: {difference.verdict}.{detectable}"
    )


def _neutral(report: Report) -> str:
    neutral = report.neutral
    if neutral is None or not {"base", "adapter"} <= neutral.bits_per_byte.keys():
        return "Bits per byte of the reference text were not measured."
    base, adapter = neutral.bits_per_byte["base"], neutral.bits_per_byte["adapter"]
    change = f" ({100 * (adapter / base - 1):+.1f} %)" if base else ""
    both = f"{base:.3f} bits per byte with the base and {adapter:.3f} with the adapter"
    return f"Reference text of {neutral.bytes:,} bytes: {both}{change}; lower is better."


def data_sentences(report: Report) -> list[str]:
    """Rows trained on, packing, and the result of the contamination check."""
    data, sentences = report.data, []
    if data.train:
        dropped = f", {len(data.train.dropped)} dropped because they do not fit" if data.train.dropped else ", none dropped"
        tokens = f" ({fmt.counted(data.train.tokens)} tokens)" if data.train.tokens is not None else ""
        sentences.append(f"Trained on {data.train.rows:,} rows{tokens}{dropped}.")
    if data.packing:
        sentences.append(f"Rows were {'packed' if data.packing.packed else 'not packed'}: {data.packing.reason}.")
    if report.leaks:
        kinds = f"{report.leaks.exact} exact, {report.leaks.masked} with slots masked, {report.leaks.ngram} sharing 13 words"
        sentences.append(f"Contamination: held-out prompts found in training rows: {kinds}.")
    else:
        sentences.append("Contamination was not checked.")
    decoding = report.provenance.decoding
    answers = f"; answers: {decoding.method}, in {decoding.dtype}" if decoding else ""
    sentences.append(f"Kernels: {report.provenance.kernels}{answers}.")
    return sentences


# The terminal's view

STYLES = {"better": "bold green", "worse": "bold red", "cannot tell": "bold yellow"}


def print_summary(report: Report, console: Console, *, where: str | None = None) -> None:
    """Print the result of a run; `where` is the path of its report.html, printed last."""
    console.print()
    style = STYLES["worse"] if report.status == "failed" else STYLES.get(report.comparison.verdict or "", "bold")
    for sentence in fmt.headline(report):
        console.print(Text(fmt.visible(sentence), style=style))
    if report.baselines:
        _print_blocks(console, _score_table(report), _baseline_table(report))
        below = report.comparison.families_below_baseline
        below_notes = [f"not above its baselines on {tier}: {', '.join(names)}." for tier, names in below.items() if names]
        _print_blocks(console, *score_notes(report), *below_notes, apart=False)
    if report.harness:
        _print_blocks(console, _benchmark_table(report.harness), *harness_notes(report))
    _print_blocks(console, *lost_sentences(report), apart=False)
    _print_blocks(console, _fact_table(report), _phase_table(report))
    if reused := reused_sentence(report):
        _print_blocks(console, reused)
    if where:
        console.print(f"\nreport: {where}", soft_wrap=True, markup=False, highlight=False)


def _score_table(report: Report) -> Table:
    """Score above interval for each arm, so that all arms fit into 80 columns."""
    rows = []
    for tier in in_tier_order(set(report.baselines)):
        difference = report.comparison.tiers.get(tier)
        scores = [report.arms[arm].tiers.get(tier) for arm in ARMS]
        adapter, verdict = scores[-1], difference.verdict if difference else "-"
        name = Text.assemble(fmt.visible(tier), (f"\n{adapter.n} in {adapter.groups}" if adapter else "", "dim"))
        gain = score_cell(difference.difference, difference.interval, signed=True) if difference else Text("-")
        p_value = f"\n{fmt.p_value(difference.p_value)}" if difference else ""
        cells = [score_cell(score.score, score.interval) if score else Text("-") for score in scores]
        rows.append([name, *cells, gain, Text.assemble((verdict, STYLES.get(verdict, "")), (p_value, "dim"))])
    return table(["tier", "base", "few-shot", "adapter", "difference", "verdict"], rows)


def score_cell(value: float | None, bounds: Interval | None, *, signed: bool = False) -> Text:
    """A score or difference above its interval, `-` where it was not measured."""
    if value is None:
        return Text("-")
    return Text.assemble(fmt.number(value, signed=signed), ("\n" + fmt.interval(bounds, signed=signed), "dim"))


def _baseline_table(report: Report) -> Table:
    rows = []
    for tier, baseline in report.baselines.items():
        values = (baseline.majority, baseline.nearest_row, baseline.lenient_base, baseline.lenient_adapter)
        few_shot = report.comparison.few_shot.get(tier)
        rows.append([fmt.visible(tier), *map(fmt.number, values), fmt.number(few_shot.difference if few_shot else None, signed=True)])
    return table(["to compare", "majority", "nearest row", "lenient base", "lenient adapter", "over few-shot"], rows)


def _benchmark_table(harness: Harness) -> Table:
    rows = [
        (
            benchmark_name(score),
            score_cell(score.base, score.base_interval),
            score_cell(score.adapter, score.adapter_interval),
            score_cell(score.difference, score.interval, signed=True),
            Text(score.verdict, style=STYLES.get(score.verdict, "")),
        )
        for score in harness.scores
    ]
    return table(["benchmark", "base", "adapter", "difference", "verdict"], rows)


def benchmark_name(score: Benchmark) -> Text:
    """Task and metric above the number of documents."""
    return Text.assemble(fmt.visible(f"{score.task} {fmt.metric(score)}"), (f"\n{score.n} documents" if score.n else "", "dim"))


def _fact_table(report: Report) -> Table:
    facts = [*spent_facts(report), adapter_fact(report)]
    return grid((fact.name, Text(fact.value, style="bold"), Text(fmt.visible(fact.more), style="dim")) for fact in facts)


def _phase_table(report: Report) -> Table:
    total = report.cost.seconds or 1.0
    bars = [(name, seconds, "\u2588" * round(24 * seconds / total)) for name, seconds in phase_seconds(report)]
    return grid((fmt.visible(name), fmt.duration(seconds), Text(bar, style="blue")) for name, seconds, bar in bars)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table without lines: names in the first column, numbers in the others."""
    filled = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        filled.add_column(Text(fmt.visible(column)), justify="left" if index == 0 else "right")
    for row in rows:
        filled.add_row(*row)
    return filled


def grid(rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table without lines and header."""
    filled = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for row in rows:
        filled.add_row(*row)
    return filled


def _print_blocks(console: Console, *blocks: str | Table, apart: bool = True) -> None:
    """Print tables and sentences after an empty line, with another between them if `apart`."""
    for index, block in enumerate(blocks):
        if apart or index == 0:
            console.print()
        console.print(Text(fmt.visible(block)) if isinstance(block, str) else block)
