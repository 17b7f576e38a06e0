"""How sure a score is: intervals for one run, for paired differences (paired.py) and for several seeds. Pure functions over plain lists.

A tier's score is the mean over its families; rows of one group are not independent (clusters.py). An interval of None means
"too few groups for an interval", and is to be shown in those words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomoat.clusters import Design, Family, Interval, bootstrap, combined, design, split
from nomoat.errors import NomoatError
from nomoat.paired import Difference, Verdict, paired_difference

__all__ = [
    "Difference",
    "Estimate",
    "SeedsEstimate",
    "Verdict",
    "holm",
    "mean_interval",
    "paired_difference",
    "rate_interval",
    "seeds_estimate",
    "tier_estimate",
    "wilson",
]


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval, and the rows and groups behind it."""

    score: float
    interval: Interval | None
    n: int
    groups: int


@dataclass(frozen=True)
class SeedsEstimate:
    """The mean of several seeds' differences with its 95 % interval."""

    difference: float
    interval: Interval
    seeds: int


def wilson(successes: Any, n: Any, critical: Any = 1.959963984540054) -> tuple[Any, Any]:
    """Wilson's score interval for a rate (Journal of the American Statistical Association 22 (1927) 209).

    Takes numbers or arrays, which need not be whole.
    """
    rate, square = successes / n, critical**2
    middle = (rate + square / (2 * n)) / (1 + square / n)
    half = critical * np.sqrt(rate * (1 - rate) / n + square / (4 * n**2)) / (1 + square / n)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def rate_interval(scores: Sequence[float], groups: Sequence[Hashable]) -> Interval | None:
    """95 % interval of a rate over rows of one family: `scores` are 0 or 1. None where the groups are too few."""
    return _rate(split(scores, [""] * len(scores), groups))


def mean_interval(scores: Sequence[float], groups: Sequence[Hashable], bounds: Interval = (-math.inf, math.inf)) -> Interval | None:
    """95 % interval of the mean of continuous scores of one family, by bootstrap over groups, always from the same draws.

    `bounds` are the lowest and highest score possible. None where the groups are too few or have no spread.
    """
    parts = split(scores, [""] * len(scores), groups)
    return bootstrap(parts, design(parts), bounds)


def tier_estimate(scores: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> Estimate:
    """The mean over families of each family's mean score, with an interval that joins the families' own errors."""
    parts = split(scores, families, groups)
    found = design(parts)
    interval = _rate(parts) if set(scores) <= {0, 1} else bootstrap(parts, found, (0.0, 1.0))
    return Estimate(float(np.mean([part.mean for part in parts])), interval, len(scores), found.groups)


def _rate(parts: list[Family]) -> Interval | None:
    found = design(parts)
    return combined(parts, found, lambda critical: _rate_limits(parts, found, critical), (0.0, 1.0)) if found.enough else None


def _rate_limits(parts: list[Family], found: Design, critical: Any) -> tuple[Any, Any]:
    """Wilson's limits at the effective number of rows; within three successes of an end, a Poisson limit where that is wider.

    Wilson's interval is too narrow there: the modification is Brown, Cai and DasGupta's (Statistical Science 16 (2001) 101, section 4.1.1).
    """
    from scipy.stats import chi2, norm

    n = np.array([part.n for part in parts]) / found.effect
    successes = n * np.array([part.mean for part in parts])
    tails = 2 * norm.sf(critical)

    def poisson(events: Any) -> Any:
        return np.where((events > 0) & (events <= 3), chi2.ppf(tails, np.maximum(2 * events, 1e-6)) / (2 * n), 1.0)

    lower, upper = wilson(successes, n, critical)
    return np.minimum(lower, poisson(successes)), np.maximum(upper, 1 - poisson(n - successes))


def seeds_estimate(differences_per_seed: Sequence[float], se_groups: float) -> SeedsEstimate:
    """The mean over seeds, uncertain by the seeds' spread and by the groups that all seeds share (`se_groups`, in units of the score).

    Half-width sqrt((t(0.975, S-1) s/sqrt(S))^2 + (1.96 se_groups)^2), Student's t. One seed says nothing of other seeds: its
    interval is that of the groups.
    """
    from scipy.stats import t

    seeds = np.asarray(differences_per_seed, dtype=float)
    if not len(seeds) or not np.isfinite(seeds).all() or not (math.isfinite(se_groups) and se_groups >= 0):
        raise NomoatError("several seeds need one finite difference each and a standard error from 0")
    spread = t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    middle, half = float(seeds.mean()), math.hypot(spread, 1.96 * se_groups)
    return SeedsEstimate(middle, (max(-1.0, middle - half), min(1.0, middle + half)), len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6 (1979) 65), in the order given."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
