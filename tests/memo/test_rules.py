"""Every claim can be held, failed and left open, and none is held where its interval includes the threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nomoat.memo.claims import CLAIMS

from nomoat.memo.evidence import Evidence, ThresholdTest, all_of, at_most, over_seeds, ratio_over_seeds, score_less
from nomoat.memo.rules import judge, judge_claim
from nomoat.reports.build import build_report
from nomoat.reports.schema import CompactRow, Report
from tests.make_run import make_run

CLAIM = {claim.id: claim for claim in CLAIMS}
FAMILIES = ("calendar", "edit", "route", "sql")
Make = Callable[..., Report]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(make_run(tmp_path_factory.mktemp("run") / "memo-0"))


def rows_of(rates: dict[str, float], few_shot: float, per_family: int) -> list[CompactRow]:
    """Rows of the judged tier, each in a group of its own; the first `rate` of a family's rows are right, so that rates are nested."""
    rows: list[CompactRow] = []
    for family in FAMILIES:
        for n in range(per_family):
            scores = {"adapter": float(n < rates[family] * per_family), "few_shot": float(n < few_shot * per_family), "base": 0.0}
            rows.append((f"{family}-{n}", "phrasing", family, f"{family}-{n}", scores))
    return rows


@pytest.fixture
def make(template: Report) -> Make:
    """A report with a score, a cost and an adapter of one's choice."""

    def made(rate: float | dict[str, float] = 0.9, *, seed: int = 0, few_shot: float = 0.3, per_family: int = 50, **stated: Any) -> Report:
        rates = rate if isinstance(rate, dict) else dict.fromkeys(FAMILIES, rate)
        train = stated.get("train_seconds", 600.0)
        cost = {"seconds": stated.get("seconds", 1500.0), "seconds_by_phase": {"train": train}, "usd": stated.get("usd", 1.0)}
        cost |= {"usd_as_if": stated.get("as_if"), "usd_as_if_label": "as if rented small.large"}
        cost |= {"peak_memory_bytes": stated.get("memory", 6_000_000_000), "waited_share": stated.get("waited")}
        better = template.comparison.tiers["phrasing"].model_copy(update={"verdict": stated.get("few_shot_verdict", "better")})
        comparison = {"verdict": stated.get("verdict", "better"), "primary": "phrasing", "few_shot": {"phrasing": better}}
        adapter = {
            "parameters": stated.get("parameters", 4_884_480),
            "base_parameters": 134_515_008,
            "bytes": stated.get("bytes", 19_600_000),
        }
        gate = template.adapter.gate
        assert gate is not None
        detail = f"by up to 9.1; reloading differs by {stated.get('differs', '0')}"
        check = gate.checks[0].model_copy(update={"name": "changes the logits", "detail": detail})
        device = {"kind": "cuda", "name": stated.get("device", "2-core CPU")}
        return template.model_copy(
            update={
                "run": f"memo-{rate}-{seed}-{train}",
                "rows": rows_of(rates, few_shot, per_family),
                "cost": template.cost.model_copy(update=cost),
                "comparison": template.comparison.model_copy(update=comparison),
                "recipe": {**template.recipe, "hardware": {"shared": stated.get("shared", False)}},
                "adapter": template.adapter.model_copy(
                    update={**adapter, "base_bytes_16bit": 269_030_016, "gate": gate.model_copy(update={"checks": [check]})}
                ),
                "provenance": {**template.provenance, "seed": seed, "device": device, "matrix_gflops": stated.get("gflops", 150.0)},
            }
        )

    return made


def seeds(make: Make, *changes: dict[str, Any], **same: Any) -> tuple[Report, ...]:
    """Three seeds that differ as stated."""
    return tuple(make(seed=seed, **{**same, **(changes[seed] if changes else {})}) for seed in range(3))


def words(claim: str, **roles: tuple[Report, ...]) -> str:
    return judge_claim(CLAIM[claim], Evidence(roles)).word


HOURS = [{"seconds": hours * 3600.0} for hours in (1.0, 4.0, 9.0)]
DEAR = [{"usd": 10.0}, {"usd": 100.0}, {"usd": 250.0}]


