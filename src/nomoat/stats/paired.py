"""Two arms on the same rows: the paired difference, its interval, and what the rows could have shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nomoat.errors import NomoatError
from nomoat.stats.intervals import Design, Family, Interval, bootstrap, combine_families, design_of, split_families, standard_error

Verdict = Literal["better", "worse", "cannot tell"]
NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class PairedDifference:
    """The first arm less the second: mean over families of the mean over rows; `interval` None means too few groups for one.

    `p_value` is McNemar's exact one for 0/1 scores: it takes rows as independent and all alike, so it is shown, never used.
    `smallest_detectable` is the true difference that rows like these would show with 80 % power at two-sided 5 %; None where none
    up to 1 would be. `standard_error` is the interval's half-width over 1.96.
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
    """`a` less `b`, scores of the same rows in the same order: "better" means that a is better.

    0/1 scores get Tango's score interval on effective rows, others a bootstrap over groups.
    """
    if len(a) != len(b):
        raise NomoatError(f"a paired difference needs the same rows in both arms; got {len(a)} and {len(b)}")
    parts = split_families([x - y for x, y in zip(a, b, strict=True)], families, groups)
    found = design_of(parts)
    binary = {*a, *b} <= {0, 1}
    interval, detectable = (_binary if binary else _continuous)(parts, found) if found.enough else (None, None)
    return PairedDifference(
        difference=float(np.mean([part.mean for part in parts])),
        interval=interval,
        p_value=mcnemar(*_discordant(parts)) if binary else None,
        smallest_detectable=detectable,
        verdict=verdict_of(interval),
        n=len(a),
        groups=found.groups,
        standard_error=(interval[1] - interval[0]) / 2 / NORMAL_95 if interval else None,
    )


def verdict_of(interval: Interval | None) -> Verdict:
    """What an interval of a difference allows to say; one that touches 0 says nothing."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "better" if interval[0] > 0 else "worse"


def p_of_interval(difference: float, interval: Interval) -> float:
    """The two-sided p-value that a 95 % interval stands for: below 0.05 just where the interval leaves 0 out.

    From the distance to the limit on the side of 0, taken for 1.96 standard errors; unlike McNemar's it knows of groups.
    """
    from scipy.stats import norm

    half = abs(difference - interval[0 if difference > 0 else 1])
    return float(2 * norm.sf(NORMAL_95 * abs(difference) / half)) if half else 1.0


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p-value from the numbers of rows that only one arm got right; 1 where there are none."""
    from scipy.stats import binomtest

    rows = first_only + second_only
    return float(binomtest(first_only, rows).pvalue) if rows else 1.0


def tango(first_only: Any, second_only: Any, n: Any, critical: Any = NORMAL_95) -> tuple[Any, Any]:
    """Tango's score interval for a difference of paired rates; numbers or arrays, which need not be whole.

    The limits are the differences that the score test just accepts (Tango, Statistics in Medicine 17 (1998) 891).
    """
    one, other = np.broadcast_arrays(first_only, second_only)
    lower = _tango_lower(np.stack([one, other]), np.stack([other, one]), n, critical)  # both at once: half the time
    return lower[0], -lower[1]


def _tango_lower(first_only: Any, second_only: Any, n: Any, critical: Any) -> Any:
    from scipy.optimize.elementwise import find_root

    first, second, rows, z = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in (first_only, second_only, n, critical)))
    observed = (first - second) / rows
    inside = observed > -1 + 1e-9  # else every row went to the second arm, and the limit is -1
    end = np.where(inside, observed, 0.0) - 1e-10  # just short of the observed difference, where the test accepts
    first, second = np.where(inside, first, rows / 2), np.where(inside, second, rows / 2)
    found = find_root(_tango_test, (np.full_like(end, -1.0), end), args=(first, second, rows, z))
    return np.where(inside, found.x, -1.0)


def _tango_test(delta: Any, first: Any, second: Any, n: Any, z: Any) -> Any:
    """The score test's numerator less z standard errors under a true difference of `delta` (Tango's equations 2 and 4): 0 at the limit."""
    linear = -first - second + (2 * n - first + second) * delta
    root = np.sqrt(np.maximum(0.0, linear**2 + 8 * n * second * delta * (1 - delta)))
    second_rate = (root - linear) / (4 * n)
    variance = n * (2 * second_rate + delta * (1 - delta))
    return first - second - n * delta - z * np.sqrt(np.maximum(0.0, variance))


def smallest_detectable(discordance: float, n: float, found: Design) -> float | None:
    """The difference found with 80 % power at two-sided 5 %, from the share of rows where the arms differ and the effective rows.

    Connor's condition (Biometrics 43 (1987) 207) with Student's t; a difference needs at least its own share of such rows.
    """
    from scipy.optimize import brentq

    wanted, power = found.critical(0.975), found.critical(0.8)

    def short(delta: float) -> float:
        share = max(discordance, delta)
        return wanted * math.sqrt(share) + power * math.sqrt(max(0.0, share - delta**2)) - delta * math.sqrt(n)

    return float(brentq(short, 1e-9, 1.0)) if short(1.0) < 0 else None


def _discordant(parts: Sequence[Family]) -> tuple[int, int]:
    return sum(int((part.values > 0).sum()) for part in parts), sum(int((part.values < 0).sum()) for part in parts)


def effective_counts(parts: Sequence[Family], found: Design) -> tuple[Any, Any, Any]:
    """By family: effective rows that only the first arm got right, that only the second did, and all of them."""
    n = np.array([part.n for part in parts]) / found.effect
    first, second = (np.array([(part.values * sign > 0).mean() for part in parts]) * n for sign in (1, -1))
    return first, second, n


def _binary(parts: list[Family], found: Design) -> tuple[Interval | None, float | None]:
    first, second, n = effective_counts(parts, found)
    interval = combine_families(parts, found, lambda critical: tango(first, second, n, critical), (-1.0, 1.0))
    effective = len(parts) ** 2 / float((1 / n).sum())
    return interval, smallest_detectable(float(((first + second) / n).mean()), effective, found)


def _continuous(parts: list[Family], found: Design) -> tuple[Interval | None, float | None]:
    interval = bootstrap(parts, found, (-1.0, 1.0))
    return interval, (found.critical(0.975) + found.critical(0.8)) * standard_error(parts) if interval else None
