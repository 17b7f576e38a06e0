"""Numbers, names and results as text for people: the same words in every view."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nomoat.reports.schema import Benchmark, Check, FamilyDifference, Gate, Report
from nomoat.stats.intervals import Interval, SeedsEstimate

TIER_WORDS = {
    "values": "known phrasings, new values",
    "phrasing": "unseen phrasings",
    "family": "an untrained task",
    "retention": "general questions the base could answer",
}
NOT_MEASURED = "not measured"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")
_UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff]")
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # bidirectional marks: a line would not read as it is


def visible(value: object) -> str:
    """A text that can be shown anywhere: control characters as symbols, lone surrogates as U+FFFD, bidirectional marks by name."""
    text = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), str(value).replace("\r\n", "\n"))
    return _REORDERING.sub(lambda match: f"[U+{ord(match[0]):04X}]", _UNPRINTABLE.sub("\ufffd", text))


def shortened(text: str, limit: int) -> str:
    """The first `limit` characters of a text and, where it is longer, how many are missing."""
    left_out = len(text) - limit
    return text if left_out <= 0 else f"{text[:limit]} ... ({left_out:,} more characters)"


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each leaf of nested JSON: `("lora.rank", "16")`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flattened(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *others])


def tier_words(tier: str) -> str:
    """The questions of a tier in words: `phrasing` -> `unseen phrasings`."""
    return TIER_WORDS.get(tier, tier)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """`0.81`, `+0.76`, or `-` where there is no number."""
    # + 0.0 turns a rounded -0.0 into 0.0: "-0.00" reads like a loss
    return "-" if value is None else f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def interval(value: Interval | None, *, signed: bool = False) -> str:
    """`[0.75, 0.86]`, or why there is none."""
    return "(too few groups for an interval)" if value is None else f"[{', '.join(number(end, signed=signed) for end in value)}]"


def p_value(value: float | None) -> str:
    """`p = 0.012`, `p < 0.001`, or nothing."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min 05 s`, `3 h 20 min`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int | None) -> str:
    """Bytes in decimal units, as file managers and vendors print them: `19.6 MB`."""
    if count is None:
        return NOT_MEASURED
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def counted(count: int | float | None) -> str:
    """A whole number with thin groups of three digits: `1,234,567`."""
    return NOT_MEASURED if count is None else f"{count:,.0f}"


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def money(usd: float | None) -> str:
    """US dollars with as many digits as small sums need: `$0.0123`, `$12.30`."""
    if usd is None:
        return "no figure"
    return f"${usd:.2f}" if usd >= 1 else f"${usd:.4f}"


def headline(report: Report) -> list[str]:
    """The result in one short sentence per finding: failure, score on the primary tier, and what was forgotten."""
    failure, comparison = failure_reason(report.adapter.gate), report.comparison
    forgot = comparison.retention_verdict == "worse" and comparison.primary != "retention"
    tiers = [comparison.primary, *(["retention"] if forgot else [])]
    return [*([failure] if failure else []), *(_tier_sentence(report, tier) for tier in tiers)]


def _tier_sentence(report: Report, tier: str) -> str:
    difference = report.comparison.tiers.get(tier)
    base, adapter = (report.arms[arm].tiers.get(tier) for arm in ("base", "adapter"))
    name = capitalised(tier_words(tier))
    if difference is None or base is None or adapter is None:
        return f"{name}: nothing was scored, so there is no verdict"
    return f"{name}: {number(adapter.score)} vs {number(base.score)} for the base ({change(difference)})"


def failure_reason(gate: Gate | None) -> str | None:
    """Why the run counts as failed, or None."""
    if gate is None:
        return "Failed: the run ended before its adapter was checked"
    if gate.passed:
        return None
    failed = "; ".join(f"{check.name}: {check_words(check)}" for check in gate.checks if not check.passed)
    return f"Failed: {failed or 'the adapter did not pass its checks'}"


def check_words(check: Check) -> str:
    """The numbers of a gate check in words."""
    value, threshold = number_or_dash(check.value), number_or_dash(check.threshold)
    words = {
        "complete": f"{value} of {threshold} tensors saved",
        "finite": f"{value} tensors hold NaN or infinity",
        "every tensor moved": f"{value} of {check.total} tensors equal their initial value",
        "changes the logits": f"logits change by up to {value}; reloading changes them by {number_or_dash(check.reload_error)}",
        "lowers the loss": f"{value} with the adapter, {threshold} with the base, in nats per token on {check.total} training rows",
        "answers differ": f"{value} of {threshold} held-out answers equal the base's",
        "every tensor found its place": f"{check.total} tensors",
    }.get(check.name, value)
    example = f" (such as {check.example})" if check.example else ""
    return f"{words}{example}{', as eval.expect_no_gain allows' if check.excused else ''}"


def number_or_dash(value: float | None) -> str:
    """At most four significant digits, or `-`."""
    return "-" if value is None else f"{value:.4g}"


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the rest unchanged."""
    return text[:1].upper() + text[1:]


def change(difference: FamilyDifference | SeedsEstimate) -> str:
    """`+0.76 [+0.70, +0.82]`."""
    return f"{number(difference.difference, signed=True)} {interval(difference.interval, signed=True)}"


def metric(score: Benchmark) -> str:
    """A benchmark's metric in words, with its filter if it has one, and its direction where lower is better or that is unknown."""
    words = score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
    return words + {True: "", False: " (lower is better)", None: " (direction not stated)"}[score.higher_is_better]
