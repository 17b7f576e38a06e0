"""What a run used and what came out, as (name, value, explanation): the terminal and the page print the same facts."""

from __future__ import annotations

from dataclasses import dataclass

from nomoat.reports import format as fmt
from nomoat.reports.schema import Report
from nomoat.runs.costs import WAITING


@dataclass(frozen=True)
class Figure:
    """One figure to print, such as Fact("Peak memory", "2.9 GB", "resident")."""

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
    """Elapsed time of every stretch of the run."""
    cost = report.cost
    training = cost.seconds_by_phase.get("train")
    notes = [f"{fmt.duration(training)} of it training"] if training else []
    if report.shared:
        notes.append("other work ran on the machine meanwhile")
    waited = cost.waited_share or 0.0
    if waited >= WAITING:
        notes.append(f"its threads waited for a core for {waited:.0%} of the time they could have run")
    return Figure("Time", fmt.duration(cost.seconds), "; ".join(notes))


def money_facts(report: Report) -> list[Figure]:
    """Rental at the stated rate or why there is none; apart from it electricity, and what a rented machine would have cost."""
    cost = report.cost
    facts = [Figure("Money", fmt.money(cost.usd), cost.usd_reason)]
    if cost.usd_electricity is not None:
        facts.append(Figure("Electricity", fmt.money(cost.usd_electricity), cost.usd_electricity_reason))
    if cost.usd_as_if_label is not None:
        facts.append(Figure("As if rented", fmt.money(cost.usd_as_if), cost.usd_as_if_label.removeprefix("as if rented ")))
    return facts


def energy_fact(report: Report) -> Figure:
    """Energy, which is never 0 when nobody measured it."""
    cost = report.cost
    value = fmt.NOT_MEASURED if cost.energy_wh is None else f"{cost.energy_wh:.3g} Wh"
    return Figure("Energy", value, cost.energy_note.removeprefix(f"{fmt.NOT_MEASURED}: "))


def memory_fact(report: Report) -> Figure:
    """Peak memory of the process, and of the accelerator where there is one."""
    cost = report.cost
    device = f", and {fmt.size(cost.peak_device_bytes)} on the accelerator" if cost.peak_device_bytes is not None else ""
    return Figure("Peak memory", fmt.size(cost.peak_memory_bytes), f"resident memory of the process{device}")


def tokens_facts(report: Report) -> list[Figure]:
    """Training tokens, and how many a second."""
    cost = report.cost
    tokens = Figure("Training tokens", fmt.counted(cost.tokens_seen), f"{fmt.counted(cost.tokens_trained)} of them with a label")
    if cost.tokens_per_second is None:
        return [tokens, Figure("Training speed", fmt.NOT_MEASURED)]
    speed = f"{fmt.counted(cost.tokens_per_second)} tokens/s"
    return [tokens, Figure("Training speed", speed, "over the seconds of optimiser steps, padding not counted")]


def adapter_fact(report: Report) -> Figure:
    """Size of what has to be kept, beside the base."""
    adapter = report.adapter
    base = f"beside a base of {fmt.size(adapter.base_bytes_16bit)} in 16 bits" if adapter.base_bytes_16bit else ""
    if base and adapter.base_bytes_download:
        base += f", {fmt.size(adapter.base_bytes_download)} to download"
    return Figure("Adapter", fmt.size(adapter.bytes), base)


def parameters_fact(report: Report) -> Figure:
    """Trained parameters beside those of the base."""
    adapter = report.adapter
    share = ""
    if adapter.parameters is not None and adapter.base_parameters:
        share = f"{100 * adapter.parameters / adapter.base_parameters:.2g} % of the base's {fmt.counted(adapter.base_parameters)}"
    return Figure("Trained parameters", fmt.counted(adapter.parameters), share)


def main_facts(report: Report) -> list[Figure]:
    """The three figures that stand beside the verdict."""
    money, *others = money_facts(report)
    if report.cost.usd is None:
        why = money.more.partition(":")[0]  # how to state a rate is told where all costs are
        known = [f"{other.name.lower()}: {other.value}" for other in others if other.value != money.value]
        money = Figure(money.name, money.value, "; ".join([why, *known]))
    return [time_fact(report), money, adapter_fact(report)]


def spent_facts(report: Report) -> list[Figure]:
    """Time, money, energy and memory."""
    return [time_fact(report), *money_facts(report), energy_fact(report), memory_fact(report)]


def cost_facts(report: Report) -> list[Figure]:
    """Everything the run used and made."""
    return [*spent_facts(report), adapter_fact(report), *tokens_facts(report), parameters_fact(report)]


def reused_sentence(report: Report) -> str | None:
    """What was taken over from an earlier run, and what it took then."""
    reused = report.cost.reused_seconds
    if not reused:
        return None
    named = ", ".join(f"{PHASE_WORDS.get(phase, phase)} ({fmt.duration(of)})" for phase, of in reused.items())
    return f"Taken over from an earlier run, not counted above: {named}."


