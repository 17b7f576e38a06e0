"""Confidence intervals of scores whose rows are correlated: pure functions over lists.

Rows of one group (one phrasing of the same task) resemble each other; a group is what the literature calls a cluster. A tier's
score is the mean over its families of each family's mean.

1. `split_families` arranges the values by family and group. `design_of` estimates the design effect: the variance of the mean over
   groups (the ratio estimator of survey sampling: Cochran, Sampling Techniques, 3rd ed. 1977, section 11) over that of independent
   rows. With few groups, or few rows that differ from the rest, it is imprecise, so it is shrunk towards a cautious prior (rows of a
   group half way between independent and identical) that weighs as much as `PRIOR_GROUPS` groups, and Student's t replaces the normal
   distribution. Both were set by simulation over 20 to 400 rows, rates 0.01 to 0.99 and intra-group correlations 0 to 0.4.
2. `tier_estimate` gives a score with its interval: for 0/1 scores Wilson's on the effective rows (rows over the design effect), for
   continuous ones a bootstrap over groups. None means "too few groups for an interval" and is reported in those words.
3. `seeds_estimate` adds the spread from seed to seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomoat.errors import NomoatError

Interval = tuple[float, float]
Limits = Callable[[Any], tuple[Any, Any]]  # critical values, one per family -> lower and upper limits of the families
NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % point
FEWEST_GROUPS = 5  # and one more for each further family; with fewer no interval reaches its nominal coverage
FEWEST_GROUPS_CONTINUOUS = 10  # as above, for the bootstrap
PRIOR_CORRELATION = 0.5
PRIOR_GROUPS = 2.0
RESAMPLES = 4_000


@dataclass(frozen=True)
class Family:
    """One family's values, and by group their sums and numbers; `unusual` counts the groups with a value other than the mode."""

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
        """Size of a row's group, mean over rows."""
        return float((self.sizes**2).sum() / self.n)

    @property
    def variance(self) -> float:
        """Variance of the mean: C / (C - 1) times the sum over the C groups of (sum - mean x size)^2, over n^2."""
        count = len(self.sizes)
        return float(count / max(1, count - 1) * ((self.sums - self.mean * self.sizes) ** 2).sum() / self.n**2)


@dataclass(frozen=True)
class Design:
    """The cost of grouping: the design effect (1 or more), and the degrees of freedom left (groups minus families, fewer if uneven)."""

    effect: float
    freedom: float
    groups: int
    enough: bool

    def critical(self, probability: float = 0.975) -> float:
        """Student's t at `probability`."""
        from scipy.stats import t

        return float(t.ppf(probability, self.freedom))


def split_families(values: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> list[Family]:
    """The values by family, in alphabetical order; equal group names in two families are two groups.

    Raises NomoatError for no values, lists of unequal length, and values that are not finite.
    """
    if not len(values) == len(families) == len(groups) or not values:
        raise NomoatError(f"statistics need one family and one group for each score; got {len(values)}, {len(families)} and {len(groups)}")
    if not all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in values):
        raise NomoatError("statistics need finite scores: leave unscored rows out and report their number")
    members: dict[str, dict[Hashable, list[float]]] = {}
    for value, family, group in zip(values, families, groups, strict=True):
        members.setdefault(family, {}).setdefault(group, []).append(float(value))
    parts = []
    for name in sorted(members):
        by_group = list(members[name].values())
        distinct, counts = np.unique(np.concatenate(by_group), return_counts=True)
        unusual = sum(any(value != distinct[counts.argmax()] for value in group) for group in by_group)
        parts.append(Family(np.concatenate(by_group), np.array([*map(sum, by_group)]), np.array([*map(len, by_group)]), unusual))
    return parts


