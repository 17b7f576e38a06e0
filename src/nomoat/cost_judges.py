"""The claims on time, memory, money and size: judged from what the default recipe's runs took, and from all that was spent (M18)."""

from __future__ import annotations

import math
from collections.abc import Callable

from nomoat.claims import Claim
from nomoat.findings import Evidence, Finding, Shown, at_most, better, compound, rental
from nomoat.report_schema import Report
from nomoat.verdicts import Measured, Word, score_less

CONSUMER = "GeForce"  # in NVIDIA's names of the GPUs it sells to consumers


def time(claim: Claim, evidence: Evidence) -> Finding:
    """M1, M5: from first command to verdict; shown beside it, what the adapter forgot and how far seeds lie apart."""
    runs = evidence.of("default")
    took = at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])
    return compound(claim, [took], better(runs), shown=(*_forgotten(evidence), *_apart(evidence)))


def _forgotten(evidence: Evidence) -> tuple[Shown, ...]:
    pairs = [(run, run) for run in evidence.of("default")]
    difference, interval = score_less(pairs, other_arm="base", tier="retention")
    found = Shown("what the base could do before, adapter less base", difference, interval, seeds=len(pairs))
    return () if math.isnan(difference) else (found,)


def _apart(evidence: Evidence) -> tuple[Shown, ...]:
    scores = [run.arms["adapter"].tiers.get(run.comparison.primary) for run in evidence.of("default")]
    values = [score.score for score in scores if score is not None and score.score is not None]
    return () if len(values) < 2 else (Shown("best seed's score less the worst's", max(values) - min(values), seeds=len(values)),)


def time_and_memory(claim: Claim, evidence: Evidence) -> Finding:
    """M2."""
    runs = evidence.of("default")
    peaks = [float(run.cost.peak_device_bytes or run.cost.peak_memory_bytes or math.inf) for run in runs]
    took = at_most("time in all", [run.cost.seconds for run in runs], "s", claim.limits["seconds"])
    return compound(claim, [took, at_most("peak memory", peaks, "bytes", claim.limits["bytes"])], better(runs))


def time_on(named: str) -> Callable[[Claim, Evidence], Finding]:
    """M3, M6: out of reach unless every run was made on a device with `named` in its name."""

    def judged(claim: Claim, evidence: Evidence) -> Finding:
        names = sorted({str((run.provenance.get("device") or {}).get("name")) for run in evidence.of("default")})
        if not all(named in name for name in names):
            return Finding(claim, "out of reach", lacking=f"the runs were made on {', '.join(names)}")
        return time(claim, evidence)

    return judged


def price(claim: Claim, evidence: Evidence) -> Finding:
    """M4; shown beside it, the hourly rate at which the limit would be reached."""
    runs = evidence.of("default")
    prices = [rental(run.cost) for run in runs]
    hours = max(run.cost.seconds for run in runs) / 3600
    even = Shown("dollars an hour at which the longest run would reach the limit", claim.limits["usd"] / hours, unit="USD", seeds=len(runs))
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
    summed = Measured("rental of all runs", total, None, "USD", claim.limits["usd"], above=False, seeds=len(costs), exact=True)
    return compound(claim, [summed], lacking=_as_if(reports))


def distributed(claim: Claim, evidence: Evidence) -> Finding:
    """M14: the file's size, and whether the adapter read back from it gives the same logits."""
    facts = evidence.of("default")[0].adapter
    share = (facts.bytes or math.inf) / (facts.base_bytes_16bit or 1)
    size = Measured("adapter file over the base in 16 bits", share, None, "", claim.limits["share"], above=False, seeds=1, exact=True)
    checks = {check.name: check.detail for run in evidence.of("default") for check in (run.adapter.gate.checks if run.adapter.gate else [])}
    differs = checks.get("changes the logits", "").rpartition("reloading differs by ")[2]
    equal: Word = "cannot tell" if not differs else "held" if float(differs) == 0 else "failed"
    lacking = "" if equal == "held" else f"read back, its logits differ by {differs or 'what was not recorded'}"
    return compound(claim, [size], equal, lacking=lacking)
