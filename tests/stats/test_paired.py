"""Paired differences: Tango's limits as printed, as roots of his test, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nomoat.errors import NomoatError
from nomoat.stats.intervals import design_of, split_families
from nomoat.stats.paired import mcnemar, paired_difference, smallest_detectable, tango

PRINTED = [
    (9, 3, 32, 1.959964, -0.027, 0.390),  # Tango, Statistics in Medicine 17 (1998) 891
    (0, 1, 44, 1.644854, -0.096, 0.037),  # Tango 1998, a 90 % interval: one of 44 patients differs
    (16, 8, 86, 1.959964, -0.020, 0.207),  # Agresti and Min, Statistics in Medicine 24 (2005) 729
    (1, 7, 21, 1.959964, -0.517, -0.026),  # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850: airways
    (6, 16, 161, 1.959964, -0.124, -0.0054),  # their second example: complete response before and after therapy
]


@pytest.mark.parametrize(("first", "second", "n", "critical", "lower", "upper"), PRINTED)
def test_tangos_interval_has_the_printed_limits(first: int, second: int, n: int, critical: float, lower: float, upper: float) -> None:
    assert tango(first, second, n, critical) == pytest.approx((lower, upper), abs=5e-4)


def _statistic(delta: float, first: float, second: float, n: float) -> float:
    """Tango's test of a true difference of `delta`, the nuisance rate found by maximising the likelihood on a fine grid."""
    rates = np.linspace(max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 200_001)  # of rows that only the second arm gets right
    same = np.maximum(1e-300, 1 - 2 * rates - delta)
    likelihood = first * np.log(rates + delta) + second * np.log(rates) + (n - first - second) * np.log(same)
    rate = rates[likelihood.argmax()]
    return (first - second - n * delta) / math.sqrt(n * (2 * rate + delta * (1 - delta)))


@pytest.mark.parametrize(("first", "second", "n"), [(9, 3, 32), (12, 2, 50), (30, 29, 60), (5, 0, 20), (2.5, 1.25, 17.5), (19, 0, 20)])
def test_tangos_limits_are_where_his_test_reaches_its_critical_value(first: float, second: float, n: float) -> None:
    lower, upper = tango(first, second, n)
    assert _statistic(float(lower), first, second, n) == pytest.approx(1.96, abs=2e-3)
    assert _statistic(float(upper), first, second, n) == pytest.approx(-1.96, abs=2e-3)


def test_tangos_interval_always_has_a_width_and_stays_within_1() -> None:
    square = 1.959963984540054**2
    assert tango(0, 0, 20) == pytest.approx((-square / (20 + square), square / (20 + square)), abs=1e-6)
    lower, upper = tango(20, 0, 20)
    assert (round(float(lower), 3), upper) == (0.678, 1.0)
    assert tango(0, 20, 20) == pytest.approx((-upper, -lower))


def test_a_difference_is_the_first_arm_minus_the_second_and_the_verdict_follows_the_interval() -> None:
    right, wrong = [1] * 18 + [0] * 2, [0] * 20
    better = paired_difference(right, wrong, ["f"] * 20, range(20))
    worse = paired_difference(wrong, right, ["f"] * 20, range(20))
    assert (better.difference, better.verdict, better.n, better.groups) == (0.9, "better", 20, 20)
    assert (worse.difference, worse.verdict) == (-0.9, "worse")
    assert better.interval is not None
    assert worse.interval == pytest.approx((-better.interval[1], -better.interval[0]))
    assert paired_difference(right, right, ["f"] * 20, range(20)).verdict == "cannot tell"


def test_arms_that_never_differ_still_have_an_interval_with_a_width() -> None:
    paired = paired_difference([1, 0] * 50, [1, 0] * 50, ["f"] * 100, range(100))
    assert paired.difference == 0
    assert paired.interval is not None
    assert -0.05 < paired.interval[0] < -0.02
    assert 0.02 < paired.interval[1] < 0.05
    assert paired.p_value == 1.0


def test_one_row_of_difference_is_no_verdict() -> None:
    assert paired_difference([1] + [0] * 99, [0] * 100, ["f"] * 100, range(100)).verdict == "cannot tell"


