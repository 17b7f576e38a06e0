"""Every claim can be held, failed and left open by some evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nomoat.memo.evidence import Evidence, ModuleRanks, SumRanks, load_claims
from nomoat.memo.rules import judge, judge_claim
from nomoat.reports.build import build_report
from nomoat.reports.schema import Check, CompactRow, Gate, Report
from nomoat.runs.provenance import DeviceFacts
from tests.make_run import make_run
from tests.stories import ROOT

CLAIMS = load_claims(ROOT)
CLAIM = {claim.id: claim for claim in CLAIMS}
FAMILIES = ("calendar", "edit", "route", "sql")
Make = Callable[..., Report]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(make_run(tmp_path_factory.mktemp("run") / "memo-0"))


def rows_of(rates: dict[str, float], few_shot: float, per_family: int) -> list[CompactRow]:
    """Rows of the judged tier, each in its own group; the first `rate` of a family's rows are right, so that rates are nested."""
    rows: list[CompactRow] = []
    for family in FAMILIES:
        for n in range(per_family):
            scores = {"adapter": float(n < rates[family] * per_family), "few_shot": float(n < few_shot * per_family), "base": 0.0}
            rows.append(CompactRow(f"{family}-{n}", "phrasing", family, f"{family}-{n}", scores))
    return rows


@pytest.fixture
def make(template: Report) -> Make:
    """A report with a score, a cost and an adapter of one's choice."""

    def made(rate: float | dict[str, float] = 0.9, *, seed: int = 0, few_shot: float = 0.3, per_family: int = 50, **stated: Any) -> Report:
        rates = rate if isinstance(rate, dict) else dict.fromkeys(FAMILIES, rate)
        train = stated.get("train_seconds", 600.0)
        cost = {"seconds": stated.get("seconds", 1500.0), "seconds_by_phase": {"train": train}, "usd": stated.get("usd", 1.0)}
        cost |= {"usd_as_if": stated.get("as_if"), "usd_as_if_label": "small.large"}
        cost |= {"peak_memory_bytes": stated.get("memory", 6_000_000_000), "waited_share": stated.get("waited")}
        better = template.comparison.tiers["phrasing"].model_copy(update={"verdict": stated.get("few_shot_verdict", "better")})
        comparison = {"verdict": stated.get("verdict", "better"), "primary": "phrasing", "few_shot": {"phrasing": better}}
        adapter: dict[str, Any] = {
            "parameters": stated.get("parameters", 4_884_480),
            "base_parameters": 134_515_008,
            "bytes": stated.get("bytes", 19_600_000),
        }
        check = Check(name="changes the logits", passed=True, value=9.1, reload_error=stated.get("reload_error", 0.0))
        adapter |= {"base_bytes_16bit": 269_030_016, "gate": Gate.of([check])}
        hardware = template.recipe.hardware.model_copy(update={"shared": stated.get("shared", False)})
        device = DeviceFacts(kind="cuda", name=stated.get("device", "2-core CPU"))
        provenance = {"seed": seed, "device": device, "matrix_gflops": stated.get("gflops", 150.0)}
        return template.model_copy(
            update={
                "run": f"memo-{rate}-{seed}-{train}",
                "rows": rows_of(rates, few_shot, per_family),
                "cost": template.cost.model_copy(update=cost),
                "comparison": template.comparison.model_copy(update=comparison),
                "recipe": template.recipe.model_copy(update={"hardware": hardware}),
                "adapter": template.adapter.model_copy(update=adapter),
                "provenance": template.provenance.model_copy(update=provenance),
            }
        )

    return made


def seeds(make: Make, *changes: dict[str, Any], **same: Any) -> tuple[Report, ...]:
    """Three seeds that differ as stated."""
    return tuple(make(seed=seed, **{**same, **(changes[seed] if changes else {})}) for seed in range(3))


def verdict(claim: str, **roles: tuple[Report, ...]) -> str:
    return str(judge_claim(CLAIM[claim], Evidence(runs=roles)).verdict)


HOURS = [{"seconds": hours * 3600.0} for hours in (1.0, 4.0, 9.0)]
DEAR = [{"usd": 10.0}, {"usd": 100.0}, {"usd": 250.0}]


