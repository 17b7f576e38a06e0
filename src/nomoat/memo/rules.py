"""From reports to a verdict on each claim of claims.py: pure functions, one a claim or one a kind of claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nomoat.memo.evidence import (
    NEW_FAMILIES,
    TIER,
    Claim,
    Context,
    Evidence,
    Finding,
    Outcome,
    ThresholdTest,
    at_most,
    better,
    by_seed,
    compound,
    not_below,
    ratio_over_seeds,
    rental,
    score_less,
    shown_less,
    shown_score,
    timed_pairs,
)
from nomoat.reports.schema import Report

# MERGED cost_judges:
# The claims on time, memory, money and size: judged from what the default recipe's runs took, and from all that was spent (M18).

CONSUMER = "GeForce"  # in NVIDIA's names of the GPUs it sells to consumers


def time(claim: Claim, evidence: Evidence) -> Finding:
    """M1, M5: from first command to verdict; shown beside it, what the adapter forgot and how far seeds lie apart."""
    runs = evidence.of("default")
    took = at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])
    return compound(claim, [took], better(runs), shown=(*_forgotten(evidence), *_apart(evidence)))


def _forgotten(evidence: Evidence) -> tuple[Context, ...]:
    pairs = [(run, run) for run in evidence.of("default")]
    difference, interval = score_less(pairs, other_arm="base", tier="retention")
    found = Context("what the base could do before, adapter less base", difference, interval, seeds=len(pairs))
    return () if math.isnan(difference) else (found,)


def _apart(evidence: Evidence) -> tuple[Context, ...]:
    scores = [run.arms["adapter"].tiers.get(run.comparison.primary) for run in evidence.of("default")]
    values = [score.score for score in scores if score is not None and score.score is not None]
    return () if len(values) < 2 else (Context("best seed's score less the worst's", max(values) - min(values), seeds=len(values)),)


def time_and_memory(claim: Claim, evidence: Evidence) -> Finding:
    """M2."""
    runs = evidence.of("default")
    peaks = [float(run.cost.peak_device_bytes or run.cost.peak_memory_bytes or math.inf) for run in runs]
    took = at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])
    return compound(claim, [took, at_most("peak memory", peaks, "bytes", claim.limits["bytes"])], better(runs))


def time_on(named: str) -> Callable[[Claim, Evidence], Finding]:
    """M3, M6: out of reach unless every run was made on a device with `named` in its name."""

    def judged(claim: Claim, evidence: Evidence) -> Finding:
        names = sorted({str(run.provenance.device.name) for run in evidence.of("default")})
        if not all(named in name for name in names):
            return Finding(claim, "out of reach", lacking=f"the runs were made on {', '.join(names)}")
        return time(claim, evidence)

    return judged


def price(claim: Claim, evidence: Evidence) -> Finding:
    """M4; shown beside it, the hourly rate at which the limit would be reached."""
    runs = evidence.of("default")
    prices = [rental(run.cost) for run in runs]
    hours = max(run.cost.seconds for run in runs) / 3600
    even = Context(
        "dollars an hour at which the longest run would reach the limit", claim.limits["usd"] / hours, unit="USD", seeds=len(runs)
    )
    if None in prices:
        reason = next(run.cost.usd_reason for run in runs if rental(run.cost) is None)
        return Finding(claim, "cannot tell", lacking=reason, shown=(even,))
    paid = at_most("rental", [one for one in prices if one is not None], "USD", claim.limits["usd"])
    return compound(claim, [paid], better(runs), lacking=_as_if(runs), shown=(even,))


def _as_if(runs: tuple[Report, ...]) -> str:
    labels = sorted({run.cost.usd_as_if_label or "" for run in runs if run.cost.usd is None})
    return "" if not labels else f"nobody paid this: {', '.join(labels)}"


def total_price(claim: Claim, evidence: Evidence) -> Finding:
    """M18: every run behind the verdict, the failed and the broken-off ones too."""
    costs = {report.run: rental(report.cost) for reports in evidence.runs.values() for report in reports}
    costs |= {one.run: one.usd for one in evidence.spent if one.run not in costs}
    unknown = [run for run, usd in costs.items() if usd is None]
    if unknown:
        return Finding(claim, "cannot tell", lacking=f"{len(unknown)} of {len(costs)} runs have no rental rate")
    total = sum(usd or 0.0 for usd in costs.values())
    reports = tuple(report for reports in evidence.runs.values() for report in reports)
    summed = ThresholdTest("rental of all runs", total, None, "USD", claim.limits["usd"], above=False, seeds=len(costs), exact=True)
    return compound(claim, [summed], lacking=_as_if(reports))


def distributed(claim: Claim, evidence: Evidence) -> Finding:
    """M14: the file's size, and whether the adapter read back from it gives the same logits."""
    facts = evidence.of("default")[0].adapter
    share = (facts.bytes or math.inf) / (facts.base_bytes_16bit or 1)
    size = ThresholdTest("adapter file over the base in 16 bits", share, None, "", claim.limits["share"], above=False, seeds=1, exact=True)
    gates = [run.adapter.gate for run in evidence.of("default") if run.adapter.gate]
    errors = [check.reload_error if (check := gate.check("changes the logits")) else None for gate in gates]
    known = [error for error in errors if error is not None]
    equal: Outcome = "cannot tell" if len(known) < len(errors) or not known else "held" if max(known) == 0 else "failed"
    lacking = (
        "" if equal == "held" else f"read back, its logits differ by {max(known):.3g}" if known else "the reload error was not recorded"
    )
    return compound(claim, [size], equal, lacking=lacking)


