"""Two arms on the same rows: the paired difference, its interval, and the smallest difference that the rows could show."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nomoat.errors import NomoatError
from nomoat.stats.intervals import (
    NORMAL_95,
    Design,
    Family,
    Interval,
    bootstrap,
    combine_families,
    design_of,
    split_families,
    standard_error,
    standard_error_of,
)

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class PairedDifference:
    """The first arm minus the second: mean over families of the mean over rows; `interval` is None for too few groups.

    `p_value` is McNemar's exact one for 0/1 scores: it assumes independent rows with equal weights, so it is shown but decides nothing.
    `smallest_detectable` is the true difference that rows like these would show with 80 % power at a two-sided 5 %; None where even a
    difference of 1 would not show. `standard_error` is the interval's half-width over 1.96.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    smallest_detectable: float | None
    verdict: Verdict
    n: int
    groups: int
    standard_error: float | None


def paired_difference(a: Sequence[float], b: Sequence[float], families: Sequence[str], groups: Sequence[Hashable]) -> PairedDifference:
    """`a` minus `b`, scores of the same rows in the same order: "better" means that a is better.

    0/1 scores get Tango's score interval on effective rows, others a bootstrap over groups. Raises NomoatError for lists of unequal
    length and scores that are not finite.
    """
    if len(a) != len(b):
        raise NomoatError(f"a paired difference needs the same rows in both arms; got {len(a)} and {len(b)}")
    parts = split_families([x - y for x, y in zip(a, b, strict=True)], families, groups)
    design = design_of(parts)
    binary = {*a, *b} <= {0, 1}
    interval, detectable = None, None
    if design.enough:
        interval, detectable = _binary(parts, design) if binary else _continuous(parts, design)
    differences = np.concatenate([part.values for part in parts])
    return PairedDifference(
        difference=float(np.mean([part.mean for part in parts])),
        interval=interval,
        p_value=mcnemar(int((differences > 0).sum()), int((differences < 0).sum())) if binary else None,
        smallest_detectable=detectable,
        verdict=verdict_of(interval),
        n=len(a),
        groups=design.groups,
        standard_error=standard_error_of(interval) if interval else None,
    )


def verdict_of(interval: Interval | None) -> Verdict:
    """The verdict that an interval of a difference allows; one that touches 0 allows none."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "better" if interval[0] > 0 else "worse"


def p_of_interval(difference: float, interval: Interval) -> float:
    """The two-sided p-value that a 95 % interval implies: below 0.05 exactly where the interval excludes 0.

    The distance to the limit on the side of 0 is taken as 1.96 standard errors. Unlike McNemar's p-value it allows for groups.
    """
    from scipy.stats import norm

    half = abs(difference - interval[0 if difference > 0 else 1])
    return float(2 * norm.sf(NORMAL_95 * abs(difference) / half)) if half else 1.0


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p-value from the numbers of rows that only one arm got right; 1 for none."""
    from scipy.stats import binomtest

    rows = first_only + second_only
    return float(binomtest(first_only, rows).pvalue) if rows else 1.0


def tango(first_only: Any, second_only: Any, n: Any, critical: Any = NORMAL_95) -> tuple[Any, Any]:
    """Tango's score interval for a difference of paired rates; numbers or arrays, which need not be whole.

    The limits are the extreme differences that the score test accepts (Tango, Statistics in Medicine 17 (1998) 891).
    """
    first, second = np.broadcast_arrays(first_only, second_only)
    lower = _tango_lower(np.stack([first, second]), np.stack([second, first]), n, critical)  # one call takes half the time of two
    return lower[0], -lower[1]


def _tango_lower(first_only: Any, second_only: Any, n: Any, critical: Any) -> Any:
    from scipy.optimize.elementwise import find_root

    first, second, rows, z = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in (first_only, second_only, n, critical)))
    observed = (first - second) / rows
    inside = observed > -1 + 1e-9  # else only the second arm was right on every row, and the limit is -1
    end = np.where(inside, observed, 0.0) - 1e-10  # just below the observed difference, where the test accepts
    first, second = np.where(inside, first, rows / 2), np.where(inside, second, rows / 2)
    root = find_root(_tango_test, (np.full_like(end, -1.0), end), args=(first, second, rows, z))
    return np.where(inside, root.x, -1.0)


def _tango_test(delta: Any, first: Any, second: Any, n: Any, z: Any) -> Any:
    """The score test's numerator minus z standard errors if the true difference is `delta` (Tango's equations 2 and 4); 0 at the limit."""
    linear = -first - second + (2 * n - first + second) * delta
    root = np.sqrt(np.maximum(0.0, linear**2 + 8 * n * second * delta * (1 - delta)))
    second_rate = (root - linear) / (4 * n)
    variance = n * (2 * second_rate + delta * (1 - delta))
    return first - second - n * delta - z * np.sqrt(np.maximum(0.0, variance))


def smallest_detectable(discordance: float, n: float, design: Design) -> float | None:
    """The difference found with 80 % power at a two-sided 5 %, given the share of rows on which the arms differ and `n` effective rows.

    Connor's condition (Biometrics 43 (1987) 207) with Student's t; the arms differ on at least that share of rows. None if above 1.
    """
    from scipy.optimize import brentq

    significance, power = design.critical(0.975), design.critical(0.8)

    def shortfall(delta: float) -> float:
        share = max(discordance, delta)
        return significance * math.sqrt(share) + power * math.sqrt(max(0.0, share - delta**2)) - delta * math.sqrt(n)

    return float(brentq(shortfall, 1e-9, 1.0)) if shortfall(1.0) < 0 else None


def effective_counts(parts: Sequence[Family], design: Design) -> tuple[Any, Any, Any]:
    """By family: the effective rows that only the first arm got right, those that only the second did, and all."""
    n = np.array([part.n for part in parts]) / design.effect
    first, second = (np.array([(part.values * sign > 0).mean() for part in parts]) * n for sign in (1, -1))
    return first, second, n


def _binary(parts: list[Family], design: Design) -> tuple[Interval | None, float | None]:
    first, second, n = effective_counts(parts, design)
    interval = combine_families(parts, design, lambda critical: tango(first, second, n, critical), (-1.0, 1.0))
    effective = len(parts) ** 2 / float((1 / n).sum())
    return interval, smallest_detectable(float(((first + second) / n).mean()), effective, design)


def _continuous(parts: list[Family], design: Design) -> tuple[Interval | None, float | None]:
    interval = bootstrap(parts, design, (-1.0, 1.0))
    return interval, (design.critical(0.975) + design.critical(0.8)) * standard_error(parts) if interval else None