@pytest.mark.parametrize("claim", ["M1", "M2", "M5"])
def test_a_claim_on_time_needs_a_short_time_and_a_better_adapter(make: Make, claim: str) -> None:
    assert verdict(claim, default=seeds(make)) == "held"
    assert verdict(claim, default=seeds(make, seconds=30 * 3600.0)) == "failed"
    unsure = [{"seconds": one["seconds"] * (6 if claim == "M5" else 1)} for one in HOURS]
    assert verdict(claim, default=seeds(make, *unsure)) == "cannot tell"
    assert verdict(claim, default=(make(),)) == "cannot tell", "one seed has no interval"
    assert verdict(claim, default=seeds(make, verdict="cannot tell")) == "cannot tell", "fast, and of no use"
    assert verdict(claim, default=seeds(make, few_shot_verdict="worse")) == "failed"


def test_memory_is_part_of_the_second_claim(make: Make) -> None:
    assert verdict("M2", default=seeds(make, memory=40_000_000_000)) == "failed"
    peaks = [{"memory": size} for size in (8_000_000_000, 16_000_000_000, 30_000_000_000)]
    assert verdict("M2", default=seeds(make, *peaks)) == "cannot tell"


@pytest.mark.parametrize(("claim", "gpu"), [("M3", "NVIDIA GeForce RTX 3060"), ("M6", "NVIDIA GeForce RTX 4090")])
def test_claims_on_a_device_are_out_of_reach_without_it(make: Make, claim: str, gpu: str) -> None:
    assert verdict(claim, default=seeds(make)) == "out of reach"
    assert verdict(claim, default=seeds(make, device=gpu)) == "held"
    assert verdict(claim, default=seeds(make, device=gpu, seconds=9 * 3600.0)) == "failed"
    assert verdict(claim, default=seeds(make, *HOURS, device=gpu)) == "cannot tell"


def test_a_claim_on_money_is_judged_by_the_rental(make: Make) -> None:
    for claim, dear in (("M4", 300.0), ("M18", 101.0)):
        assert verdict(claim, default=seeds(make)) == "held"
        assert verdict(claim, default=seeds(make, usd=dear)) == "failed"
        assert verdict(claim, default=seeds(make, usd=None)) == "cannot tell"
    assert verdict("M4", default=seeds(make, *DEAR)) == "cannot tell"


def ranks(make: Make, **rates: float) -> dict[str, tuple[Report, ...]]:
    of = {"rank1": 305_280, "rank4": 1_221_120, "lora": 4_884_480, "rank64": 19_537_920}
    return {role: seeds(make, rate=rates.get(role, 0.9), parameters=count) for role, count in of.items()}


def test_the_size_of_the_update_is_that_of_the_smallest_rank_that_is_good_enough(make: Make) -> None:
    assert verdict("M7", **ranks(make)) == "failed", "441 times at rank 1"
    small = {"rank1": seeds(make, parameters=100_000)}
    assert verdict("M7", **{**ranks(make), **small}) == "held"
    unsure = {"rank1": seeds(make, rate=0.82, parameters=100_000)}
    assert verdict("M7", **{**ranks(make), **unsure}) == "cannot tell", "rank 1 may be good enough, and the next rank is too large"


def test_lora_has_to_be_as_good_as_full_fine_tuning_at_half_of_its_time_and_money(make: Make) -> None:
    full = seeds(make, train_seconds=1500.0, seconds=2400.0, usd=1.6)
    assert verdict("M8", lora=seeds(make, usd=0.7, seconds=1000.0), full=full) == "held"
    assert verdict("M8", lora=seeds(make, rate=0.5), full=full) == "failed"
    assert verdict("M8", lora=seeds(make, train_seconds=1400.0), full=full) == "failed"
    assert verdict("M8", lora=seeds(make, rate=0.82, usd=0.7, seconds=1000.0), full=full) == "cannot tell"
    times = [{"train_seconds": seconds} for seconds in (500.0, 750.0, 1000.0)]
    assert verdict("M8", lora=seeds(make, *times, usd=None), full=seeds(make, train_seconds=1500.0, usd=None)) == "cannot tell"