RANKS = {"rank1": 1, "rank4": 4, "lora": 16, "rank64": 64}
BOTH = "a_plus_b"  # the two adapters added, not trained


def judge(claims: Sequence[Claim], evidence: Evidence) -> tuple[Finding, ...]:
    """All claims, in order."""
    return tuple(judge_claim(claim, evidence) for claim in claims)


def judge_claim(claim: Claim, evidence: Evidence) -> Finding:
    """One claim: out of reach, cannot tell for want of runs, or judged."""
    if claim.out_of_reach:
        return Finding(claim, "out of reach", lacking=claim.out_of_reach)
    missing = [role for role in claim.runs if not evidence.of(role)]
    if missing:
        return Finding(claim, "cannot tell", lacking=f"no run of {', '.join(missing)}")
    return _JUDGES[claim.id](claim, evidence)


def _size(claim: Claim, evidence: Evidence) -> Finding:
    """The ratio at the smallest rank that is good enough; a rank that may be good enough leaves both readings open."""
    ratios, words = [], []
    shown = _by_rank(evidence)
    for role in sorted(RANKS, key=lambda name: RANKS[name]):
        facts = evidence.of(role)[0].adapter
        ratio = (facts.base_parameters or 0) / (facts.parameters or math.inf)
        measured = ThresholdTest(
            f"parameters, base over trained, at rank {RANKS[role]}", ratio, None, "", claim.limits["ratio"], True, 1, exact=True
        )
        good = "held" if role == "lora" else not_below(evidence, role, "lora", claim).word
        ratios.append(measured)
        words += [] if good == "failed" else [measured.word]
        if good == "held":
            return Finding(claim, words[0] if len(set(words)) == 1 else "cannot tell", tuple(ratios), shown=shown)
    raise AssertionError("rank 16 is as good as itself")


def _by_rank(evidence: Evidence) -> tuple[Context, ...]:
    """Each rank's score less rank 16's; and on the family that rank 16 finds hardest, where too low a rank would show first."""
    others = [role for role in RANKS if role != "lora"]
    shown = [one for role in others for one in shown_less(evidence, role, "lora")]
    families = _family_scores(evidence.of("lora"))
    if families:
        hardest = min(families, key=lambda name: families[name])
        shown += shown_less(evidence, "rank1", "lora", families=lambda name: name == hardest, on=f" on {hardest}, its lowest family")
    return tuple(shown)


def _family_scores(runs: tuple[Report, ...]) -> dict[str, float]:
    """Mean over rows and runs of the adapter's score by family, of those that it can do at all."""
    scores: dict[str, list[float]] = {}
    for row in (row for run in runs for row in run.rows if row.tier == TIER):
        scores.setdefault(row.family, []).append(row.values.get("adapter") or 0.0)
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    return {name: mean for name, mean in means.items() if mean > 0}


Pairs = list[tuple[Report, Report]]


def _timed(evidence: Evidence, role: str, reference: str) -> tuple[Pairs, str]:
    return timed_pairs(by_seed(evidence.of(role), evidence.of(reference)))


def _ratio(pairs: Pairs, claim: Claim, what: str, value: Callable[[Report], float | None]) -> ThresholdTest | None:
    """Of each pair's first run over its second; None where there is no pair, or a value was not measured."""
    values = [(value(one), value(other)) for one, other in pairs]
    if not values or any(not a or not b for a, b in values):
        return None
    middle, interval = ratio_over_seeds([a for a, _ in values if a], [b for _, b in values if b])
    return ThresholdTest(what, middle, interval, "", claim.limits["ratio"], above=False, seeds=len(values))


def _seconds(report: Report) -> float:
    return report.cost.seconds_by_phase.get("train", 0.0)


