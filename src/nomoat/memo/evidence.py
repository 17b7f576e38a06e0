"""Evidence for the memo's claims: published reports by role, values measured over seeds, and the thresholds they are tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from nomoat.config.load import parse_yaml
from nomoat.io import Record
from nomoat.reports.compare import REFERENCE, paired_rows
from nomoat.reports.metrics import tier_difference
from nomoat.reports.schema import Cost, Interval, Report
from nomoat.runs.provenance import CLAIMS
from nomoat.stats.intervals import seeds_estimate, standard_error_of

TIER = "phrasing"  # the tier that claims are judged on: unseen phrasings, mean over families

Outcome = Literal["held", "failed", "cannot tell", "out of reach"]
Pairs = Sequence[tuple[Report, Report]]
Families = Callable[[str], bool]


class Role(NamedTuple):
    """A group of runs that differ in nothing but their seed."""

    description: str
    seeds: int = 0  # runs that `make memo MISSING=1` makes; none for roles that are the published runs of another recipe
    starts_from: str | None = None  # the role whose adapter of the same seed is trained further


BOTH, SUMMANDS = "a_plus_b", ("a", "b")
ROLES = {  # those that `make memo MISSING=1` makes come first, the most decisive ones at the top
    "lora": Role("the default recipe on half of its rows; all roles except default, quarter and gemma vary this one", 3),
    "full": Role("every parameter trained instead of an adapter", 3),
    "a": Role("trained on A's task families alone: all but calendar and route", 3),
    "b": Role("trained on B's task families alone: calendar and route", 3),
    "b_on_a": Role("the adapter of a, trained further on B's families", 3, starts_from="a"),
    BOTH: Role("the adapters of a and b added, without training", 3),
    "noisy25": Role("a quarter of the training rows have another row's answer", 3),
    "rank1": Role("an adapter of rank 1 instead of 16", 1),  # one seed for each rank: more would take too many hours
    "rank4": Role("an adapter of rank 4 instead of 16", 1),
    "rank64": Role("an adapter of rank 64 instead of 16", 1),
    "noisy50": Role("half of the training rows have another row's answer", 1),  # shown, not judged
    "default": Role("the default recipe"),
    "quarter": Role("the default recipe on a quarter of its rows"),
    "gemma": Role("the default recipe on a base twice as large"),
}


class Claim(Record):
    """One claim of the memo: its words, our rule with its thresholds, the roles it needs, and what the rule leaves out."""

    id: str
    quote: str
    rule: str
    limits: dict[str, float] = Field(default_factory=dict)
    runs: tuple[str, ...] = ()
    leaves_out: str = ""
    out_of_reach: str = ""
    """Why no run of this repository can decide the claim."""
    looked_at: dict[str, float] | None = None
    """The limits in force when the runs were made, where they were changed afterwards."""


def load_claims(root: Path) -> tuple[Claim, ...]:
    """The claims of recipes/memo/claims.yaml, in order."""
    return tuple(Claim.model_validate(claim) for claim in parse_yaml((root / CLAIMS).read_text(encoding="utf-8"), CLAIMS))


class ThresholdTest(Record):
    """A measured value and the threshold that it is tested against; with `above`, the claim's side is above the limit."""

    what: str
    value: float | None
    interval: Interval | None
    unit: str
    limit: float
    above: bool
    seeds: int
    exact: bool
    """Counts and sums are exact and need no interval; any other value without an interval decides nothing."""
    verdict: Outcome
    times_the_data: float | None
    """How many times the rows or seeds would decide an open test at the same value: intervals shrink with the root of their number."""


class Measurement(Record):
    """A value with its 95 % interval over seeds; `value` is None where it could not be computed."""

    what: str
    value: float | None
    interval: Interval | None = None
    unit: str = ""
    seeds: int = 1

    def test(self, limit: float, *, above: bool, exact: bool = False) -> ThresholdTest:
        """Held if the whole interval lies on the claim's side of `limit`, failed if it lies on the other side."""
        verdict: Outcome = "cannot tell"
        times = None
        if self.value is not None and (exact or self.interval):
            low, high = self.interval or (self.value, self.value)
            held = (low > limit or (exact and low == limit)) if above else high <= limit
            failed = high <= limit if above else low > limit
            verdict = "held" if held else "failed" if failed else "cannot tell"
            if verdict == "cannot tell" and self.value != limit:
                times = ((high - low) / 2 / (self.value - limit)) ** 2
        return ThresholdTest(**self.model_dump(), limit=limit, above=above, exact=exact, verdict=verdict, times_the_data=times)


class EarlierLimits(Record):
    """The limits before they were changed after a look at the results, and the verdict under them."""

    limits: dict[str, float]
    verdict: Outcome


class Finding(Record):
    """A claim with its verdict, the tests that decide it, and values that decide nothing: what the rule leaves out, or counter-evidence."""

    id: str
    quote: str
    rule: str
    limits: dict[str, float]
    verdict: Outcome
    measured: tuple[ThresholdTest, ...]
    shown: tuple[Measurement, ...]
    lacking: str
    """Why there is no verdict, or what has to be known about the one there is."""
    changed_after_looking: EarlierLimits | None = None
    seeds: int = 0  # the smallest number over the claim's roles
    runs: tuple[str, ...]
    leaves_out: str


