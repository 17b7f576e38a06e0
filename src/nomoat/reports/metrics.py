"""Every score, baseline and verdict of a report, computed from its rows; and standard benchmarks from the pairs of eval/harness.jsonl.

The same functions run when a report is written and when it is read, so that an edited number is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nomoat.reports.schema import (
    ARMS,
    OPTIONAL_ARMS,
    TIERS,
    ArmScores,
    Baseline,
    Benchmark,
    CompactRow,
    Comparison,
    FamilyBaseline,
    FamilyDifference,
    FamilyScore,
    TierDifference,
    TierScore,
)
from nomoat.stats.intervals import score_interval, tier_estimate
from nomoat.stats.paired import Verdict, paired_difference

OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
Computed = TypeVar("Computed")
Metric = tuple[str, str, str]  # task, metric, filter


def benchmark_scores(lines: Sequence[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> list[Benchmark]:
    """One entry for each task, metric and filter, in the order of the lines; `tasks` states which way each metric points.

    Each document is a cluster. A metric that is not a mean over documents keeps the harness's totals and gets no interval; nor does one
    that leaves the range from 0 to 1, such as a perplexity.
    """
    return [_benchmark(part, tasks[task].get("higher_is_better", {}).get(metric)) for (task, metric, _), part in by_metric(lines).items()]


def by_metric(lines: Iterable[dict[str, Any]]) -> dict[Metric, list[dict[str, Any]]]:
    """The lines of a harness.jsonl by task, metric and filter."""
    metrics: dict[Metric, list[dict[str, Any]]] = {}
    for line in lines:
        metrics.setdefault((line["task"], line["metric"], line["filter"]), []).append(line)
    return metrics


def _benchmark(lines: Sequence[dict[str, Any]], higher_is_better: bool | None) -> Benchmark:
    base, adapter = [line["base"] for line in lines], [line["adapter"] for line in lines]
    documents = [(number, line["document"]) for number, line in enumerate(lines)]
    by_document = lines[0]["document"] is not None
    bounded = by_document and all(0 <= value <= 1 for value in (*base, *adapter))  # the range that the intervals are for
    difference = paired_difference(adapter, base, [""] * len(lines), documents) if bounded else None
    verdict: Verdict = difference.verdict if difference and higher_is_better is not None else "cannot tell"
    means = sum(base) / len(base), sum(adapter) / len(adapter)
    return Benchmark(
        **{key: lines[0][key] for key in ("task", "metric", "filter")},
        n=len(lines) if by_document else None,
        base=means[0],
        adapter=means[1],
        base_interval=score_interval(base, documents) if bounded else None,
        adapter_interval=score_interval(adapter, documents) if bounded else None,
        difference=means[1] - means[0],
        interval=difference.interval if difference else None,
        smallest_detectable=difference.smallest_detectable if difference else None,
        higher_is_better=higher_is_better,
        verdict=OPPOSITE[verdict] if higher_is_better is False else verdict,
    )


def in_tier_order(tiers: set[str]) -> list[str]:
    """Tiers from the easiest question to the hardest, unknown ones last by name."""
    return sorted(tiers, key=lambda tier: (TIERS.index(tier) if tier in TIERS else len(TIERS), tier))


@dataclass(frozen=True)
class Aggregates:
    """Everything in a report that follows from its rows."""

    arms: dict[str, ArmScores]
    baselines: dict[str, Baseline]
    comparison: Comparison


def aggregate(rows: Sequence[CompactRow], *, primary: str) -> Aggregates:
    """All scores and comparisons of a report from its rows; `primary` is the tier that decides its verdict."""
    tiers = {tier: [row for row in rows if row.tier == tier] for tier in in_tier_order({row.tier for row in rows})}
    optional = [arm for arm in OPTIONAL_ARMS if any(arm in row.values for row in rows)]
    arms = {arm: ArmScores(tiers={tier: _tier_score(part, arm) for tier, part in tiers.items()}) for arm in (*ARMS, *optional)}
    baselines = {tier: Baseline(**dict(_baseline(part)), families=_by_family(part, _baseline)) for tier, part in tiers.items()}
    against = {
        name: _present({tier: tier_difference(part, name) for tier, part in tiers.items()}) for name in ("base", "few_shot", "merged")
    }
    comparison = Comparison(
        primary=primary,
        verdict=against["base"][primary].verdict if primary in against["base"] else None,
        retention_verdict=against["base"]["retention"].verdict if "retention" in against["base"] else None,
        tiers=against["base"],
        few_shot=against["few_shot"],
        merged=against["merged"],
        families_below_baseline=_below_baseline(arms["adapter"], baselines),
    )
    return Aggregates(arms, baselines, comparison)


def _tier_score(rows: Sequence[CompactRow], arm: str) -> TierScore | None:
    if not any(arm in row.values for row in rows):
        return None
    return TierScore(**dict(_family_score(rows, arm)), families=_by_family(rows, lambda part: _family_score(part, arm)))


def _family_score(rows: Sequence[CompactRow], arm: str) -> FamilyScore:
    answered = [row for row in rows if arm in row.values]
    scored = [row for row in answered if row.values[arm] is not None]
    estimate = tier_estimate(_values(scored, arm), [row.family for row in scored], [row.group for row in scored]) if scored else None
    return FamilyScore(
        n=len(scored),
        groups=estimate.groups if estimate else 0,
        score=estimate.score if estimate else None,
        interval=estimate.interval if estimate else None,
        unscored=len(answered) - len(scored),
        unstopped=sum(f"unstopped_{arm}" in row.values for row in answered),
        lenient=_mean_over_families(rows, f"lenient_{arm}"),
        bits_per_byte=_bits_per_byte(rows, f"bits_{arm}"),
    )


def _baseline(rows: Sequence[CompactRow]) -> FamilyBaseline:
    return FamilyBaseline(**{name: _mean_over_families(rows, name) for name in FamilyBaseline.model_fields})


def tier_difference(rows: Sequence[CompactRow], other: str) -> TierDifference | None:
    """The adapter minus `other` on the rows of one tier, as a whole and by family; None where no row has both scores."""
    whole = _family_difference(rows, other)
    families = _present(_by_family(rows, lambda part: _family_difference(part, other)))
    return TierDifference(**dict(whole), families=families) if whole else None


def _family_difference(rows: Sequence[CompactRow], other: str) -> FamilyDifference | None:
    """The adapter minus `other`, over the rows that both have a score for."""
    both = [row for row in rows if row.values.get("adapter") is not None and row.values.get(other) is not None]
    if not both:
        return None
    families, groups = [row.family for row in both], [row.group for row in both]
    difference = paired_difference(_values(both, "adapter"), _values(both, other), families, groups)
    return FamilyDifference(**{name: getattr(difference, name) for name in FamilyDifference.model_fields})


def _below_baseline(adapter: ArmScores, baselines: dict[str, Baseline]) -> dict[str, list[str]]:
    """By tier with baselines: the families whose interval does not lie wholly above both."""
    below: dict[str, list[str]] = {}
    for tier, baseline in baselines.items():
        scores = adapter.tiers[tier]
        if scores and (baseline.majority is not None or baseline.nearest_row is not None):
            below[tier] = [name for name, score in scores.families.items() if not _exceeds(score, baseline.families[name])]
    return below


def _exceeds(score: FamilyScore, baseline: FamilyBaseline) -> bool:
    known = [value for value in (baseline.majority, baseline.nearest_row) if value is not None]
    return score.interval is not None and score.interval[0] > max(known, default=0.0)


def _by_family(rows: Sequence[CompactRow], compute: Callable[[list[CompactRow]], Computed]) -> dict[str, Computed]:
    return {family: compute([row for row in rows if row.family == family]) for family in sorted({row.family for row in rows})}


def _present(values: dict[str, Computed | None]) -> dict[str, Computed]:
    return {name: value for name, value in values.items() if value is not None}


def _values(rows: Sequence[CompactRow], key: str) -> list[float]:
    return [float(value) for row in rows if (value := row.values.get(key)) is not None]


def _mean_over_families(rows: Sequence[CompactRow], key: str) -> float | None:
    means = [sum(values) / len(values) for values in _by_family(rows, lambda part: _values(part, key)).values() if values]
    return sum(means) / len(means) if means else None


def _bits_per_byte(rows: Sequence[CompactRow], key: str) -> float | None:
    """Total bits over total bytes: a mean of ratios would let short references weigh most."""
    pairs = [(bits, length) for row in rows if (bits := row.values.get(key)) is not None and (length := row.values.get("bytes"))]
    return sum(bits * length for bits, length in pairs) / sum(length for _, length in pairs) if pairs else None