@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        ({"device": "NVIDIA L4"}, "different machines"),
        ({"gflops": 400.0}, "150 and 400 GFLOP/s"),
        ({"gflops": None}, "not recorded"),
        ({"shared": True}, "other runs shared the machine"),
        ({"waited": 0.5}, "waited for a CPU for 50% of its runnable time"),
    ],
)
def test_times_of_different_machines_are_not_compared(make: Make, elsewhere: dict[str, Any], said: str) -> None:
    full, cheap = seeds(make, train_seconds=1500.0, **elsewhere), seeds(make, train_seconds=100.0)
    for claim, roles in (("M8", {"lora": cheap, "full": full}), ("M11", {"b_on_a": cheap, "lora": full})):
        finding = judge_claim(CLAIM[claim], Evidence(runs=roles))
        assert finding.verdict == "cannot tell" and said in finding.lacking


def test_only_seeds_timed_on_one_machine_alone_count_for_time_and_all_of_them_for_the_score(make: Make) -> None:
    def three(train_seconds: float, shared_seconds: float) -> tuple[Report, ...]:
        alone = {"train_seconds": train_seconds}
        return seeds(make, alone, alone, {"train_seconds": shared_seconds, "shared": True, "device": "NVIDIA L4"})

    full = three(1500.0, 10.0)
    finding = judge_claim(CLAIM["M8"], Evidence(runs={"lora": three(500.0, 100.0), "full": full}))
    score, time, _ = finding.measured
    assert (score.seeds, time.seeds, time.value) == (3, 2, pytest.approx(1 / 3))
    assert finding.verdict == "held" and "timings of 2 of 3 seeds are comparable: other runs shared the machine" in finding.lacking
    assert judge_claim(CLAIM["M8"], Evidence(runs={"lora": three(1000.0, 1.0), "full": full})).verdict == "failed"


def test_a_stack_keeps_the_old_families_and_learns_the_new_ones_and_an_increment_is_cheap(make: Make) -> None:
    alone, first = seeds(make), seeds(make, rate={"calendar": 0.1, "route": 0.1, "edit": 0.9, "sql": 0.9})
    lost_old = {"calendar": 0.9, "route": 0.9, "edit": 0.5, "sql": 0.5}
    assert verdict("M9", a=first, b=alone, b_on_a=alone) == "held"
    assert verdict("M9", a=first, b=alone, b_on_a=seeds(make, rate=lost_old)) == "failed"
    assert verdict("M9", a=first, b=alone, b_on_a=first) == "failed", "nothing new was learnt"
    assert verdict("M9", a=first, b=alone, b_on_a=seeds(make, rate=0.82)) == "cannot tell"
    cheap, dear = seeds(make, train_seconds=100.0), seeds(make, train_seconds=500.0)
    assert verdict("M11", lora=alone, b_on_a=cheap) == "held"
    assert verdict("M11", lora=alone, b_on_a=dear) == "failed"
    assert verdict("M11", lora=alone, b_on_a=seeds(make, rate=0.8, train_seconds=100.0)) == "cannot tell"


def test_nine_modules_of_ten_need_a_higher_rank_in_the_sum(make: Make) -> None:
    runs = {"a": seeds(make), "b": seeds(make)}
    for higher, expected in ((210, "held"), (189, "held"), (188, "failed")):
        modules = [ModuleRanks(module=str(n), a=16, b=16, sum=32 if n < higher else 16) for n in range(210)]
        summed = SumRanks(threshold=1e-3, a_sha256="", b_sha256="", modules=tuple(modules))
        assert judge_claim(CLAIM["M10"], Evidence(runs=runs, ranks=summed)).verdict == expected
    assert verdict("M10", **runs) == "cannot tell"


@pytest.mark.parametrize(("claim", "role"), [("M12", "noisy25"), ("M17", "gemma")])
def test_a_gain_has_to_exceed_zero_with_its_whole_interval(make: Make, claim: str, role: str) -> None:
    def other(rate: float) -> tuple[Report, ...]:
        return seeds(make, rate=rate, few_shot=rate)

    assert verdict(claim, lora=seeds(make), **{role: other(0.5)}) == "held"
    assert verdict(claim, lora=seeds(make, rate=0.5), **{role: other(0.9)}) == "failed"
    assert verdict(claim, lora=seeds(make), **{role: other(0.9)}) == "cannot tell"


