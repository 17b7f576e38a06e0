"""The rule of each claim: from published reports to a verdict, as recipes/memo/claims.yaml words it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nomoat.memo.evidence import TIER, Claim, EarlierLimits, Evidence, Finding, Measurement, Pairs, better, conclude, over_seeds, rental
from nomoat.reports.readme_tables import seeds_gain
from nomoat.reports.schema import Report
from nomoat.runs.costs import WAITING

NEW_FAMILIES = ("calendar", "route")  # B, the families learnt later (M9, M11); A is every other family
SAME_SPEED = 1.25  # timings are not compared between machines whose measured rates differ by more than this factor
RANKS = {"rank1": 1, "rank4": 4, "lora": 16, "rank64": 64}
DEVICES = {"M3": "GeForce", "M6": "RTX 4090"}  # in the names of the devices; NVIDIA calls the GPUs that it sells to consumers GeForce


def judge(claims: Sequence[Claim], evidence: Evidence) -> tuple[Finding, ...]:
    """The findings on all claims, in order."""
    return tuple(judge_claim(claim, evidence) for claim in claims)


def judge_claim(claim: Claim, evidence: Evidence) -> Finding:
    """The finding on one claim; if its limits were changed after a look at the results, with the verdict under the earlier ones."""
    finding = _apply_rule(claim, evidence)
    earlier = None
    if claim.looked_at is not None:
        before = _apply_rule(claim.model_copy(update={"limits": claim.looked_at}), evidence)
        earlier = EarlierLimits(limits=claim.looked_at, verdict=before.verdict)
    seeds = min((len(evidence.of(role)) for role in claim.runs), default=0)
    return finding.model_copy(update={"seeds": seeds, "changed_after_looking": earlier})


def _apply_rule(claim: Claim, evidence: Evidence) -> Finding:
    if claim.out_of_reach:
        return conclude(claim, [], "out of reach", note=claim.out_of_reach)
    missing = [role for role in claim.runs if not evidence.of(role)]
    if missing:
        return conclude(claim, [], "cannot tell", note=f"no run of {', '.join(missing)}")
    return RULES[claim.id](claim, evidence)


def _time(claim: Claim, evidence: Evidence) -> Finding:
    """M1, M5. Shown: what the adapter forgot, and the spread over seeds."""
    runs = evidence.of("default")
    test = over_seeds("total time", [run.cost.seconds for run in runs], "s").test(claim.limits["seconds"], above=False)
    shown = []
    if forgotten := seeds_gain(runs, "retention"):
        what = "score on what the base could do before, adapter minus base"
        shown.append(Measurement(what=what, value=forgotten.difference, interval=forgotten.interval, seeds=len(runs)))
    tiers = [run.arms["adapter"].tiers.get(run.comparison.primary) for run in runs]
    scores = [tier.score for tier in tiers if tier and tier.score is not None]
    if len(scores) > 1:
        shown.append(Measurement(what="score, best seed minus worst seed", value=max(scores) - min(scores), seeds=len(scores)))
    return conclude(claim, [test], better(runs), shown=shown)


def _time_on_device(claim: Claim, evidence: Evidence) -> Finding:
    """M3, M6: out of reach unless every run was made on a device of that name."""
    names = sorted({str(run.provenance.device.name) for run in evidence.of("default")})
    if not all(DEVICES[claim.id] in name for name in names):
        return conclude(claim, [], "out of reach", note=f"the runs were made on {', '.join(names)}")
    return _time(claim, evidence)


def _time_and_memory(claim: Claim, evidence: Evidence) -> Finding:
    """M2."""
    runs = evidence.of("default")
    time = over_seeds("total time", [run.cost.seconds for run in runs], "s").test(claim.limits["seconds"], above=False)
    memory = over_seeds("peak memory", [_memory(run) for run in runs], "bytes").test(claim.limits["bytes"], above=False)
    return conclude(claim, [time, memory], better(runs))


def _price(claim: Claim, evidence: Evidence) -> Finding:
    """M4. Shown: the hourly rate at which the limit would be reached."""
    runs, limit = evidence.of("default"), claim.limits["usd"]
    what, hours = "hourly rate at which the longest run would reach the limit", max(run.cost.seconds for run in runs) / 3600
    rate = Measurement(what=what, value=limit / hours, unit="USD", seeds=len(runs))
    price = over_seeds("rental", [rental(run.cost) for run in runs], "USD")
    if price.value is None:
        reason = next(run.cost.usd_reason for run in runs if rental(run.cost) is None)
        return conclude(claim, [], "cannot tell", note=reason, shown=[rate])
    return conclude(claim, [price.test(limit, above=False)], better(runs), note=_as_if_rented(runs), shown=[rate])


def _total_price(claim: Claim, evidence: Evidence) -> Finding:
    """M18: every run behind the verdict; those without a report are priced by spent.json."""
    reports = [report for reports in evidence.runs.values() for report in reports]
    costs = {report.run: rental(report.cost) for report in reports}
    costs |= {spent.run: spent.usd for spent in evidence.spent if spent.run not in costs}
    known = [usd for usd in costs.values() if usd is not None]
    if len(known) < len(costs):
        return conclude(claim, [], "cannot tell", note=f"{len(costs) - len(known)} of {len(costs)} runs have no rental rate")
    total = Measurement(what="rental of all runs", value=sum(known), unit="USD", seeds=len(costs))
    return conclude(claim, [total.test(claim.limits["usd"], above=False, exact=True)], note=_as_if_rented(reports))


def _as_if_rented(runs: Sequence[Report]) -> str:
    labels = sorted({run.cost.usd_as_if_label or "" for run in runs if run.cost.usd is None})
    return f"nobody paid this: as if rented as {'; '.join(labels)}" if labels else ""


def _distributable(claim: Claim, evidence: Evidence) -> Finding:
    """M14: the size of the file, and whether the adapter read back from it gives the same logits."""
    runs = evidence.of("default")
    share = _quotient(runs[0].adapter.bytes, runs[0].adapter.base_bytes_16bit)
    size = Measurement(what="adapter file over base in 16 bits", value=share).test(claim.limits["share"], above=False, exact=True)
    checks = [run.adapter.gate.check("changes the logits") for run in runs if run.adapter.gate]
    errors = [check.reload_error for check in checks if check and check.reload_error is not None]
    if not errors or len(errors) < len(checks):
        return conclude(claim, [size], "cannot tell", note="the reload error was not recorded")
    if max(errors) > 0:
        return conclude(claim, [size], "failed", note=f"read back, its logits differ by {max(errors):.3g}")
    return conclude(claim, [size])


def _update_size(claim: Claim, evidence: Evidence) -> Finding:
    """M7: the ratio at the smallest rank that is good enough; a rank that may be good enough leaves both readings open.

    Shown: each rank's score against rank 16's, and rank 1's on the family that rank 16 finds hardest, where too low a rank shows first.
    """
    tests, verdicts = [], []
    for role, rank in RANKS.items():
        adapter = evidence.of(role)[0].adapter
        times = _quotient(adapter.base_parameters, adapter.parameters)
        size = Measurement(what=f"parameters, base over trained, at rank {rank}", value=times)
        tests.append(size.test(claim.limits["ratio"], above=True, exact=True))
        good = "held" if role == "lora" else evidence.difference(role, "lora").test(-claim.limits["margin"], above=True).verdict
        verdicts += [] if good == "failed" else [tests[-1].verdict]
        if good == "held":
            break
    shown = [evidence.difference(role, "lora") for role in RANKS if role != "lora"]
    scores: dict[str, list[float]] = {}
    for row in (row for run in evidence.of("lora") for row in run.rows if row.tier == TIER):
        scores.setdefault(row.family, []).append(row.values.get("adapter") or 0.0)
    means = {family: sum(values) / len(values) for family, values in scores.items() if any(values)}
    if means:
        hardest = min(means, key=lambda family: means[family])
        shown.append(evidence.difference("rank1", "lora", families=lambda name: name == hardest, on=f" on {hardest}, the hardest family"))
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "cannot tell"
    return conclude(claim, tests, shown=shown).model_copy(update={"verdict": verdict})


def _quotient(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _fraction_of_full(claim: Claim, evidence: Evidence) -> Finding:
    """M8. Shown: the ratio of peak memories."""
    score = evidence.difference("lora", "full").test(-claim.limits["margin"], above=True)
    pairs, obstacle = _comparable_timings(evidence.pairs("lora", "full"))
    time = _ratio("training time, lora over full", pairs, _train_seconds)
    if time.value is None:
        return conclude(claim, [score], "cannot tell", note=obstacle)
    money = _ratio("rental of training, lora over full", pairs, _train_usd)
    lora, full = (", ".join(sorted({str(run.provenance.dtype) for run in evidence.of(role)})) for role in ("lora", "full"))
    notes = [f"LoRA in {lora}, full fine-tuning in {full}"]
    notes += [] if money.value is not None else ["without a rate, cost is proportional to time on one machine"]
    notes += [obstacle] if obstacle else []
    tests = [value.test(claim.limits["ratio"], above=False) for value in (time, money) if value.value is not None]
    memory = _ratio("peak memory of the run, lora over full", pairs, _memory)
    return conclude(claim, [score, *tests], note="; ".join(notes), shown=[memory])


def _comparable_timings(pairs: Pairs) -> tuple[Pairs, str]:
    """The pairs whose timings may be compared, and why the others' may not."""
    obstacles = [_timing_obstacle(pair) for pair in pairs]
    timed = [pair for pair, obstacle in zip(pairs, obstacles, strict=True) if not obstacle]
    reasons = "; ".join(sorted({obstacle for obstacle in obstacles if obstacle}))
    note = f"timings of {len(timed)} of {len(pairs)} seeds are comparable: {reasons}" if reasons else ""
    return timed, note if pairs else "no seed in common"