def conclude(claim: Claim, tests: Sequence[ThresholdTest], *further: Outcome, note: str = "", shown: Sequence[Measurement] = ()) -> Finding:
    """The finding on a claim: failed if one of its parts failed, held if every part held."""
    parts = [*(test.verdict for test in tests), *further]
    precedence: tuple[Outcome, ...] = ("failed", "out of reach", "cannot tell")
    return Finding(
        **claim.model_dump(include={"id", "quote", "rule", "limits", "runs", "leaves_out"}),
        verdict=next((verdict for verdict in precedence if verdict in parts), "held" if parts else "cannot tell"),
        measured=tuple(tests),
        shown=tuple(value for value in shown if value.value is not None),
        lacking=note,
    )


class Spent(Record):
    """What a run took, whether or not it came to a report: a line of reports/spent.json."""

    run: str
    seconds: float
    usd: float | None


class ModuleRanks(Record):
    """Ranks of two adapters' updates of one module, and of the sum of the updates."""

    module: str
    a: int
    b: int
    sum: int


class SumRanks(Record):
    """reports/ranks.json: ranks module by module, from singular values above `threshold` of the largest, and the adapters' hashes."""

    threshold: float
    a_sha256: str
    b_sha256: str
    modules: tuple[ModuleRanks, ...]

    @property
    def share_higher(self) -> float:
        """Share of the modules whose sum has a higher rank than either summand."""
        return sum(module.sum > max(module.a, module.b) for module in self.modules) / len(self.modules)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Reports by role, one for each seed; ranks of a sum of adapters (M10); and what all runs took (M18)."""

    runs: dict[str, tuple[Report, ...]]
    ranks: SumRanks | None = None
    spent: tuple[Spent, ...] = ()

    def of(self, role: str) -> tuple[Report, ...]:
        """The reports of a role; an empty tuple if there are none."""
        return self.runs.get(role, ())

    def pairs(self, role: str, reference: str) -> list[tuple[Report, Report]]:
        """Runs of the two roles that have a seed in common, in the order of seeds."""
        references = {report.seed: report for report in self.of(reference)}
        runs = sorted(self.of(role), key=lambda report: report.seed)
        return [(report, references[report.seed]) for report in runs if report.seed in references]

    def difference(self, role: str, reference: str, *, arm: str = "adapter", families: Families | None = None, on: str = "") -> Measurement:
        """Score of the role's adapters minus that of the reference's `arm`, mean over seeds; an arm without training has no seed.

        Rows are paired within a seed. The spread over seeds and the groups' standard error, which all seeds share, are combined as in
        every estimate over several seeds. There is no interval where a seed has too few groups for one.
        """
        pairs = self.pairs(role, reference) if arm == "adapter" else [(run, self.of(reference)[0]) for run in self.of(role)]
        paired = []
        for run, other in pairs:
            rows = [row for row in paired_rows(run, other, arm) if row.tier == TIER and (families is None or families(row.family))]
            paired.append(tier_difference(rows, REFERENCE))
        what, seeds = f"score, {role} minus {reference}{on}", len(pairs)
        differences = [difference.difference for difference in paired if difference]
        errors = [standard_error_of(difference.interval) for difference in paired if difference and difference.interval]
        if len(errors) == seeds > 0:
            estimate = seeds_estimate(differences, float(np.mean(errors)))
            return Measurement(what=what, value=estimate.difference, interval=estimate.interval, seeds=seeds)
        return Measurement(what=what, value=float(np.mean(differences)) if len(differences) == seeds > 0 else None, seeds=seeds)


def over_seeds(what: str, values: Sequence[float | None], unit: str = "", *, geometric: bool = False) -> Measurement:
    """The mean of non-negative values over seeds with Student's 95 % interval, which one seed does not have.

    The value is None if one of them is unknown. A geometric mean has the interval of the logarithms.
    """
    from scipy.stats import t

    known = [math.log(value) if geometric else value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Measurement(what=what, value=None, unit=unit, seeds=len(values))
    mean, interval = float(np.mean(known)), None
    if len(known) > 1:
        half = float(t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
        low, high = mean - half, mean + half
        interval = (math.exp(low), math.exp(high)) if geometric else (max(0.0, low), high)
    return Measurement(what=what, value=math.exp(mean) if geometric else mean, interval=interval, unit=unit, seeds=len(values))


def better(runs: Sequence[Report]) -> Outcome:
    """Whether every run's adapter is better than the base, both without and with examples in the prompt."""
    verdicts = []
    for comparison in (report.comparison for report in runs):
        few_shot = comparison.few_shot.get(comparison.primary)
        verdicts += [comparison.verdict, few_shot.verdict if few_shot else None]
    return "held" if set(verdicts) == {"better"} else "failed" if "worse" in verdicts else "cannot tell"


def rental(cost: Cost) -> float | None:
    """USD at the stated rate, otherwise the price of renting a machine of this kind; None where neither is known."""
    return cost.usd if cost.usd is not None else cost.usd_as_if