def test_the_same_rows_in_fewer_groups_have_a_wider_interval_and_in_four_none() -> None:
    a, b = [1, 1, 0, 1] * 30, [0, 1, 0, 0] * 30
    widths = []
    for groups in (120, 12, 6):
        paired = paired_difference(a, b, ["f"] * 120, [at * groups // 120 for at in range(120)])
        assert paired.interval is not None
        assert paired.standard_error == pytest.approx((paired.interval[1] - paired.interval[0]) / 2 / 1.96, rel=1e-4)
        widths.append(paired.interval[1] - paired.interval[0])
    assert widths == sorted(widths)
    few = paired_difference(a, b, ["f"] * 120, [at * 4 // 120 for at in range(120)])
    assert (few.interval, few.smallest_detectable, few.standard_error, few.verdict) == (None, None, None, "cannot tell")
    assert few.difference == 0.5


def test_the_difference_is_a_mean_over_families() -> None:
    a, b = [1] * 60 + [0] * 20, [0] * 60 + [1] * 20
    assert paired_difference(a, b, ["a"] * 60 + ["b"] * 20, range(80)).difference == 0.0
    assert paired_difference(a, b, ["f"] * 80, range(80)).difference == 0.5


def test_mcnemars_p_is_the_exact_binomial_one() -> None:
    assert mcnemar(9, 3) == pytest.approx(0.1459961, abs=1e-7)  # twice the sum of C(12, 0..3) / 2^12 = 299 / 4096
    assert mcnemar(0, 0) == 1.0
    assert paired_difference([1] * 9 + [0] * 23, [0] * 29 + [1] * 3, ["f"] * 32, range(32)).p_value == pytest.approx(598 / 4096)


def test_continuous_scores_get_a_bootstrap_over_groups_and_no_p_value() -> None:
    draw = np.random.default_rng(6)
    b = draw.random(80) * 0.5
    paired = paired_difference(list(b + 0.2 + draw.normal(0, 0.05, 80)), list(b), ["f", "g"] * 40, [at // 4 for at in range(80)])
    assert paired.interval is not None
    assert paired.interval[0] < 0.2 < paired.interval[1]
    assert paired.interval[1] - paired.interval[0] < 0.06  # paired: the spread of the rows themselves is gone
    assert (paired.p_value, paired.verdict) == (None, "better")
    assert paired.smallest_detectable == pytest.approx(0.05 * 2.8 / math.sqrt(80), rel=0.5)


def test_the_smallest_detectable_difference_is_found_in_four_runs_of_five() -> None:
    draw = np.random.default_rng(7)
    discordance, n = 0.3, 200
    delta = smallest_detectable(discordance, n, design_of(split_families([0, 1] * 100, ["f"] * n, range(n))))
    assert delta is not None
    rates = [(discordance + delta) / 2, (discordance - delta) / 2, 1 - discordance]
    lower = [tango(first, second, n)[0] for first, second, _ in draw.multinomial(n, rates, 1000)]
    assert np.mean(np.array(lower) > 0) == pytest.approx(0.8, abs=0.05)


def test_the_smallest_detectable_difference_falls_with_rows_and_stays_above_0() -> None:
    few, many = (paired_difference([0] * n, [0] * n, ["f"] * n, range(n)).smallest_detectable for n in (20, 400))
    assert few is not None
    assert many is not None
    assert 0.01 < many < 0.03 < few < 0.5


def test_the_interval_covers_the_difference_though_rows_of_a_group_are_alike() -> None:
    draw = np.random.default_rng(8)
    for groups, size in ((12, 10), (60, 2), (8, 4)):
        for rates in ((0.6, 0.05, 0.35), (0.1, 0.1, 0.8), (0.05, 0.01, 0.94)):
            covered = 0
            for _ in range(120):
                own = draw.dirichlet(np.array(rates) * 4.0, groups)  # an intra-group correlation of 0.2
                kinds = np.concatenate([draw.choice(3, size, p=rate) for rate in own])
                a, b = (kinds == 0).astype(int), (kinds == 1).astype(int)
                interval = paired_difference(list(a), list(b), ["f"] * len(a), [at // size for at in range(len(a))]).interval
                covered += interval is not None and interval[0] <= rates[0] - rates[1] <= interval[1]
            assert covered / 120 >= 0.93, (groups, size, rates)


def test_the_interval_covers_a_gain_of_98_percent_on_20_rows() -> None:
    """Where a percentile bootstrap covers a third: most samples show no failure at all. Summed over all samples, not drawn."""
    from scipy.stats import binom

    covered = 0.0
    for gains in range(21):
        interval = paired_difference([1] * gains + [0] * (20 - gains), [0] * 20, ["f"] * 20, range(20)).interval
        assert interval is not None
        covered += binom.pmf(gains, 20, 0.98) * (interval[0] <= 0.98 <= interval[1])
    assert covered >= 0.93


def test_the_interval_covers_the_mean_of_six_families_that_nearly_always_gain() -> None:
    draw = np.random.default_rng(9)
    families = [f"f{at // 16}" for at in range(96)]
    intervals = [paired_difference(list((draw.random(96) < 0.98).astype(int)), [0] * 96, families, range(96)).interval for _ in range(300)]
    assert sum(interval is not None and interval[0] <= 0.98 <= interval[1] for interval in intervals) / 300 >= 0.93


def test_arms_of_unequal_length_are_refused() -> None:
    with pytest.raises(NomoatError, match="same rows in both arms; got 2 and 1"):
        paired_difference([1, 0], [1], ["f", "f"], [1, 2])
