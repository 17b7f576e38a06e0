"""From reports to a verdict on each claim of claims.py: pure functions, one a claim or one a kind of claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nomoat.claims import CLAIMS, MARGIN, NEW_FAMILIES, Claim
from nomoat.report_schema import Report
from nomoat.verdicts import Measured, Word, all_of, by_seed, machines_apart, over_seeds, ratio_over_seeds, score_less

RANKS = {"rank1": 1, "rank4": 4, "lora": 16, "rank64": 64}
CONSUMER = "GeForce"  # in NVIDIA's names of the GPUs it sells to consumers


@dataclass(frozen=True)
class Evidence:
    """Reports by role, one for each seed, and for M10 how many modules' summed update has a higher rank, of how many."""

    runs: dict[str, tuple[Report, ...]]
    higher_rank: tuple[int, int] | None = None

    def of(self, role: str) -> tuple[Report, ...]:
        """The reports of a role; none is an empty tuple."""
        return self.runs.get(role, ())


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on; `lacking` says what has to be there before more can be told."""

    claim: Claim
    word: Word
    measured: tuple[Measured, ...] = ()
    lacking: str = ""


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """All claims, in order."""
    return tuple(judge_claim(claim, evidence) for claim in CLAIMS)


def judge_claim(claim: Claim, evidence: Evidence) -> Finding:
    """One claim: out of reach, cannot tell for want of runs, or judged."""
    if claim.out_of_reach:
        return Finding(claim, "out of reach", lacking=claim.out_of_reach)
    missing = [role for role in claim.runs if not evidence.of(role)]
    if missing:
        return Finding(claim, "cannot tell", lacking=f"no run of {', '.join(missing)}")
    return _JUDGES[claim.id](claim, evidence)


def _compound(claim: Claim, parts: Sequence[Measured], *further: Word, lacking: str = "") -> Finding:
    return Finding(claim, all_of([*(part.word for part in parts), *further]), tuple(parts), lacking)


def _at_most(what: str, values: Sequence[float], unit: str, limit: float) -> Measured:
    middle, interval = over_seeds(values)
    return Measured(what, middle, interval, unit, limit, above=False, seeds=len(values))


def _better(runs: Sequence[Report]) -> Word:
    """Whether every run's adapter is better than the base and than the base with examples."""
    words = []
    for report in runs:
        few_shot = report.comparison.few_shot.get(report.comparison.primary)
        words += [report.comparison.verdict, few_shot.verdict if few_shot else None]
    if all(word == "better" for word in words):
        return "held"
    return "failed" if "worse" in words else "cannot tell"


def _time(claim: Claim, evidence: Evidence) -> Finding:
    runs = evidence.of("default")
    return _compound(claim, [_at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])], _better(runs))


def _time_and_memory(claim: Claim, evidence: Evidence) -> Finding:
    runs = evidence.of("default")
    peaks = [float(run.cost.peak_device_bytes or run.cost.peak_memory_bytes or math.inf) for run in runs]
    time = _at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])
    return _compound(claim, [time, _at_most("peak memory", peaks, "bytes", claim.limits["bytes"])], _better(runs))


def _time_on(named: str) -> Callable[[Claim, Evidence], Finding]:
    def judged(claim: Claim, evidence: Evidence) -> Finding:
        names = sorted({str((run.provenance.get("device") or {}).get("name")) for run in evidence.of("default")})
        if not all(named in name for name in names):
            return Finding(claim, "out of reach", lacking=f"the runs were made on {', '.join(names)}")
        return _time(claim, evidence)

    return judged


def _price(claim: Claim, evidence: Evidence) -> Finding:
    runs = evidence.of("default")
    prices = [run.cost.usd for run in runs]
    if None in prices:
        return Finding(claim, "cannot tell", lacking=next(run.cost.usd_reason for run in runs if run.cost.usd is None))
    return _compound(
        claim, [_at_most("rental", [price for price in prices if price is not None], "USD", claim.limits["usd"])], _better(runs)
    )


def _total_price(claim: Claim, evidence: Evidence) -> Finding:
    runs = {report.run: report for reports in evidence.runs.values() for report in reports}
    unknown = [name for name, report in runs.items() if report.cost.usd is None]
    if unknown:
        return Finding(claim, "cannot tell", lacking=f"{len(unknown)} of {len(runs)} runs have no rental rate")
    total = sum(report.cost.usd or 0.0 for report in runs.values())
    return _compound(
        claim, [Measured("rental of all runs", total, None, "USD", claim.limits["usd"], above=False, seeds=len(runs), exact=True)]
    )


def _size(claim: Claim, evidence: Evidence) -> Finding:
    """The ratio at the smallest rank that is good enough; a rank that may be good enough leaves both readings open."""
    ratios, words = [], []
    for role in sorted(RANKS, key=lambda name: RANKS[name]):
        facts = evidence.of(role)[0].adapter
        ratio = (facts.base_parameters or 0) / (facts.parameters or math.inf)
        measured = Measured(
            f"parameters, base over trained, at rank {RANKS[role]}", ratio, None, "", claim.limits["ratio"], True, 1, exact=True
        )
        good = "held" if role == "lora" else _not_below(evidence, role, "lora", claim).word
        ratios.append(measured)
        words += [] if good == "failed" else [measured.word]
        if good == "held":
            return Finding(claim, words[0] if len(set(words)) == 1 else "cannot tell", tuple(ratios))
    raise AssertionError("rank 16 is as good as itself")