def _timing_obstacle(runs: Sequence[Report]) -> str:
    """Why the runs' timings are not comparable, or ''."""
    if any(run.shared for run in runs):
        return "other runs shared the machine"
    waited = max(run.cost.waited_share or 0.0 for run in runs)
    if waited >= WAITING:
        return f"a run waited for a CPU for {waited:.0%} of its runnable time"
    machines = sorted({f"{run.provenance.device.name} with {run.provenance.threads} threads" for run in runs})
    if len(machines) > 1:
        return f"the runs were made on different machines: {', '.join(machines)}"
    rates = [run.provenance.matrix_gflops or 0.0 for run in runs]
    if not min(rates):
        return "the speed of their machines was not recorded"
    if max(rates) > SAME_SPEED * min(rates):
        return f"their machines have the same name but {min(rates):g} and {max(rates):g} GFLOP/s"
    return ""


def _ratio(what: str, pairs: Pairs, value: Callable[[Report], float | None]) -> Measurement:
    """The geometric mean over pairs of the first run's value over the second's; unknown if a value is unknown or zero."""
    ratios = [_quotient(value(one) or None, value(other)) for one, other in pairs]
    return over_seeds(what, ratios, geometric=True)


def _train_seconds(report: Report) -> float:
    return report.cost.seconds_by_phase.get("train", 0.0)