def design_of(families: Sequence[Family]) -> Design:
    """The shrunk design effect of the mean over families: its estimated variance over that of independent rows."""
    groups = sum(len(family.sizes) for family in families)
    freedom = sum(family.n / family.group_size - 1 for family in families)
    several = [family for family in families if len(family.sizes) > 1]
    independent = sum(family.values.var(ddof=1) / family.n for family in several)
    observed = max(1.0, sum(family.variance for family in several) / independent) if independent > 0 else 1.0
    prior = 1 + (float(np.mean([family.group_size for family in families])) - 1) * PRIOR_CORRELATION
    informative = sum(min(family.unusual, len(family.sizes) - 1) for family in several)
    effect = (informative * observed + PRIOR_GROUPS * max(observed, prior)) / (informative + PRIOR_GROUPS)
    return Design(effect, freedom, groups, groups - len(families) >= FEWEST_GROUPS - 1 and freedom >= FEWEST_GROUPS - 2)


def combine_families(families: Sequence[Family], design: Design, limits: Limits, bounds: Interval) -> Interval:
    """The interval of the mean over families from each family's limits; with one family, that family's interval.

    Each side takes the mean of the families' limits at a smaller critical value, such that the distances combine as independent
    errors do (as Yan and Su, Statistics in Biopharmaceutical Research 2 (2010) 393, do for stratified Wilson intervals), and is at
    least as wide as the normal approximation. It stays within `bounds` and has a width even where every family scores 0 or 1.
    """
    means = np.array([family.mean for family in families])
    critical = np.full(len(families), design.critical())
    lower, upper = limits(critical)
    if len(families) == 1:
        return float(lower[0]), float(upper[0])

    def shrink(distances: Any) -> float:
        """Root of the sum of squares over the sum: 1/sqrt(F) for F equal distances."""
        return float(np.sqrt((distances**2).sum()) / distances.sum()) if distances.sum() > 0 else 1.0

    lower = limits(critical * shrink(means - lower))[0].mean()
    upper = limits(critical * shrink(upper - means))[1].mean()
    normal = critical[0] * math.sqrt(sum(family.values.var() * design.effect / family.n for family in families)) / len(families)
    return max(bounds[0], float(min(lower, means.mean() - normal))), min(bounds[1], float(max(upper, means.mean() + normal)))


def wilson(successes: Any, n: Any, critical: Any = NORMAL_95) -> tuple[Any, Any]:
    """Wilson's score interval for a rate (Journal of the American Statistical Association 22 (1927) 209).

    Takes numbers or arrays, which need not be whole.
    """
    rate, square = successes / n, critical**2
    middle = (rate + square / (2 * n)) / (1 + square / n)
    half = critical * np.sqrt(rate * (1 - rate) / n + square / (4 * n**2)) / (1 + square / n)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def _rate_interval(families: list[Family], design: Design) -> Interval | None:
    """Wilson's interval on the effective rows; within three successes of an end, a Poisson limit where that is wider.

    Wilson's is too narrow there: the modification is Brown, Cai and DasGupta's (Statistical Science 16 (2001) 101, section 4.1.1).
    """
    from scipy.stats import chi2, norm

    n = np.array([family.n for family in families]) / design.effect
    successes = n * np.array([family.mean for family in families])

    def limits(critical: Any) -> tuple[Any, Any]:
        tails = 2 * norm.sf(critical)

        def poisson(events: Any) -> Any:
            return np.where((events > 0) & (events <= 3), chi2.ppf(tails, np.maximum(2 * events, 1e-6)) / (2 * n), 1.0)

        lower, upper = wilson(successes, n, critical)
        return np.minimum(lower, poisson(successes)), np.maximum(upper, 1 - poisson(n - successes))

    return combine_families(families, design, limits, (0.0, 1.0)) if design.enough else None


