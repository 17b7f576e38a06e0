"""What a claim is judged from and what comes out: reports by role, and a verdict beside the values that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nomoat.claims import MARGIN, TIER, Claim
from nomoat.report_schema import Cost, Report
from nomoat.score_schema import Interval
from nomoat.verdicts import Measured, Word, all_of, by_seed, over_seeds, score_less


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
class Shown:
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
    word: Word
    measured: tuple[Measured, ...] = ()
    lacking: str = ""
    shown: tuple[Shown, ...] = ()


def compound(claim: Claim, parts: Sequence[Measured], *further: Word, lacking: str = "", shown: Sequence[Shown] = ()) -> Finding:
    """Failed where a part is, held where every part is."""
    return Finding(claim, all_of([*(part.word for part in parts), *further]), tuple(parts), lacking, tuple(shown))


def at_most(what: str, values: Sequence[float], unit: str, limit: float) -> Measured:
    """A mean over seeds of an amount (seconds, bytes, dollars: none is negative) whose claim is that it stays below `limit`."""
    middle, interval = over_seeds(values)
    if interval is not None:
        interval = (max(0.0, interval[0]), interval[1])
    return Measured(what, middle, interval, unit, limit, above=False, seeds=len(values))


def not_below(
    evidence: Evidence, role: str, reference: str, claim: Claim, families: Callable[[str], bool] = every_family, on: str = ""
) -> Measured:
    """A role's score less another's, which has to stay above minus the claim's margin."""
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    difference, interval = score_less(pairs, families=families)
    what = f"score of {role} less {reference}{on}"
    return Measured(what, difference, interval, "", -claim.limits.get("margin", MARGIN), above=True, seeds=len(pairs))


def shown_less(
    evidence: Evidence, role: str, reference: str, *, families: Callable[[str], bool] = every_family, on: str = ""
) -> tuple[Shown, ...]:
    """The same difference where it is only shown; none where a role has no run."""
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    if not pairs:
        return ()
    difference, interval = score_less(pairs, families=families)
    return (Shown(f"score of {role} less {reference}{on}", difference, interval, seeds=len(pairs)),)


def shown_score(evidence: Evidence, role: str) -> tuple[Shown, ...]:
    """The adapter's score of a role, mean over seeds with the seeds' own interval, else the one run's."""
    found = [report.arms["adapter"].tiers.get(TIER) for report in evidence.of(role)]
    values = [score.score for score in found if score is not None and score.score is not None]
    if not values:
        return ()
    middle, interval = over_seeds(values)
    own = found[0].interval if len(values) == 1 and found[0] is not None else interval
    return (Shown(f"score of {role}", middle, own, seeds=len(values)),)


def better(runs: Sequence[Report]) -> Word:
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