def _not_below(
    evidence: Evidence, role: str, reference: str, claim: Claim, families: Callable[[str], bool] = lambda name: True
) -> Measured:
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    difference, interval = score_less(pairs, families=families)
    what = f"score of {role} less {reference}"
    return Measured(what, difference, interval, "", -claim.limits.get("margin", MARGIN), above=True, seeds=len(pairs))


def _ratio(
    evidence: Evidence, role: str, reference: str, claim: Claim, what: str, value: Callable[[Report], float | None]
) -> Measured | None:
    pairs = by_seed(evidence.of(role), evidence.of(reference))
    values = [(value(one), value(other)) for one, other in pairs]
    if not values or any(not a or not b for a, b in values):
        return None
    middle, interval = ratio_over_seeds([a for a, _ in values if a], [b for _, b in values if b])
    return Measured(f"{what}, {role} over {reference}", middle, interval, "", claim.limits["ratio"], above=False, seeds=len(values))


def _seconds(report: Report) -> float:
    return report.cost.seconds_by_phase.get("train", 0.0)


def _dollars(report: Report) -> float | None:
    """Rental of the training; on one machine the ratio of two of them is that of their seconds, whatever the rate."""
    return None if report.cost.usd is None else report.cost.usd * _seconds(report) / report.cost.seconds


def _fraction_of_full(claim: Claim, evidence: Evidence) -> Finding:
    score = _not_below(evidence, "lora", "full", claim)
    apart = machines_apart([*evidence.of("lora"), *evidence.of("full")])
    time = None if apart else _ratio(evidence, "lora", "full", claim, "time of training", _seconds)
    if time is None:
        return _compound(claim, [score], "cannot tell", lacking=apart or "no seed in common")
    money = _ratio(evidence, "lora", "full", claim, "rental of training", _dollars)
    parts = [score, time] if money is None else [score, time, money]
    note = "" if money is not None else "without a rate: on one machine money is in proportion to time"
    return _compound(claim, parts, lacking=note)


def _is_new(family: str) -> bool:
    return family in NEW_FAMILIES


def _stackable(claim: Claim, evidence: Evidence) -> Finding:
    kept = _not_below(evidence, "b_on_a", "a", claim, families=lambda name: not _is_new(name))
    return _compound(claim, [kept, _not_below(evidence, "b_on_a", "b", claim, families=_is_new)])


def _increment(claim: Claim, evidence: Evidence) -> Finding:
    score = _not_below(evidence, "b_on_a", "lora", claim)
    apart = machines_apart([*evidence.of("b_on_a"), *evidence.of("lora")])
    time = None if apart else _ratio(evidence, "b_on_a", "lora", claim, "time of training", _seconds)
    return _compound(claim, [score], "cannot tell", lacking=apart) if time is None else _compound(claim, [score, time])


def _sum_of_ranks(claim: Claim, evidence: Evidence) -> Finding:
    if evidence.higher_rank is None:
        return Finding(claim, "cannot tell", lacking="the ranks of the two updates and of their sum were not computed")
    higher, modules = evidence.higher_rank
    share = Measured("modules whose sum has a higher rank", higher / modules, None, "", claim.limits["share"], True, 1, exact=True)
    return _compound(claim, [share])


def _gain(role: str, reference: str, other_arm: str = "adapter") -> Callable[[Claim, Evidence], Finding]:
    def judged(claim: Claim, evidence: Evidence) -> Finding:
        ours, theirs = evidence.of(role), evidence.of(reference)
        pairs = by_seed(ours, theirs) if other_arm == "adapter" else [(run, theirs[0]) for run in ours]  # an untrained arm has no seed
        difference, interval = score_less(pairs, other_arm=other_arm)
        what = f"score of {role} less {reference}{'' if other_arm == 'adapter' else ' with examples'}"
        return _compound(claim, [Measured(what, difference, interval, "", claim.limits["gain"], above=True, seeds=len(pairs))])

    return judged


def _half(claim: Claim, evidence: Evidence) -> Finding:
    return _compound(claim, [_not_below(evidence, "lora", "default", claim)])


def _distributed(claim: Claim, evidence: Evidence) -> Finding:
    facts = evidence.of("default")[0].adapter
    share = (facts.bytes or math.inf) / (facts.base_bytes_16bit or 1)
    size = Measured("adapter file over the base in 16 bits", share, None, "", claim.limits["share"], above=False, seeds=1, exact=True)
    checks = {check.name: check.detail for run in evidence.of("default") for check in (run.adapter.gate.checks if run.adapter.gate else [])}
    differs = checks.get("changes the logits", "").rpartition("reloading differs by ")[2]
    equal: Word = "cannot tell" if not differs else "held" if float(differs) == 0 else "failed"
    return _compound(
        claim, [size], equal, lacking="" if equal == "held" else f"read back, its logits differ by {differs or 'what was not recorded'}"
    )


_JUDGES: dict[str, Callable[[Claim, Evidence], Finding]] = {
    "M1": _time,
    "M2": _time_and_memory,
    "M3": _time_on(CONSUMER),
    "M4": _price,
    "M5": _time,
    "M6": _time_on("RTX 4090"),
    "M7": _size,
    "M8": _fraction_of_full,
    "M9": _stackable,
    "M10": _sum_of_ranks,
    "M11": _increment,
    "M12": _gain("lora", "noisy25"),
    "M13": _half,
    "M14": _distributed,
    "M17": _gain("lora", "gemma", other_arm="few_shot"),
    "M18": _total_price,
}