@pytest.mark.parametrize("claim", ["M1", "M2", "M5"])
def test_time_claims(make: Make, claim: str) -> None:
    assert words(claim, default=seeds(make)) == "held"
    assert words(claim, default=seeds(make, seconds=30 * 3600.0)) == "failed"
    unsure = [{"seconds": one["seconds"] * (6 if claim == "M5" else 1)} for one in HOURS]
    assert words(claim, default=seeds(make, *unsure)) == "cannot tell"
    assert words(claim, default=(make(),)) == "cannot tell", "one seed has no interval"
    assert words(claim, default=seeds(make, verdict="cannot tell")) == "cannot tell", "fast, and of no use"
    assert words(claim, default=seeds(make, few_shot_verdict="worse")) == "failed"


def test_memory_is_part_of_the_second_claim(make: Make) -> None:
    assert words("M2", default=seeds(make, memory=40_000_000_000)) == "failed"
    peaks = [{"memory": size} for size in (8_000_000_000, 16_000_000_000, 30_000_000_000)]
    assert words("M2", default=seeds(make, *peaks)) == "cannot tell"


@pytest.mark.parametrize(("claim", "gpu"), [("M3", "NVIDIA GeForce RTX 3060"), ("M6", "NVIDIA GeForce RTX 4090")])
def test_claims_on_a_device_are_out_of_reach_without_it(make: Make, claim: str, gpu: str) -> None:
    assert words(claim, default=seeds(make)) == "out of reach"
    assert words(claim, default=seeds(make, device=gpu)) == "held"
    assert words(claim, default=seeds(make, device=gpu, seconds=9 * 3600.0)) == "failed"
    assert words(claim, default=seeds(make, *HOURS, device=gpu)) == "cannot tell"


def test_prices(make: Make) -> None:
    for claim, dear in (("M4", 300.0), ("M18", 101.0)):
        assert words(claim, default=seeds(make)) == "held"
        assert words(claim, default=seeds(make, usd=dear)) == "failed"
        assert words(claim, default=seeds(make, usd=None)) == "cannot tell"
    assert words("M4", default=seeds(make, *DEAR)) == "cannot tell"


def ranks(make: Make, **rates: float) -> dict[str, tuple[Report, ...]]:
    of = {"rank1": 305_280, "rank4": 1_221_120, "lora": 4_884_480, "rank64": 19_537_920}
    return {role: seeds(make, rate=rates.get(role, 0.9), parameters=count) for role, count in of.items()}


def test_the_size_of_the_update(make: Make) -> None:
    assert words("M7", **ranks(make)) == "failed", "441 times at rank 1"
    small = {"rank1": seeds(make, parameters=100_000)}
    assert words("M7", **{**ranks(make), **small}) == "held"
    unsure = {"rank1": seeds(make, rate=0.82, parameters=100_000)}
    assert words("M7", **{**ranks(make), **unsure}) == "cannot tell", "rank 1 may be good enough, and the next rank is too large"


def test_lora_against_full_fine_tuning(make: Make) -> None:
    full = seeds(make, train_seconds=1500.0, seconds=2400.0, usd=1.6)
    assert words("M8", lora=seeds(make, usd=0.7, seconds=1000.0), full=full) == "held"
    assert words("M8", lora=seeds(make, rate=0.5), full=full) == "failed"
    assert words("M8", lora=seeds(make, train_seconds=1400.0), full=full) == "failed"
    assert words("M8", lora=seeds(make, rate=0.82, usd=0.7, seconds=1000.0), full=full) == "cannot tell"
    times = [{"train_seconds": seconds} for seconds in (500.0, 750.0, 1000.0)]
    assert words("M8", lora=seeds(make, *times, usd=None), full=seeds(make, train_seconds=1500.0, usd=None)) == "cannot tell"


