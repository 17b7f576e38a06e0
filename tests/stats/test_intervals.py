"""Intervals against numbers printed in the literature, and by simulation: a 95 % interval must cover at least 93 %."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from nomoat.errors import NomoatError
from nomoat.stats import intervals
from nomoat.stats.intervals import (
    Estimate,
    design_of,
    holm,
    score_interval,
    seeds_estimate,
    split_families,
    standard_error,
    standard_error_of,
    tier_estimate,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_limits_printed_by_newcombe(successes: int, n: int, lower: float, upper: float) -> None:
    """Statistics in Medicine 17 (1998) 857, Table I, method 3."""
    assert wilson(successes, n) == pytest.approx((lower, upper), abs=5e-5)


def test_one_row_per_group_gives_wilson_with_students_t() -> None:
    from scipy.stats import t

    scores = [1] * 70 + [0] * 30
    assert score_interval(scores, range(100)) == pytest.approx(wilson(70, 100, t.ppf(0.975, 99)), abs=1e-12)


def test_identical_rows_of_a_group_count_about_as_one_row() -> None:
    """Groups of five identical rows: a design effect near 5, so the interval is nearly that of a fifth of the rows."""
    once = [1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0]
    repeated, groups = [score for score in once for _ in range(5)], [at // 5 for at in range(100)]
    interval, alone = score_interval(repeated, groups), score_interval(once, range(20))
    assert interval is not None
    assert alone is not None
    assert interval[1] - interval[0] == pytest.approx(alone[1] - alone[0], rel=0.05)
    assert design_of(split_families(repeated, ["f"] * 100, groups)).effect == pytest.approx(5 * 20 / 19 * 99 / 100)


def test_the_design_effect_is_the_ratio_estimators_by_hand_shrunk_towards_its_prior() -> None:
    """Two groups right, two wrong, two half: sums lie 1, 1, -1, -1, 0, 0 off, variance 6/5 * 4 / 12^2 = 1/30, over 0.25 / 11.

    The prior for groups of two is 1.5; four groups hold a 1, so its weight is two of six.
    """
    scores, groups = [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert design_of(split_families(scores, ["f"] * 12, groups)).effect == pytest.approx((4 * 11 / 7.5 + 2 * 1.5) / 6)


@pytest.mark.parametrize("n", [20, 60, 150])
def test_the_interval_of_a_rate_over_independent_rows_covers_it_summed_over_all_samples(n: int) -> None:
    from scipy.stats import binom

    limits = np.array([score_interval([1] * right + [0] * (n - right), range(n)) for right in range(n + 1)])
    for rate in (0.17 / n, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99, 1 - 0.17 / n):
        covers = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
        assert binom.pmf(np.arange(n + 1), n, rate)[covers].sum() >= 0.93, rate


@pytest.mark.parametrize("score", [0, 1])
def test_equal_scores_have_an_interval_that_is_wider_when_groups_are_fewer(score: int) -> None:
    widths = []
    for groups in (60, 12, 6):
        interval = score_interval([score] * 120, [at % groups for at in range(120)])
        assert interval is not None
        assert interval[score] == score
        widths.append(interval[1] - interval[0])
    assert 0.03 < widths[0] < widths[1] < widths[2] < 0.5


def test_fewer_than_five_groups_give_a_score_without_an_interval() -> None:
    assert score_interval([1, 0] * 20, [at % 4 for at in range(40)]) is None
    assert score_interval([1, 0] * 20, [at % 5 for at in range(40)]) is not None
    assert score_interval([1] * 400 + [0] * 4, [0] * 400 + [1, 2, 3, 4]) is None  # five groups by name, one in effect
    assert score_interval([0.1 * at for at in range(9)], range(9)) is None
    assert tier_estimate([1, 0, 1, 1], ["f"] * 4, "abcd") == Estimate(0.75, None, 4, 4)


def test_a_tier_is_the_mean_over_families_not_over_rows() -> None:
    estimate = tier_estimate([1] * 90 + [0] * 10, ["a"] * 90 + ["b"] * 10, [at // 2 for at in range(100)])
    assert estimate.score == 0.5
    assert (estimate.n, estimate.groups) == (100, 50)
    assert estimate.interval is not None
    assert estimate.interval[0] < 0.5 < estimate.interval[1]


def test_a_tier_of_one_family_is_the_plain_case_and_groups_of_two_families_are_never_one() -> None:
    scores, groups = [1, 1, 0, 1] * 10, [at // 2 for at in range(40)]
    assert tier_estimate(scores, ["f"] * 40, groups).interval == score_interval(scores, groups)
    assert tier_estimate(scores, ["a", "b"] * 20, groups).groups == 40


def test_families_that_are_all_right_or_all_wrong_still_have_an_interval_within_0_and_1() -> None:
    for rates in ([1] * 6, [0] * 6, [1, 1, 1, 0, 0, 0]):
        scores = [rate for rate in rates for _ in range(32)]
        estimate = tier_estimate(scores, [f"f{at // 32}" for at in range(192)], [at // 4 for at in range(192)])
        assert estimate.interval is not None
        assert 0 <= estimate.interval[0] <= estimate.score <= estimate.interval[1] <= 1
        assert 0.02 < estimate.interval[1] - estimate.interval[0] < 0.2


def test_one_uncertain_family_among_certain_ones_keeps_its_error_on_both_sides() -> None:
    scores = [0] * 300 + [1, 0] * 30
    interval = tier_estimate(scores, [f"f{at // 60}" for at in range(360)], range(360)).interval
    assert interval is not None
    error = math.sqrt(0.25 / 60) / 6
    assert interval[0] <= 0.5 / 6 - 1.96 * error
    assert interval[1] >= 0.5 / 6 + 1.96 * error


def test_six_families_of_forty_rows_are_about_as_precise_as_one_of_240() -> None:
    draw = np.random.default_rng(1)
    scores, groups = list((draw.random(240) < 0.7).astype(int)), [at // 4 for at in range(240)]
    many, one = tier_estimate(scores, [f"f{at // 40}" for at in range(240)], groups), tier_estimate(scores, ["f"] * 240, groups)
    assert many.interval is not None
    assert one.interval is not None
    assert many.interval[1] - many.interval[0] == pytest.approx(one.interval[1] - one.interval[0], rel=0.15)


def test_continuous_scores_are_resampled_by_group_and_the_same_every_time() -> None:
    draw = np.random.default_rng(2)
    scores = list(np.repeat(draw.random(20), 5))
    clustered, alone = score_interval(scores, [at // 5 for at in range(100)]), score_interval(scores, range(100))
    assert clustered is not None
    assert alone is not None
    assert clustered == score_interval(scores, [at // 5 for at in range(100)])
    assert 1.8 < (clustered[1] - clustered[0]) / (alone[1] - alone[0]) < 2.8  # the square root of 5
    assert tier_estimate(scores, ["f"] * 100, [at // 5 for at in range(100)]).interval == pytest.approx(clustered)


def test_skewed_scores_and_their_mirror_image_have_mirrored_intervals_with_the_long_side_towards_the_tail() -> None:
    scores = [0.01, 0.02, 0.03] * 8 + [0.9, 0.7]
    interval, mirrored = score_interval(scores, range(26)), score_interval([1 - score for score in scores], range(26))
    assert interval is not None
    assert mirrored == pytest.approx((1 - interval[1], 1 - interval[0]))
    mean = float(np.mean(scores))
    assert interval[1] - mean > 2 * (mean - interval[0])


def test_continuous_scores_without_spread_have_no_interval_rather_than_one_of_no_width() -> None:
    assert score_interval([0.3] * 40, range(40)) is None


def _clustered(draw: np.random.Generator, groups: int, size: int, rate: float, correlation: float) -> list[int]:
    """0/1 scores whose groups have their own rate: beta-binomial with the given intra-group correlation."""
    spread = (1 - correlation) / correlation
    return [int(draw.random() < own) for own in draw.beta(rate * spread, (1 - rate) * spread, groups) for _ in range(size)]


def _coverage(trial: Callable[[], tuple[float, float] | None], truth: float, trials: int) -> float:
    intervals = [trial() for _ in range(trials)]
    return sum(interval is not None and interval[0] <= truth <= interval[1] for interval in intervals) / trials


@pytest.mark.parametrize(("groups", "size"), [(12, 10), (60, 2), (5, 8), (10, 40)])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_the_interval_of_a_rate_covers_it_though_rows_of_a_group_are_alike(groups: int, size: int, rate: float) -> None:
    draw = np.random.default_rng([groups, size, int(100 * rate)])
    names = [at // size for at in range(groups * size)]
    assert _coverage(lambda: score_interval(_clustered(draw, groups, size, rate, 0.2), names), rate, 800) >= 0.93


def test_the_plain_wilson_interval_would_not_cover_it() -> None:
    """The reason for clustering: it covers about 79 % with 12 groups of 10."""
    draw = np.random.default_rng(3)
    assert _coverage(lambda: wilson(sum(_clustered(draw, 12, 10, 0.3, 0.2)), 120), 0.3, 800) < 0.85


def test_the_interval_of_a_tier_covers_the_mean_of_its_families() -> None:
    draw = np.random.default_rng(4)
    rates = (0.02, 0.1, 0.5, 0.7, 0.9, 0.98)
    families, names = [f"f{at // 32}" for at in range(192)], [at // 4 for at in range(192)]

    def trial() -> tuple[float, float] | None:
        return tier_estimate([score for rate in rates for score in _clustered(draw, 8, 4, rate, 0.2)], families, names).interval

    assert _coverage(trial, float(np.mean(rates)), 400) >= 0.93


def test_the_bootstrap_covers_the_mean_of_skewed_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 800)
    draw = np.random.default_rng(5)

    def trial() -> tuple[float, float] | None:
        own = np.clip(np.repeat(draw.beta(0.35, 2.0, 12), 10), 1e-4, 1 - 1e-4)
        return score_interval(list(draw.beta(2 * own, 2 * (1 - own))), [at // 10 for at in range(120)])

    assert _coverage(trial, 0.35 / 2.35, 300) >= 0.93


def test_the_clustered_standard_error_is_millers_by_hand() -> None:
    """Mean 1/2; the clusters' sums of deviations are 1, -1, 1/2 and -1/2, their squares add up to 5/2; times 4/3, over 6^2."""
    scores, clusters = [1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "d"]
    assert standard_error(split_families(scores, [""] * 6, clusters)) == pytest.approx(math.sqrt(5 / 2 * 4 / 3) / 6)