def test_half_of_the_rows_may_score_lower_by_less_than_the_margin(make: Make) -> None:
    for rate, word in ((0.9, "held"), (0.5, "failed"), (0.8, "cannot tell")):
        assert verdict("M13", default=seeds(make), lora=seeds(make, rate=rate)) == word
    unlike = [{"rate": rate} for rate in (0.96, 0.86, 0.70)]
    assert verdict("M13", default=seeds(make), lora=seeds(make, *unlike)) == "cannot tell", "seeds that disagree"


def test_an_adapter_is_distributable_if_it_is_small_and_reads_back_exactly(make: Make) -> None:
    assert verdict("M14", default=seeds(make)) == "held"
    assert verdict("M14", default=seeds(make, bytes=30_000_000)) == "failed"
    assert verdict("M14", default=seeds(make, reload_error=0.002)) == "failed"
    assert verdict("M14", default=seeds(make, reload_error=None)) == "cannot tell"


def test_a_price_that_nobody_paid_is_said_to_be_one(make: Make) -> None:
    finding = judge_claim(CLAIM["M4"], Evidence(runs={"default": seeds(make, usd=None, as_if=2.0)}))
    assert finding.verdict == "held" and finding.lacking == "nobody paid this: as if rented as small.large"
    assert judge_claim(CLAIM["M4"], Evidence(runs={"default": seeds(make, usd=None, as_if=200.0)})).verdict == "failed"
    unpriced = judge_claim(CLAIM["M4"], Evidence(runs={"default": seeds(make, usd=None, seconds=7200.0)}))
    assert unpriced.verdict == "cannot tell" and unpriced.shown[0].value == pytest.approx(50.0), "100 USD in 2 h"


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
    findings = judge(CLAIMS, Evidence(runs={**roles, **extra, "lora": lora}))
    alone = judge(CLAIMS, Evidence(runs={**roles, "rank1": extra["rank1"], "lora": lora}))
    assert [finding.verdict for finding in findings] == [finding.verdict for finding in alone]
    values = {shown.what: shown.value for finding in findings for shown in finding.shown}
    assert values["score, rank1 minus lora on calendar, the hardest family"] == pytest.approx(-0.7)
    assert values["score, a_plus_b minus b on B's families"] == pytest.approx(-0.8)
    assert values["score, lora minus noisy50"] == pytest.approx(0.875 - 0.2)
    assert "score of quarter" in values
    assert values["score, default minus gemma, both adapted, on the same rows"] == pytest.approx(0.0)


def test_without_runs_every_claim_is_open_or_out_of_reach_and_says_why() -> None:
    for finding in judge(CLAIMS, Evidence(runs={})):
        expected = "out of reach" if finding.id in ("M15", "M16") else "cannot tell"
        assert finding.verdict == expected and finding.lacking


def test_a_score_difference_is_paired_within_seeds_and_needs_one_in_common(make: Make) -> None:
    runs = {"lora": (make(0.9, seed=0),), "full": (make(0.4, seed=0), make(0.9, seed=1))}
    difference = Evidence(runs=runs).difference("lora", "full")
    assert difference.value == pytest.approx(0.5) and difference.seeds == 1
    assert difference.interval is not None and difference.interval[0] < 0.5 < difference.interval[1]
    apart = Evidence(runs={"lora": (make(seed=0),), "full": (make(seed=1),)}).difference("lora", "full")
    assert (apart.value, apart.interval, apart.seeds) == (None, None, 0)
    few = Evidence(runs={"lora": (make(0.75, per_family=1),), "full": (make(0.0, per_family=1),)}).difference("lora", "full")
    assert few.value is not None and few.interval is None, "four groups are too few for an interval"


def test_a_claim_whose_limits_were_changed_is_judged_under_both(make: Make) -> None:
    first = CLAIM["M1"]
    changed = first.model_copy(update={"limits": {"seconds": 1.0}, "looked_at": first.limits})
    finding = judge_claim(changed, Evidence(runs={"default": seeds(make)}))
    assert finding.verdict == "failed" and finding.changed_after_looking is not None
    assert (finding.changed_after_looking.limits, finding.changed_after_looking.verdict) == (first.limits, "held")