def _dollars(report: Report) -> float | None:
    """Rental of the training; on one machine the ratio of two of them is that of their seconds, whatever the rate."""
    paid = rental(report.cost)
    return None if paid is None else paid * _seconds(report) / report.cost.seconds


def _memory(report: Report) -> float | None:
    return report.cost.peak_device_bytes or report.cost.peak_memory_bytes


def _fraction_of_full(claim: Claim, evidence: Evidence) -> Finding:
    score = not_below(evidence, "lora", "full", claim)
    pairs, left_out = _timed(evidence, "lora", "full")
    time = _ratio(pairs, claim, "time of training, lora over full", _seconds)
    if time is None:
        return compound(claim, [score], "cannot tell", lacking=left_out)
    money = _ratio(pairs, claim, "rental of training, lora over full", _dollars)
    parts = [score, time] if money is None else [score, time, money]
    precisions = {role: sorted({str(run.provenance.dtype) for run in evidence.of(role)}) for role in ("lora", "full")}
    note = f"LoRA in {', '.join(precisions['lora'])}, full fine-tuning in {', '.join(precisions['full'])}"
    note += "" if money is not None else "; without a rate, money is in proportion to time on one machine"
    note += f"; {left_out}" if left_out else ""
    memory = _ratio(pairs, claim, "peak memory of the whole run, lora over full", _memory)
    shown = () if memory is None else (Context(memory.what, memory.value, memory.interval, seeds=memory.seeds),)
    return compound(claim, parts, lacking=note, shown=shown)


def _is_new(family: str) -> bool:
    return family in NEW_FAMILIES


def _is_old(family: str) -> bool:
    return not _is_new(family)


def _stackable(claim: Claim, evidence: Evidence) -> Finding:
    """One trained on top of the other; shown beside it, the two added without training."""
    old, new = " on A's families", " on B's families"
    parts = [
        not_below(evidence, "b_on_a", "a", claim, families=_is_old, on=old),
        not_below(evidence, "b_on_a", "b", claim, families=_is_new, on=new),
    ]
    added = (*shown_less(evidence, BOTH, "a", families=_is_old, on=old), *shown_less(evidence, BOTH, "b", families=_is_new, on=new))
    return compound(claim, parts, shown=added)


def _increment(claim: Claim, evidence: Evidence) -> Finding:
    score = not_below(evidence, "b_on_a", "lora", claim)
    pairs, left_out = _timed(evidence, "b_on_a", "lora")
    time = _ratio(pairs, claim, "time of training, b_on_a over lora", _seconds)
    return compound(claim, [score], "cannot tell", lacking=left_out) if time is None else compound(claim, [score, time], lacking=left_out)


def _sum_of_ranks(claim: Claim, evidence: Evidence) -> Finding:
    if evidence.higher_rank is None:
        return Finding(claim, "cannot tell", lacking="the ranks of the two updates and of their sum were not computed")
    higher, modules = evidence.higher_rank
    share = ThresholdTest("modules whose sum has a higher rank", higher / modules, None, "", claim.limits["share"], True, 1, exact=True)
    return compound(claim, [share])


def _gain(role: str, reference: str, other_arm: str = "adapter") -> Callable[[Claim, Evidence], Finding]:
    def judged(claim: Claim, evidence: Evidence) -> Finding:
        ours, theirs = evidence.of(role), evidence.of(reference)
        pairs = by_seed(ours, theirs) if other_arm == "adapter" else [(run, theirs[0]) for run in ours]  # an untrained arm has no seed
        difference, interval = score_less(pairs, other_arm=other_arm)
        what = f"score of {role} less {reference}{'' if other_arm == 'adapter' else ' with examples'}"
        gained = ThresholdTest(what, difference, interval, "", claim.limits["gain"], above=True, seeds=len(pairs))
        if other_arm == "adapter":
            shown = shown_less(evidence, role, "noisy50")
        else:
            shown = shown_less(evidence, "default", reference, on=", both adapted, on the same rows")
        return compound(claim, [gained], shown=shown)

    return judged


def _half(claim: Claim, evidence: Evidence) -> Finding:
    return compound(claim, [not_below(evidence, "lora", "default", claim)], shown=shown_score(evidence, "quarter"))


_JUDGES: dict[str, Callable[[Claim, Evidence], Finding]] = {
    "M1": time,
    "M2": time_and_memory,
    "M3": time_on(CONSUMER),
    "M4": price,
    "M5": time,
    "M6": time_on("RTX 4090"),
    "M7": _size,
    "M8": _fraction_of_full,
    "M9": _stackable,
    "M10": _sum_of_ranks,
    "M11": _increment,
    "M12": _gain("lora", "noisy25"),
    "M13": _half,
    "M14": distributed,
    "M17": _gain("lora", "gemma", other_arm="few_shot"),
    "M18": total_price,
}