@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        ({"device": "NVIDIA L4"}, "different machines"),
        ({"gflops": 400.0}, "150 to 400 GFLOP/s"),
        ({"gflops": None}, "not rec"),
        ({"shared": True}, "other runs worked on the machine"),
        ({"waited": 0.5}, "waited for a core for 50% of the time"),
    ],
)
def test_times_of_different_machines_are_not_compared(make: Make, elsewhere: dict[str, Any], said: str) -> None:
    full, cheap = seeds(make, train_seconds=1500.0, **elsewhere), seeds(make, train_seconds=100.0)
    for claim, roles in (("M8", {"lora": cheap, "full": full}), ("M11", {"b_on_a": cheap, "lora": full})):
        found = judge_claim(CLAIM[claim], Evidence(roles))
        assert found.word == "cannot tell" and said in found.lacking


def test_only_seeds_timed_on_one_machine_alone_count_for_time_and_all_of_them_for_the_score(make: Make) -> None:
    def three(train_seconds: float, shared_seconds: float) -> tuple[Report, ...]:
        alone = {"train_seconds": train_seconds}
        return seeds(make, alone, alone, {"train_seconds": shared_seconds, "shared": True, "device": "NVIDIA L4"})

    full = three(1500.0, 10.0)
    found = judge_claim(CLAIM["M8"], Evidence({"lora": three(500.0, 100.0), "full": full}))
    score, time, _ = found.measured
    assert (score.seeds, time.seeds, time.value) == (3, 2, pytest.approx(1 / 3))
    assert found.word == "held" and "times of 2 of 3 seeds: other runs worked on the machine" in found.lacking
    assert judge_claim(CLAIM["M8"], Evidence({"lora": three(1000.0, 1.0), "full": full})).word == "failed"


def test_a_stack_and_an_increment(make: Make) -> None:
    alone, first = seeds(make), seeds(make, rate={"calendar": 0.1, "route": 0.1, "edit": 0.9, "sql": 0.9})
    lost_old = {"calendar": 0.9, "route": 0.9, "edit": 0.5, "sql": 0.5}
    assert words("M9", a=first, b=alone, b_on_a=alone) == "held"
    assert words("M9", a=first, b=alone, b_on_a=seeds(make, rate=lost_old)) == "failed"
    assert words("M9", a=first, b=alone, b_on_a=first) == "failed", "nothing new was learnt"
    assert words("M9", a=first, b=alone, b_on_a=seeds(make, rate=0.82)) == "cannot tell"
    cheap, dear = seeds(make, train_seconds=100.0), seeds(make, train_seconds=500.0)
    assert words("M11", lora=alone, b_on_a=cheap) == "held"
    assert words("M11", lora=alone, b_on_a=dear) == "failed"
    assert words("M11", lora=alone, b_on_a=seeds(make, rate=0.8, train_seconds=100.0)) == "cannot tell"


def test_the_rank_of_a_sum(make: Make) -> None:
    runs = {"a": seeds(make), "b": seeds(make)}
    for ranks_found, word in (((210, 210), "held"), ((189, 210), "held"), ((188, 210), "failed"), (None, "cannot tell")):
        assert judge_claim(CLAIM["M10"], Evidence(runs, ranks_found)).word == word


@pytest.mark.parametrize(("claim", "role"), [("M12", "noisy25"), ("M17", "gemma")])
def test_gains(make: Make, claim: str, role: str) -> None:
    def other(rate: float) -> tuple[Report, ...]:
        return seeds(make, rate=rate, few_shot=rate)

    assert words(claim, lora=seeds(make), **{role: other(0.5)}) == "held"
    assert words(claim, lora=seeds(make, rate=0.5), **{role: other(0.9)}) == "failed"
    assert words(claim, lora=seeds(make), **{role: other(0.9)}) == "cannot tell"


def test_half_of_the_rows(make: Make) -> None:
    for rate, word in ((0.9, "held"), (0.5, "failed"), (0.8, "cannot tell")):
        assert words("M13", default=seeds(make), lora=seeds(make, rate=rate)) == word
    unlike = [{"rate": rate} for rate in (0.96, 0.86, 0.70)]
    assert words("M13", default=seeds(make), lora=seeds(make, *unlike)) == "cannot tell", "seeds that disagree"


def test_what_is_sent_alone(make: Make) -> None:
    assert words("M14", default=seeds(make)) == "held"
    assert words("M14", default=seeds(make, bytes=30_000_000)) == "failed"
    assert words("M14", default=seeds(make, differs="0.002")) == "failed"
    assert words("M14", default=seeds(make, differs="")) == "cannot tell"


