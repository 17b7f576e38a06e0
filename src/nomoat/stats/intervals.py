"""How sure a score is: intervals for one run, for paired differences (paired.py) and for several seeds. Pure functions over plain lists.

A tier's score is the mean over its families; rows of one group are not independent (clusters.py). An interval of None means
"too few groups for an interval", and is to be shown in those words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomoat.errors import NomoatError

# MERGED clusters:
# Rows that are not independent: how much rows of one group (one phrasing) have in common, and intervals that allow for it.
#
# The variance of a family's mean is estimated from its groups (the ratio estimator of survey sampling: Cochran, Sampling Techniques,
# 3rd ed. 1977, section 11). Over what independent rows would give, that is the design effect; rows divided by it are the
# effective rows. With few groups, or few rows that differ from the rest, the estimate is poor, so it is drawn towards a cautious prior
# (rows of a group half way between independent and identical), which counts as `PRIOR_GROUPS` groups; and Student's t replaces the normal
# distribution. Both were set by simulation over 20 to 400 rows, rates 0.01 to 0.99 and intra-group correlations 0 to 0.4.

Interval = tuple[float, float]
Limits = Callable[[Any], tuple[Any, Any]]
FEWEST_GROUPS = 5  # and one more for each further family; with fewer no interval keeps its promise
FEWEST_GROUPS_CONTINUOUS = 10  # as above, for the bootstrap
PRIOR_CORRELATION = 0.5
PRIOR_GROUPS = 2.0
RESAMPLES = 4_000


@dataclass(frozen=True)
class Family:
    """The values of one family: all of them, their sums and numbers by group, and how many groups hold a value other than the usual one."""

    values: Any
    sums: Any
    sizes: Any
    unusual: int

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over rows."""
        return float(self.values.mean())

    @property
    def group_size(self) -> float:
        """Mean size of the group that a row is in."""
        return float((self.sizes**2).sum() / self.n)


@dataclass(frozen=True)
class Design:
    """What the grouping costs: the design effect, and the degrees of freedom left to judge by (groups less families, fewer if uneven)."""

    effect: float
    freedom: float
    groups: int
    enough: bool

    def critical(self, probability: float = 0.975) -> float:
        """Student's t at `probability`."""
        from scipy.stats import t

        return float(t.ppf(probability, self.freedom))


def split_families(values: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> list[Family]:
    """The values by family; a group of the same name in another family is another group. Raises NomoatError for unequal lengths or gaps."""
    if not len(values) == len(families) == len(groups) or not values:
        raise NomoatError(f"statistics need one family and one group for each score; got {len(values)}, {len(families)} and {len(groups)}")
    if not all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in values):
        raise NomoatError("statistics need finite scores: leave unscored rows out and report their number")
    members: dict[str, dict[Hashable, list[float]]] = {}
    for value, family, group in zip(values, families, groups, strict=True):
        members.setdefault(family, {}).setdefault(group, []).append(float(value))
    return [_family(list(members[name].values())) for name in sorted(members)]


def _family(groups: list[list[float]]) -> Family:
    values = np.array([value for group in groups for value in group])
    found, counts = np.unique(values, return_counts=True)
    usual = found[counts.argmax()]
    unusual = sum(any(value != usual for value in group) for group in groups)
    return Family(values, np.array([sum(group) for group in groups]), np.array([len(group) for group in groups]), unusual)


def design_of(families: Sequence[Family]) -> Design:
    """The design effect and degrees of freedom of the mean over families."""
    groups = sum(len(family.sizes) for family in families)
    freedom = sum(family.n / family.group_size - 1 for family in families)
    several = [family for family in families if len(family.sizes) > 1]
    independent = sum(family.values.var(ddof=1) / family.n for family in several)
    observed = max(1.0, sum(map(_variance, several)) / independent) if independent > 0 else 1.0
    prior = 1 + (float(np.mean([family.group_size for family in families])) - 1) * PRIOR_CORRELATION
    known = sum(min(family.unusual, len(family.sizes) - 1) for family in several)
    effect = (known * observed + PRIOR_GROUPS * max(observed, prior)) / (known + PRIOR_GROUPS)
    return Design(effect, freedom, groups, groups - len(families) >= FEWEST_GROUPS - 1 and freedom >= FEWEST_GROUPS - 2)


def _variance(family: Family) -> float:
    """Variance of a family's mean, from how far its groups' sums lie from what the mean says."""
    count = len(family.sizes)
    return float(count / max(1, count - 1) * ((family.sums - family.mean * family.sizes) ** 2).sum() / family.n**2)