def test_with_one_row_per_cluster_the_clustered_standard_error_is_the_usual_one() -> None:
    scores = [0.2, 0.9, 0.4, 0.4, 1.0]
    assert standard_error(split_families(scores, [""] * 5, range(5))) == pytest.approx(np.std(scores, ddof=1) / math.sqrt(5))


def test_the_standard_error_of_an_interval_is_its_half_width_over_196() -> None:
    assert standard_error_of((0.2, 0.6)) == pytest.approx(0.2 / 1.959964, rel=1e-6)


def test_several_seeds_follow_the_formula() -> None:
    estimate = seeds_estimate([0.10, 0.12, 0.20], 0.02)
    half = math.sqrt((4.302653 * 0.0529150 / math.sqrt(3)) ** 2 + (1.96 * 0.02) ** 2)
    assert estimate.difference == pytest.approx(0.14)
    assert estimate.interval == pytest.approx((0.14 - half, 0.14 + half), abs=1e-6)


def test_one_seed_has_the_interval_of_its_groups_and_limits_stay_within_1() -> None:
    assert seeds_estimate([0.3], 0.1).interval == pytest.approx((0.3 - 0.196, 0.3 + 0.196))
    assert seeds_estimate([0.9, 1.0], 0.1).interval[1] == 1.0