def _train_usd(report: Report) -> float | None:
    """Rental of the training's share of the run; on one machine the ratio of two of them is that of their seconds, at any rate."""
    usd = rental(report.cost)
    return None if usd is None else usd * _train_seconds(report) / report.cost.seconds


def _memory(report: Report) -> float | None:
    return report.cost.peak_device_bytes or report.cost.peak_memory_bytes


def _stackable(claim: Claim, evidence: Evidence) -> Finding:
    """M9: one adapter trained on top of the other. Shown: the two added without training."""

    def on_both(role: str) -> list[Measurement]:
        return [
            evidence.difference(role, "a", families=lambda family: family not in NEW_FAMILIES, on=" on A's families"),
            evidence.difference(role, "b", families=lambda family: family in NEW_FAMILIES, on=" on B's families"),
        ]

    tests = [value.test(-claim.limits["margin"], above=True) for value in on_both("b_on_a")]
    return conclude(claim, tests, shown=on_both("a_plus_b"))


def _sum_of_ranks(claim: Claim, evidence: Evidence) -> Finding:
    """M10."""
    if evidence.ranks is None:
        return conclude(claim, [], "cannot tell", note="the ranks of the updates and of their sum were not computed")
    share = Measurement(what="share of modules whose sum has a higher rank", value=evidence.ranks.share_higher)
    return conclude(claim, [share.test(claim.limits["share"], above=True, exact=True)])


def _increment(claim: Claim, evidence: Evidence) -> Finding:
    """M11."""
    score = evidence.difference("b_on_a", "lora").test(-claim.limits["margin"], above=True)
    pairs, obstacle = _comparable_timings(evidence.pairs("b_on_a", "lora"))
    time = _ratio("training time, b_on_a over lora", pairs, _train_seconds).test(claim.limits["ratio"], above=False)
    if time.value is None:
        return conclude(claim, [score], "cannot tell", note=obstacle)
    return conclude(claim, [score, time], note=obstacle)


def _data_quality(claim: Claim, evidence: Evidence) -> Finding:
    """M12. Shown: the difference from half of the rows with wrong answers."""
    gain = evidence.difference("lora", "noisy25").test(claim.limits["gain"], above=True)
    return conclude(claim, [gain], shown=[evidence.difference("lora", "noisy50")])


def _fewer_rows(claim: Claim, evidence: Evidence) -> Finding:
    """M13. Shown: the score on a quarter of the rows."""
    tiers = [report.arms["adapter"].tiers.get(TIER) for report in evidence.of("quarter")]
    score = over_seeds("score of quarter", [tier.score for tier in tiers if tier])
    if len(tiers) == 1 and tiers[0]:
        score = score.model_copy(update={"interval": tiers[0].interval})
    return conclude(claim, [evidence.difference("lora", "default").test(-claim.limits["margin"], above=True)], shown=[score])


def _smaller_base(claim: Claim, evidence: Evidence) -> Finding:
    """M17. Shown: both bases adapted on the same rows."""
    gain = evidence.difference("lora", "gemma", arm="few_shot", on=" with examples").test(claim.limits["gain"], above=True)
    return conclude(claim, [gain], shown=[evidence.difference("default", "gemma", on=", both adapted, on the same rows")])


RULES: dict[str, Callable[[Claim, Evidence], Finding]] = {
    "M1": _time,
    "M2": _time_and_memory,
    "M3": _time_on_device,
    "M4": _price,
    "M5": _time,
    "M6": _time_on_device,
    "M7": _update_size,
    "M8": _fraction_of_full,
    "M9": _stackable,
    "M10": _sum_of_ranks,
    "M11": _increment,
    "M12": _data_quality,
    "M13": _fewer_rows,
    "M14": _distributable,
    "M17": _smaller_base,
    "M18": _total_price,
}