def combine_families(families: Sequence[Family], found: Design, limits: Limits, bounds: Interval) -> Interval:
    """The interval of the mean over families, from limits for each family at a critical value: with one family, just its own.

    Each side takes the mean of the families' limits at a smaller critical value, such that the distances combine as independent
    errors do (as Yan and Su, Statistics in Biopharmaceutical Research 2 (2010) 393, do for stratified Wilson intervals), and is at
    least as wide as the normal approximation. It stays within `bounds` and has a width even where every family scores 0 or 1.
    """
    means = np.array([family.mean for family in families])
    critical = np.full(len(families), found.critical())
    lower, upper = limits(critical)
    if len(families) == 1:
        return float(lower[0]), float(upper[0])
    lower = limits(critical * _shrunk(means - lower))[0].mean()
    upper = limits(critical * _shrunk(upper - means))[1].mean()
    normal = critical[0] * math.sqrt(sum(family.values.var() * found.effect / family.n for family in families)) / len(families)
    return max(bounds[0], float(min(lower, means.mean() - normal))), min(bounds[1], float(max(upper, means.mean() + normal)))


def _shrunk(distances: Any) -> float:
    """Root of the sum of squares over the sum: 1 for one family, 1/sqrt(F) for F equal ones."""
    return float(np.sqrt((distances**2).sum()) / distances.sum()) if distances.sum() > 0 else 1.0


def bootstrap(families: Sequence[Family], found: Design, bounds: Interval, seed: int = 0) -> Interval | None:
    """The interval of the mean over families for continuous values, whole groups drawn again within each family.

    The wider, on each side, of the studentised bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section
    12.5), which skewed scores need, and the percentile interval expanded for few groups (Hesterberg, The American Statistician
    69 (2015) 371). None for fewer groups than it was seen to hold for, and where no two resamples differ: values without spread say
    nothing of their error.
    """
    from scipy.stats import norm

    draw = np.random.default_rng(seed)
    drawn = [_resampled(family, draw.multinomial(len(family.sizes), _equal(len(family.sizes)), size=RESAMPLES)) for family in families]
    means, variances = (sum(part[at] for part in drawn) / len(families) ** (at + 1) for at in (0, 1))
    if found.groups - len(families) < FEWEST_GROUPS_CONTINUOUS - 1 or np.ptp(means) < 1e-12:
        return None
    mean = float(np.mean([family.mean for family in families]))
    errors = np.sqrt(np.maximum(0.0, variances))
    ratios = (means - mean) / np.maximum(errors, errors.max() * 1e-3)  # a resample of one group alone has no error of its own
    low, high = np.quantile(ratios, [0.025, 0.975]) * standard_error(families)
    tail = float(norm.sf(math.sqrt(found.groups / (found.groups - len(families))) * found.critical()))
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return max(bounds[0], float(min(lower, mean - high))), min(bounds[1], float(max(upper, mean - low)))


def standard_error(families: Sequence[Family]) -> float:
    """Standard error of the mean over families, from its groups alone."""
    return math.sqrt(sum(_variance(family) for family in families)) / len(families)


def _equal(count: int) -> Any:
    return np.full(count, 1 / count)


def _resampled(family: Family, times: Any) -> tuple[Any, Any]:
    """Mean and its variance for each resample; `times` says how often each holds each group."""
    count, rows = len(family.sizes), times @ family.sizes
    mean = times @ family.sums / rows
    squares = times @ family.sums**2 - 2 * mean * (times @ (family.sums * family.sizes)) + mean**2 * (times @ family.sizes**2)
    return mean, squares * count / max(1, count - 1) / rows**2


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
    return _rate(split_families(scores, [""] * len(scores), groups))


def mean_interval(scores: Sequence[float], groups: Sequence[Hashable], bounds: Interval = (-math.inf, math.inf)) -> Interval | None:
    """95 % interval of the mean of continuous scores of one family, by bootstrap over groups, always from the same draws.

    `bounds` are the lowest and highest score possible. None where the groups are too few or have no spread.
    """
    parts = split_families(scores, [""] * len(scores), groups)
    return bootstrap(parts, design_of(parts), bounds)


def tier_estimate(scores: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> Estimate:
    """The mean over families of each family's mean score, with an interval that joins the families' own errors."""
    parts = split_families(scores, families, groups)
    found = design_of(parts)
    interval = _rate(parts) if set(scores) <= {0, 1} else bootstrap(parts, found, (0.0, 1.0))
    return Estimate(float(np.mean([part.mean for part in parts])), interval, len(scores), found.groups)


def _rate(parts: list[Family]) -> Interval | None:
    found = design_of(parts)
    return combine_families(parts, found, lambda critical: _rate_limits(parts, found, critical), (0.0, 1.0)) if found.enough else None


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