@pytest.mark.parametrize(("trials", "seeds"), [(300, 1), (150, 3), (100, 5)])
def test_several_seeds_cover_the_true_difference(trials: int, seeds: int) -> None:
    """Groups that all seeds share, and seeds that differ (except for one seed, which cannot know)."""
    draw = np.random.default_rng(seeds)

    def trial() -> tuple[float, float]:
        shared = draw.normal(0.3, 0.05)
        return seeds_estimate(list(shared + draw.normal(0, 0.04 if seeds > 1 else 0.0, seeds)), 0.05).interval

    assert _coverage(trial, 0.3, trials) >= 0.93


def test_holms_adjustment_steps_down_and_keeps_the_order_given() -> None:
    """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 may not fall below its predecessor."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [([], [], "got 0"), ([1, 0], [1], "got 2, 2 and 1"), ([1, float("nan")], [1, 2], "finite"), ([1, None], [1, 2], "unscored")],
)
def test_invalid_scores_are_refused_with_the_reason(scores: list, groups: list, message: str) -> None:
    with pytest.raises(NomoatError, match=message):
        score_interval(scores, groups)


def test_seeds_without_numbers_are_refused() -> None:
    for differences, error in (([], 0.1), ([0.1, float("nan")], 0.1), ([0.1], -1.0)):
        with pytest.raises(NomoatError, match="several seeds need"):
            seeds_estimate(differences, error)
