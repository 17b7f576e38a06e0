"""What a claim is judged from and what comes out: reports by role, and a verdict beside the values that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from nomoat.config.load import parse_yaml
from nomoat.io import Record
from nomoat.reports.compare import REFERENCE, paired_rows
from nomoat.reports.metrics import tier_difference
from nomoat.reports.schema import Cost, Interval, Report
from nomoat.runs.costs import WAITING
from nomoat.runs.provenance import CLAIMS
from nomoat.stats.intervals import seeds_estimate, standard_error_of

# MERGED verdicts:
# What a claim's verdict is made of: measured values over seeds with their intervals, and on which side of a threshold they lie.

MARGIN = 0.10  # d: a score lower by less than this is as good
TIER = "phrasing"  # the score that is judged: unseen phrasings, mean over families
NEW_FAMILIES = ("calendar", "route")  # B, what is learnt later (M9, M11); A is every other family
SAME_SPEED = 1.25  # machines whose rates differ by more than this factor are not compared by time

Outcome = Literal["held", "failed", "cannot tell", "out of reach"]


class Claim(Record):
    """One claim of the memo: its words, our rule, the thresholds in it, the runs it needs, and what the rule leaves out."""

    id: str
    quote: str
    rule: str
    limits: dict[str, float] = Field(default_factory=dict)
    runs: tuple[str, ...] = ()
    """Roles: `default`, the default recipe, and the recipes below recipes/memo/, all of them variants of `lora`."""
    leaves_out: str = ""
    out_of_reach: str = ""
    """The reason, for a claim that no run of ours can decide."""
    looked_at: dict[str, float] | None = None
    """The limits in force when the runs were made, where they were changed afterwards."""


def load_claims(root: Path) -> tuple[Claim, ...]:
    """The claims of recipes/memo/claims.yaml, in order."""
    path = root / CLAIMS
    return tuple(Claim.model_validate(claim) for claim in parse_yaml(path.read_text(encoding="utf-8"), str(path)))


@dataclass(frozen=True)
class ThresholdTest:
    """A value beside its threshold. `exact` values are counts or sums and have no interval; others without one decide nothing."""

    what: str
    value: float
    interval: Interval | None
    unit: str
    limit: float
    above: bool  # which side of the limit is the claim's
    seeds: int
    exact: bool = False

    @property
    def word(self) -> Outcome:
        """Held where the whole interval lies on the claim's side, failed where it lies on the other."""
        if self.interval is None and not self.exact:
            return "cannot tell"
        low, high = self.interval or (self.value, self.value)
        if (low > self.limit or (self.exact and low == self.limit)) if self.above else high <= self.limit:
            return "held"
        if (high <= self.limit) if self.above else low > self.limit:
            return "failed"
        return "cannot tell"

    @property
    def times_the_data(self) -> float | None:
        """What it would take: this many times the rows (or seeds) where the interval, were the value to stay, would clear the limit."""
        if self.interval is None or self.word != "cannot tell" or self.value == self.limit:
            return None
        low, high = self.interval
        return ((high - low) / 2 / (self.value - self.limit)) ** 2


def all_of(words: Sequence[Outcome]) -> Outcome:
    """A compound claim: failed where a part is, held where every part is."""
    order: tuple[Outcome, ...] = ("failed", "out of reach", "cannot tell")
    for word in order:
        if word in words:
            return word
    return "held" if words else "cannot tell"


