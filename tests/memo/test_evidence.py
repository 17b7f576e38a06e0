"""The table of claims is complete and hashed; a test is decided only where the whole interval is on one side of the threshold."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.memo.evidence import Measurement, Outcome, conclude, load_claims, over_seeds
from nomoat.runs.provenance import claims_sha256
from tests.stories import ROOT

LIMITS_OF_M8 = "limits: {margin: 0.1, ratio: 0.5}"


def test_the_eighteen_claims_each_have_a_rule_with_thresholds_or_a_reason_for_having_none() -> None:
    claims = load_claims(ROOT)
    assert [claim.id for claim in claims] == [f"M{number}" for number in range(1, 19)]
    for claim in claims:
        assert claim.quote and bool(claim.out_of_reach) == (claim.rule == "none")
        assert claim.out_of_reach or (claim.limits and claim.runs and claim.leaves_out), claim.id
    roles = {role for claim in claims for role in claim.runs}
    assert roles == {"default", "lora", "full", "rank1", "rank4", "rank64", "a", "b", "b_on_a", "noisy25", "gemma"}


def test_a_changed_threshold_or_word_gives_another_hash_unless_the_earlier_threshold_is_stated(root: Path) -> None:
    path = root / "recipes" / "memo" / "claims.yaml"
    table = path.read_text()
    before = claims_sha256(root)
    assert before == claims_sha256(ROOT)
    changed = LIMITS_OF_M8.replace("0.1", "0.2")
    for text in (table.replace(LIMITS_OF_M8, changed, 1), table.replace("LoRA's score is", "LoRA's score was", 1)):
        path.write_text(text)
        assert text != table and claims_sha256(root) != before
    path.write_text(table.replace(LIMITS_OF_M8, f"{changed}\n  looked_at: {{margin: 0.1, ratio: 0.5}}", 1))
    assert claims_sha256(root) == before, "the table that the runs were made under is still known"
    assert load_claims(root)[7].looked_at == load_claims(ROOT)[7].limits


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("interval", [(-0.2, 0.0), (-0.2, 0.1), (-0.1, 0.0), (-0.15, -0.05)])
def test_an_interval_that_includes_the_threshold_decides_nothing(above: bool, interval: tuple[float, float]) -> None:
    test = Measurement(what="x", value=sum(interval) / 2, interval=interval).test(-0.1, above=above)
    assert test.verdict == "cannot tell" and (test.times_the_data is None or test.times_the_data >= 1 - 1e-9)


def test_a_value_without_an_interval_decides_nothing_unless_it_is_exact() -> None:
    value = Measurement(what="x", value=1.0)
    assert value.test(2.0, above=False).verdict == "cannot tell"
    assert value.test(2.0, above=False, exact=True).verdict == "held"
    assert value.test(2.0, above=True, exact=True).verdict == "failed"
    assert value.test(1.0, above=True, exact=True).verdict == "held", "at least the limit"
    assert Measurement(what="x", value=None, interval=(0.0, 1.0)).test(2.0, above=False, exact=True).verdict == "cannot tell"


def test_an_open_test_says_how_much_more_data_would_decide_it() -> None:
    open_test = Measurement(what="x", value=0.1, interval=(-0.1, 0.3)).test(0.0, above=True)
    assert open_test.times_the_data == pytest.approx(4.0), "half the width takes four times the rows"
    assert Measurement(what="x", value=0.5, interval=(0.4, 0.6)).test(0.0, above=True).times_the_data is None


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (("held", "cannot tell", "failed"), "failed"),
        (("held", "cannot tell"), "cannot tell"),
        (("held", "out of reach", "cannot tell"), "out of reach"),
        (("held", "held"), "held"),
        ((), "cannot tell"),
    ],
)
def test_a_claim_fails_with_one_part_and_holds_with_all(parts: tuple[Outcome, ...], verdict: str) -> None:
    assert conclude(load_claims(ROOT)[0], [], *parts).verdict == verdict


def test_what_could_not_be_computed_is_not_shown() -> None:
    known, unknown = (Measurement(what="x", value=value) for value in (1.0, None))
    assert conclude(load_claims(ROOT)[0], [], shown=[known, unknown]).shown == (known,)


def test_means_and_ratios_over_seeds_have_students_interval() -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    mean = over_seeds("x", [101.0, 102.0, 103.0], "s")
    assert (mean.value, mean.unit, mean.seeds) == (102.0, "s", 3)
    assert mean.interval == pytest.approx((102 - 4.302653 / 3**0.5, 102 + 4.302653 / 3**0.5), abs=1e-5)
    ratio = over_seeds("x", [0.25, 1.0], geometric=True)
    assert ratio.value == pytest.approx(0.5) and ratio.interval is not None
    assert ratio.interval[0] * ratio.interval[1] == pytest.approx(0.25), "symmetric in the logarithm"
    assert over_seeds("x", [0.5, 0.5], geometric=True).interval == pytest.approx((0.5, 0.5))


def test_one_seed_has_no_interval_and_an_unknown_value_leaves_the_mean_unknown() -> None:
    assert over_seeds("x", [1.0]).interval is None
    for values in ([1.0, None], []):
        assert over_seeds("x", values).value is None


def test_an_amount_is_not_negative() -> None:
    peak = over_seeds("peak memory", [4.5e9, 3.0e9], "bytes")
    assert peak.interval is not None and peak.interval[0] == 0.0 and peak.interval[1] > 13e9
    assert peak.test(16e9, above=False).verdict == "held"