def phase_seconds(report: Report) -> list[tuple[str, float]]:
    """(phase in words, seconds) in the order of the work."""
    order = list(PHASE_WORDS)
    phases = sorted(report.cost.seconds_by_phase.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    return [(PHASE_WORDS.get(phase, phase), seconds) for phase, seconds in phases]


def score_notes(report: Report) -> list[str]:
    """What a reader of the score table has to know: one-family tiers, unscored and unstopped rows, rows left out."""
    notes = []
    if any(difference.p_value is not None for difference in report.comparison.tiers.values()):
        notes.append("p is McNemar's, which takes rows as independent though they come in groups: verdicts follow the intervals.")
    for tier, found in report.arms["adapter"].tiers.items():
        if found and found.note:
            notes.append(f"{tier}: {found.note}.")
    for arm, of in report.arms.items():
        scores = [score for score in of.tiers.values() if score]
        unscored, unstopped = sum(score.unscored for score in scores), sum(score.unstopped for score in scores)
        total = sum(score.n for score in scores) + unscored
        if unscored:
            notes.append(f"{arm.replace('_', '-')}: {unscored} of {total} rows could not be scored and are left out.")
        if unstopped:
            notes.append(f"{arm.replace('_', '-')}: {unstopped} of {total} outputs ran into the token limit.")
    if any(value not in (None, 0, 1) for row in report.rows for value in map(row[4].get, report.arms)):
        notes.append(SIMILARITY)
    notes += [_merged(tier, report) for tier in report.comparison.merged]
    heldout = report.data.heldout
    if heldout and heldout.scored < heldout.available:
        notes.append(f"{heldout.scored} of {heldout.available} held-out rows were scored.")
    return notes


def harness_notes(report: Report) -> list[str]:
    """How the standard benchmarks were asked."""
    found = report.harness
    if found is None:
        return []
    asked = "through the base's chat template" if found.chat_template else "as plain text"
    limit = f", the first {found.limit:,} documents of each task" if found.limit else ""
    tasks = "; ".join(f"{name} version {of.get('version')}, {of.get('num_fewshot') or 0}-shot" for name, of in found.tasks.items())
    return [f"lm-evaluation-harness {found.lm_eval}, {asked}{limit}; {tasks}. Which tasks the base's makers trained on is not known."]


def _merged(tier: str, report: Report) -> str:
    """What merging into 16 bits did to a tier's score."""
    change = report.comparison.merged[tier]
    found = report.arms["merged"].tiers[tier]
    score = fmt.number(found.score) if found else "-"
    return f"Merged into the 16-bit base, {tier}: {score}; from there to the adapter {fmt.change(change)}, {change.verdict}."


def lost_sentences(report: Report) -> list[str]:
    """Retention and neutral text: what the base could do before and the adapter cannot."""
    return [sentence for sentence in (_retention(report), _neutral(report)) if sentence]


def _retention(report: Report) -> str:
    difference = report.comparison.tiers.get("retention")
    base, adapter = (report.arms[arm].tiers.get("retention") for arm in ("base", "adapter"))
    if difference is None or base is None or adapter is None:
        return "Retention was not measured."
    detectable = ""
    if difference.smallest_detectable is not None:
        detectable = f" With these rows a change of {fmt.number(difference.smallest_detectable)} or more would be noticed."
    return (
        f"General questions the base was asked before: {fmt.number(base.score)} for the base, {fmt.number(adapter.score)} with the "
        f"adapter, {fmt.change(difference)}: {difference.verdict}.{detectable}"
    )


def _neutral(report: Report) -> str:
    neutral = report.neutral
    if neutral is None or not {"base", "adapter"} <= neutral.bits_per_byte.keys():
        return "Bits per byte of a neutral text were not measured."
    base, adapter = neutral.bits_per_byte["base"], neutral.bits_per_byte["adapter"]
    change = f" ({100 * (adapter / base - 1):+.1f} %)" if base else ""
    both = f"{base:.3f} bits per byte with the base and {adapter:.3f} with the adapter"
    return f"A fixed neutral text of {neutral.bytes:,} bytes takes {both}{change}; lower is better."


def data_sentences(report: Report) -> list[str]:
    """How many rows, how they were packed, and whether held-out rows leaked into training."""
    data, found = report.data, []
    if data.train:
        dropped = f", {len(data.train.dropped)} dropped because they do not fit" if data.train.dropped else ", none dropped"
        tokens = f" ({fmt.counted(data.train.tokens)} tokens)" if data.train.tokens is not None else ""
        found.append(f"Trained on {data.train.rows:,} rows{tokens}{dropped}.")
    if data.packing and "packed" in data.packing:
        found.append(f"Rows were {'packed' if data.packing['packed'] else 'not packed'}: {data.packing.get('reason', '')}.")
    if report.leaks:
        kinds = f"{report.leaks.exact} exact, {report.leaks.masked} with slots masked, {report.leaks.ngram} sharing 13 words"
        found.append(f"Held-out prompts found again in training: {kinds}.")
    else:
        found.append("Leaks between training and held-out rows were not looked for.")
    return found
