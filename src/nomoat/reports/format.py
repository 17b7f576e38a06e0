"""Numbers as a person reads them, and the one sentence that says how a run ended: the same words in every view."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from nomoat.reports.schema import ArmScores, Benchmark, Comparison, FamilyDifference, FamilyScore, Gate, Interval

TIER_WORDS = {
    "values": "known phrasings with new values",
    "phrasing": "unseen phrasings",
    "family": "a kind of task it was never trained on",
    "retention": "what the base could do before",
}
TIER_ORDER = tuple(TIER_WORDS)
NOT_MEASURED = "not measured"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")
_UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff]")
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # they make a line read other than it is


def visible(value: object) -> str:
    """A text that can be shown anywhere: control characters as symbols, half characters as U+FFFD, reordering marks by name."""
    text = _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])), str(value).replace("\r\n", "\n"))
    return _REORDERING.sub(lambda found: f"[U+{ord(found[0]):04X}]", _UNPRINTABLE.sub("\ufffd", text))


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each leaf of nested JSON: `("lora.rank", "16")`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flattened(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tier_words(tier: str) -> str:
    """What a tier asks, in words: `phrasing` -> `unseen phrasings`."""
    return TIER_WORDS.get(tier, tier)


def in_tier_order(tiers: set[str]) -> list[str]:
    """Tiers from the easiest question to the hardest, unknown ones last by name."""
    return sorted(tiers, key=lambda tier: (TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER), tier))


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """`0.81`, `+0.76`, or `-` where there is no number."""
    if value is None:
        return "-"
    # + 0.0 turns a rounded -0.0 into 0.0: "-0.00" reads like a loss
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def interval(value: Interval | None, *, signed: bool = False) -> str:
    """`[0.75, 0.86]`, or why there is none."""
    if value is None:
        return "too few groups for an interval"
    return f"[{number(value[0], signed=signed)}, {number(value[1], signed=signed)}]"


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


def headline(arms: dict[str, ArmScores], comparison: Comparison, gate: Gate | None) -> str:
    """One plain sentence: verdict, both scores, difference, and what was lost, said from the numbers alone."""
    sentence = _scores_sentence(arms, comparison) + _retention_clause(arms, comparison)
    failure = failure_reason(gate)
    return f"failed: {failure}; {sentence}" if failure else sentence


def failure_reason(gate: Gate | None) -> str | None:
    """Why the run counts as failed, or None."""
    if gate is None:
        return "the run ended before its adapter was checked"
    if gate.passed:
        return None
    failed = [check.name + (f" ({check.detail})" if check.detail else "") for check in gate.checks if not check.passed]
    return "the adapter did not pass its checks" + (f": {', '.join(failed)}" if failed else "")


def _scores_sentence(arms: dict[str, ArmScores], comparison: Comparison) -> str:
    found = _pair(arms, comparison.primary)
    difference = comparison.tiers.get(comparison.primary)
    if found is None or difference is None:
        return f"nothing was scored on {tier_words(comparison.primary)}, so there is no verdict"
    base, adapter = found
    return (
        f"{difference.verdict}: {_score(adapter)} against {_score(base)} for the untouched base on "
        f"{tier_words(comparison.primary)} ({_extent(difference)}), {change(difference)}"
    )


def _retention_clause(arms: dict[str, ArmScores], comparison: Comparison) -> str:
    found = _pair(arms, "retention")
    difference = comparison.tiers.get("retention")
    if comparison.retention_verdict != "worse" or found is None or difference is None:
        return ""
    base, adapter = found
    scores = f"{_score(adapter)} against {_score(base)} ({_extent(difference)})"
    return f"; but worse at {tier_words('retention')}: {scores}, {change(difference)}"


def _pair(arms: dict[str, ArmScores], tier: str) -> tuple[FamilyScore, FamilyScore] | None:
    found = [arms[name].tiers.get(tier) if name in arms else None for name in ("base", "adapter")]
    return (found[0], found[1]) if found[0] and found[1] else None


def _score(score: FamilyScore) -> str:
    return number(score.score) if score.interval is None else f"{number(score.score)} {interval(score.interval)}"


def _extent(difference: FamilyDifference) -> str:
    return f"{plural(difference.n, 'row')} in {plural(difference.groups, 'group')}"


def change(difference: FamilyDifference) -> str:
    """`difference +0.76 [+0.70, +0.82]`."""
    bounds = interval(difference.interval, signed=True)
    return f"difference {number(difference.difference, signed=True)} " + (f"({bounds})" if difference.interval is None else bounds)


def metric(score: Benchmark) -> str:
    """A benchmark's metric in words, its filter named where there is one, and which way it points where that is down or unknown."""
    words = score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
    return words + {True: "", False: " (lower is better)", None: " (direction not stated)"}[score.higher_is_better]