def bootstrap(families: Sequence[Family], design: Design, bounds: Interval) -> Interval | None:
    """The interval of the mean over families for continuous values, resampling whole groups within each family with fixed draws.

    The wider, on each side, of the studentised bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section
    12.5), which skewed scores need, and the percentile interval expanded for few groups (Hesterberg, The American Statistician
    69 (2015) 371). None for fewer groups than its coverage was simulated for, and where all resamples have one mean: values
    without spread give no estimate of their error.
    """
    from scipy.stats import norm

    draw = np.random.default_rng(0)
    resampled = [_resample(family, draw) for family in families]
    means, variances = (sum(part[at] for part in resampled) / len(families) ** (at + 1) for at in (0, 1))
    if design.groups - len(families) < FEWEST_GROUPS_CONTINUOUS - 1 or np.ptp(means) < 1e-12:
        return None
    mean = float(np.mean([family.mean for family in families]))
    errors = np.sqrt(np.maximum(0.0, variances))
    ratios = (means - mean) / np.maximum(errors, errors.max() * 1e-3)  # a resample of one group alone has an error of 0
    low, high = np.quantile(ratios, [0.025, 0.975]) * standard_error(families)
    tail = float(norm.sf(math.sqrt(design.groups / (design.groups - len(families))) * design.critical()))
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return max(bounds[0], float(min(lower, mean - high))), min(bounds[1], float(max(upper, mean - low)))


def _resample(family: Family, draw: np.random.Generator) -> tuple[Any, Any]:
    """Mean, and variance of the mean, of each of `RESAMPLES` resamples of the groups."""
    count = len(family.sizes)
    times = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # (resamples, groups): how often each was drawn
    rows = times @ family.sizes
    mean = times @ family.sums / rows
    squares = times @ family.sums**2 - 2 * mean * (times @ (family.sums * family.sizes)) + mean**2 * (times @ family.sizes**2)
    return mean, squares * count / max(1, count - 1) / rows**2


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval, and its numbers of rows and groups."""

    score: float
    interval: Interval | None
    n: int
    groups: int


def tier_estimate(scores: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> Estimate:
    """The mean over families of each family's mean score, with an interval that combines the families' errors."""
    parts = split_families(scores, families, groups)
    design = design_of(parts)
    interval = _rate_interval(parts, design) if set(scores) <= {0, 1} else bootstrap(parts, design, (0.0, 1.0))
    return Estimate(float(np.mean([part.mean for part in parts])), interval, len(scores), design.groups)


def score_interval(scores: Sequence[float], groups: Sequence[Hashable]) -> Interval | None:
    """95 % interval of the mean of one family's scores, each from 0 to 1. None for too few groups, or continuous scores without spread."""
    return tier_estimate(scores, [""] * len(scores), groups).interval


def standard_error(families: Sequence[Family]) -> float:
    """Standard error of the mean over families, clustered by group, without shrinkage.

    For one family it is that of Miller, Adding Error Bars to Evals (2024, arXiv:2411.00640), with the factor C / (C - 1) for C
    clusters, as inspect_ai's `stderr(cluster=...)` has it.
    """
    return math.sqrt(sum(family.variance for family in families)) / len(families)


def standard_error_of(interval: Interval) -> float:
    """The standard error that a 95 % interval implies: its half-width over 1.96."""
    low, high = interval
    return (high - low) / 2 / NORMAL_95


@dataclass(frozen=True)
class SeedsEstimate:
    """The mean of several seeds' differences with its 95 % interval."""

    difference: float
    interval: Interval


def seeds_estimate(differences_per_seed: Sequence[float], se_groups: float) -> SeedsEstimate:
    """The mean over S seeds; its error has two parts, the seeds' spread s and the groups that all seeds share (`se_groups`).

    Half-width sqrt((t(0.975, S-1) s/sqrt(S))^2 + (1.96 se_groups)^2), Student's t. One seed says nothing about other seeds: its
    interval covers the groups alone. Raises NomoatError without seeds and for numbers that are not finite.
    """
    from scipy.stats import t

    seeds = np.asarray(differences_per_seed, dtype=float)
    if not len(seeds) or not np.isfinite(seeds).all() or not (math.isfinite(se_groups) and se_groups >= 0):
        raise NomoatError("several seeds need one finite difference each and a standard error of 0 or more")
    spread = t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    middle, half = float(seeds.mean()), math.hypot(spread, 1.96 * se_groups)
    return SeedsEstimate(middle, (max(-1.0, middle - half), min(1.0, middle + half)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6 (1979) 65), in the order given."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