def over_seeds(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Mean, and Student's interval over seeds; none for one seed."""
    from scipy.stats import t

    middle = float(np.mean(values))
    if len(values) < 2:
        return middle, None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return middle, (middle - half, middle + half)


def ratio_over_seeds(above: Sequence[float], below: Sequence[float]) -> tuple[float, Interval | None]:
    """Geometric mean of the ratios, with Student's interval of their logarithms."""
    middle, interval = over_seeds([math.log(a / b) for a, b in zip(above, below, strict=True)])
    return math.exp(middle), None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def by_seed(first: Sequence[Report], second: Sequence[Report]) -> list[tuple[Report, Report]]:
    """Runs of the two that have a seed in common, in the order of seeds."""
    theirs = {seed_of(report): report for report in second}
    pairs = [(report, theirs[seed_of(report)]) for report in first if seed_of(report) in theirs]
    return sorted(pairs, key=lambda pair: seed_of(pair[0]))


def seed_of(report: Report) -> int:
    """The seed of training."""
    return report.seed


def score_less(
    pairs: Sequence[tuple[Report, Report]],
    *,
    families: Callable[[str], bool] = lambda name: True,
    other_arm: str = "adapter",
    tier: str = TIER,
) -> tuple[float, Interval | None]:
    """Score of each pair's first run less that of its second (of its `other_arm`), on one tier, over seeds.

    Rows are paired within a seed; the seeds' spread and the groups' error, which seeds share, are joined as for any several seeds.
    Without a pair, or where groups are too few for an interval, the difference has none.
    """
    found = [_less(one, other, families, other_arm, tier) for one, other in pairs]
    known = [(difference, interval) for difference, interval in found if interval is not None]
    if not known or len(known) < len(found):
        return (float(np.mean([difference for difference, _ in found])) if found else math.nan), None
    errors = [standard_error_of(interval) for _, interval in known]
    joined = seeds_estimate([difference for difference, _ in known], float(np.mean(errors)))
    return joined.difference, joined.interval


def _less(one: Report, other: Report, families: Callable[[str], bool], other_arm: str, tier: str) -> tuple[float, Interval | None]:
    rows = [row for row in paired_rows(one, other, other_arm) if row.tier == tier and families(row.family)]
    difference = tier_difference(rows, REFERENCE)
    return (math.nan, None) if difference is None else (difference.difference, difference.interval)


def timed_pairs(pairs: Sequence[tuple[Report, Report]]) -> tuple[list[tuple[Report, Report]], str]:
    """Of pairs of runs those whose seconds may be set beside each other, and why the others' may not."""
    reasons = [machines_apart(pair) for pair in pairs]
    timed = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    if not pairs:
        return timed, "no seed in common"
    left_out = "; ".join(sorted({reason for reason in reasons if reason}))
    return timed, f"times of {len(timed)} of {len(pairs)} seeds: {left_out}" if left_out else ""


def machines_apart(runs: Sequence[Report]) -> str:
    """Why seconds of these runs may not be set beside each other; empty where each had a machine of one kind, equally fast, to itself."""
    if any(run.shared for run in runs):
        return "other runs worked on the machine meanwhile"
    waited = max(run.cost.waited_share or 0.0 for run in runs)
    if waited >= WAITING:
        return f"the threads of one waited for a core for {waited:.0%} of the time they could have run"
    named = sorted({f"{run.provenance.device.name} with {run.provenance.threads} threads" for run in runs})
    if len(named) > 1:
        return f"the runs were made on different machines: {', '.join(named)}"
    rates = [run.provenance.matrix_gflops or 0.0 for run in runs]
    if not min(rates):
        return "how fast their machines were was not recorded"
    if max(rates) > SAME_SPEED * min(rates):
        return f"their machines have one name and {min(rates):g} to {max(rates):g} GFLOP/s"
    return ""


def every_family(family: str) -> bool:
    """The choice of families that leaves none out."""
    return True


@dataclass(frozen=True)
class Spent:
    """What one run of the memo's took, whether it came to a report or not."""

    run: str
    seconds: float
    usd: float | None


@dataclass(frozen=True)
class Evidence:
    """Reports by role, one for each seed.

    `higher_rank`, for M10: of how many modules the summed update has a higher rank, of how many. `spent`: runs that may have no report.
    """

    runs: dict[str, tuple[Report, ...]]
    higher_rank: tuple[int, int] | None = None
    spent: tuple[Spent, ...] = ()

    def of(self, role: str) -> tuple[Report, ...]:
        """The reports of a role; none is an empty tuple."""
        return self.runs.get(role, ())


@dataclass(frozen=True)
class Context:
    """A value that belongs beside the verdict and decides nothing: what the claim's own rule leaves out, or speaks against it."""

    what: str
    value: float
    interval: Interval | None = None
    unit: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on; `lacking` says what has to be there before more can be told."""

    claim: Claim
    word: Outcome
    measured: tuple[ThresholdTest, ...] = ()
    lacking: str = ""
    shown: tuple[Context, ...] = ()


def compound(claim: Claim, parts: Sequence[ThresholdTest], *further: Outcome, lacking: str = "", shown: Sequence[Context] = ()) -> Finding:
    """Failed where a part is, held where every part is."""
    return Finding(claim, all_of([*(part.word for part in parts), *further]), tuple(parts), lacking, tuple(shown))


def at_most(what: str, values: Sequence[float], unit: str, limit: float) -> ThresholdTest:
    """A mean over seeds of an amount (seconds, bytes, dollars: none is negative) whose claim is that it stays below `limit`."""
    middle, interval = over_seeds(values)
    if interval is not None:
        interval = (max(0.0, interval[0]), interval[1])
    return ThresholdTest(what, middle, interval, unit, limit, above=False, seeds=len(values))


def not_below(
    evidence: Evidence, role: str, reference: str, claim: Claim, families: Callable[[str], bool] = every_family, on: str = ""
) -> ThresholdTest:
    """A role's score less another's, which has to stay above minus the claim's margin."""
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    difference, interval = score_less(pairs, families=families)
    what = f"score of {role} less {reference}{on}"
    return ThresholdTest(what, difference, interval, "", -claim.limits.get("margin", MARGIN), above=True, seeds=len(pairs))


def shown_less(
    evidence: Evidence, role: str, reference: str, *, families: Callable[[str], bool] = every_family, on: str = ""
) -> tuple[Context, ...]:
    """The same difference where it is only shown; none where a role has no run."""
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    if not pairs:
        return ()
    difference, interval = score_less(pairs, families=families)
    return (Context(f"score of {role} less {reference}{on}", difference, interval, seeds=len(pairs)),)


def shown_score(evidence: Evidence, role: str) -> tuple[Context, ...]:
    """The adapter's score of a role, mean over seeds with the seeds' own interval, else the one run's."""
    found = [report.arms["adapter"].tiers.get(TIER) for report in evidence.of(role)]
    values = [score.score for score in found if score is not None and score.score is not None]
    if not values:
        return ()
    middle, interval = over_seeds(values)
    own = found[0].interval if len(values) == 1 and found[0] is not None else interval
    return (Context(f"score of {role}", middle, own, seeds=len(values)),)


def better(runs: Sequence[Report]) -> Outcome:
    """Whether every run's adapter is better than the base and than the base with examples."""
    words = []
    for report in runs:
        few_shot = report.comparison.few_shot.get(report.comparison.primary)
        words += [report.comparison.verdict, few_shot.verdict if few_shot else None]
    if all(word == "better" for word in words):
        return "held"
    return "failed" if "worse" in words else "cannot tell"


def rental(cost: Cost) -> float | None:
    """USD at the stated rate; else what a rented machine of this kind would have cost; else unknown."""
    return cost.usd if cost.usd is not None else cost.usd_as_if