def test_a_price_that_nobody_paid_is_said_to_be_one(make: Make) -> None:
    found = judge_claim(CLAIM["M4"], Evidence({"default": seeds(make, usd=None, as_if=2.0)}))
    assert found.word == "held" and found.lacking == "nobody paid this: as if rented small.large"
    assert judge_claim(CLAIM["M4"], Evidence({"default": seeds(make, usd=None, as_if=200.0)})).word == "failed"
    unpriced = judge_claim(CLAIM["M4"], Evidence({"default": seeds(make, usd=None, seconds=7200.0)}))
    assert unpriced.word == "cannot tell" and unpriced.shown[0].value == pytest.approx(50.0), "100 USD in 2 h"


def test_what_is_shown_beside_a_verdict_decides_nothing_and_is_there(make: Make) -> None:
    good, low = seeds(make), {"calendar": 0.1, "edit": 0.9, "route": 0.9, "sql": 0.9}
    extra = {
        "noisy50": seeds(make, rate=0.2),
        "a_plus_b": seeds(make, rate=0.1),
        "rank1": seeds(make, rate=low),
        "quarter": (make(rate=0.4),),
    }
    roles = {role: good for role in ("default", "lora", "full", "gemma", "a", "b", "b_on_a", "noisy25", "rank4", "rank64")}
    lora = seeds(make, rate={**dict.fromkeys(FAMILIES, 0.9), "calendar": 0.8})
    told = {finding.claim.id: finding for finding in judge(Evidence({**roles, **extra, "lora": lora}))}
    alone = {finding.claim.id: finding.word for finding in judge(Evidence({**roles, "rank1": extra["rank1"], "lora": lora}))}
    assert {claim: finding.word for claim, finding in told.items()} == alone
    values = {shown.what: shown.value for finding in told.values() for shown in finding.shown}
    assert values["score of rank1 less lora on calendar, its lowest family"] == pytest.approx(-0.7)
    assert values["score of a_plus_b less b on B's families"] == pytest.approx(-0.8)
    assert values["score of lora less noisy50"] == pytest.approx(0.875 - 0.2)
    assert "score of quarter" in values
    assert values["score of default less gemma, both adapted, on the same rows"] == pytest.approx(0.0)


def test_without_runs_every_claim_is_open_or_out_of_reach_and_says_why() -> None:
    for finding in judge(Evidence({})):
        assert finding.word == ("out of reach" if finding.claim.id in ("M15", "M16") else "cannot tell") and finding.lacking


def test_an_interval_that_includes_the_limit_is_never_held() -> None:
    for above in (True, False):
        for low, high in ((-0.2, 0.0), (-0.2, 0.1), (-0.1, 0.0), (-0.15, -0.05)):
            one = ThresholdTest("x", (low + high) / 2, (low, high), "", -0.1, above, 3)
            assert one.word == "cannot tell" and (one.times_the_data is None or one.times_the_data >= 1 - 1e-9)
    assert ThresholdTest("x", 1.0, None, "", 2.0, False, 1).word == "cannot tell"
    assert ThresholdTest("x", 1.0, None, "", 2.0, False, 1, exact=True).word == "held"
    assert all_of(["held", "cannot tell", "failed"]) == "failed" and all_of(["held", "held"]) == "held" and all_of([]) == "cannot tell"


def test_means_and_ratios_over_seeds_have_students_interval(make: Make) -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    assert over_seeds([1.0, 2.0, 3.0]) == (2.0, pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5))
    middle, interval = ratio_over_seeds([1.0, 2.0], [2.0, 4.0])
    assert middle == pytest.approx(0.5) and interval == pytest.approx((0.5, 0.5))
    difference, interval = score_less([(make(0.9, seed=0), make(0.4, seed=0))])
    assert difference == pytest.approx(0.5) and interval is not None and interval[0] < 0.5 < interval[1]


def test_an_amount_is_not_below_nothing() -> None:
    found = at_most("peak memory", [4.5e9, 3.0e9], "bytes", 16e9)
    assert found.interval is not None and found.interval[0] == 0.0 and found.interval[1] > 13e9 and found.word == "held"
