"""The published reports in recipes/reference/, and the tables that the READMEs show of them.

`<recipe>.json` is the report of a real run of that recipe; `<recipe>.<variant>.json` one of the same recipe with another seed
(`seed1`, `seed2`), on fewer rows (`quarter`: of its own; `rows25`: 0.25 of all there are), or on another machine (any other name).
`precision/` holds one recipe in several precisions, `speed/` what `make bench` found. No table is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nomoat.errors import NomoatError
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.reports.compare import compare, paired_tiers
from nomoat.reports.schema import FamilyDifference, Report
from nomoat.stats.intervals import SeedsEstimate, seeds_estimate, standard_error_of

RECIPE_HEAD = """\
| recipe | base | trained on, in | memory | time, in all | rental | score on known / unseen phrasings |
|---|---|---|---|---|---|---|"""
JUDGED = ("values", "phrasing")
MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


@dataclass(frozen=True)
class PublishedRuns:
    """All published runs of one recipe: `seeds` with the main report first, `fewer` on fewer rows, `elsewhere` on other machines."""

    recipe: str
    seeds: tuple[Report, ...]
    quarter: Report | None
    fewer: tuple[Report, ...] = ()
    elsewhere: tuple[Report, ...] = ()

    @property
    def main(self) -> Report:
        """The report shown in full."""
        return self.seeds[0]


def published_runs(folder: Path) -> dict[str, PublishedRuns]:
    """By recipe, every report below `folder`, each checked against its rows when it is read."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem.split("."))
    found: dict[str, dict[str, Report]] = {}
    for path in paths:
        recipe, _, variant = path.stem.partition(".")
        found.setdefault(recipe, {})[variant] = read_report(path)
    for recipe, reports in found.items():
        if "" not in reports:
            raise NomoatError(f"{folder} holds variants of {recipe} but not {recipe}.json, the run they vary")
    return {recipe: _sorted(recipe, reports) for recipe, reports in found.items()}


def _sorted(recipe: str, reports: dict[str, Report]) -> PublishedRuns:
    seeds = {name: report for name, report in reports.items() if name == "" or name.startswith("seed")}
    fewer = {name: report for name, report in reports.items() if name.startswith("rows")}
    elsewhere = tuple(report for name, report in reports.items() if name not in {*seeds, *fewer, "quarter"})
    return PublishedRuns(recipe, tuple(seeds.values()), reports.get("quarter"), tuple(fewer.values()), elsewhere)


def seeds_score(reports: Sequence[Report], tier: str) -> float | None:
    """Mean over runs of the adapter's score on `tier`."""
    scores = [report.arms["adapter"].tiers[tier] for report in reports]
    values = [score.score for score in scores if score is not None and score.score is not None]
    return sum(values) / len(values) if values else None


def seeds_gain(reports: Sequence[Report], tier: str) -> SeedsEstimate | None:
    """The adapter less the base over several seeds; the groups' standard error is the mean of the runs' own."""
    differences = [report.comparison.tiers.get(tier) for report in reports]
    known = [(found.difference, found.interval) for found in differences if found is not None and found.interval is not None]
    if not known:
        return None
    errors = [standard_error_of(interval) for _, interval in known]
    return seeds_estimate([difference for difference, _ in known], sum(errors) / len(errors))


def score_table(found: PublishedRuns) -> str:
    """Tier by tier: base, base with examples, adapter with its interval, and what several seeds say."""
    several = len(found.seeds) > 1
    lines = [
        f"| tier | rows | base | base with 4 examples | adapter (seed {found.main.provenance.get('seed')}) |"
        + (f" mean of {len(found.seeds)} seeds | gain over the base |" if several else ""),
        "|---|---|---|---|---|" + ("---|---|" if several else ""),
    ]
    for tier in fmt.in_tier_order(set(found.main.comparison.tiers)):
        arms = [found.main.arms[name].tiers.get(tier) for name in ("base", "few_shot", "adapter")]
        adapter = arms[2]
        shown = [fmt.number(arm.score) if arm else "-" for arm in arms[:2]]
        own = f"**{fmt.number(adapter.score)}** {fmt.interval(adapter.interval)}" if adapter else "-"
        line = f"| {fmt.tier_words(tier)} | {adapter.n if adapter else 0} | {' | '.join(shown)} | {own} |"
        if several:
            gain = seeds_gain(found.seeds, tier)
            said = f"{fmt.number(gain.difference, signed=True)} {fmt.interval(gain.interval, signed=True)}" if gain else "-"
            line += f" {fmt.number(seeds_score(found.seeds, tier))} | {said} |"
        lines.append(line)
    return "\n".join(lines)


def cost_sentence(report: Report) -> str:
    """What the run took: time in all and in training, speed, memory, money (or what a rental would have been), adapter size."""
    cost, adapter = report.cost, report.adapter
    device = report.provenance.get("device") or {}
    money = fmt.money(cost.usd) if cost.usd is not None else f"no figure in dollars ({(cost.usd_reason or '').partition(':')[0]})"
    if cost.usd is None and cost.usd_as_if is not None:
        money = f"{fmt.money(cost.usd_as_if)} {cost.usd_as_if_label}"
    return (
        f"{fmt.duration(cost.seconds)} in all, {fmt.duration(cost.seconds_by_phase.get('train'))} of it training "
        f"({fmt.counted(cost.tokens_seen)} tokens, {fmt.counted(cost.tokens_per_second)} a second), on {device.get('name')} "
        f"with {report.provenance.get('threads')} threads; at most {fmt.size(cost.peak_memory_bytes)} of memory; {money}; "
        f"an adapter of {fmt.size(adapter.bytes)}."
    )


def quarter_sentence(found: PublishedRuns) -> str:
    """What a quarter of the training rows gives: the check that the scores come from the rows."""
    if found.quarter is None:
        return ""
    return f"The same recipe on a quarter of the training rows: {_lost(found.main, found.quarter)}."


def fewer_sentence(main: Report, fewer: Report) -> str:
    """What a run on fewer rows takes, and what it loses row by row against the recipe as it stands."""
    fraction = fewer.recipe["data"]["fraction"]
    scores = " and ".join(fmt.number(seeds_score([fewer], tier)) for tier in JUDGED)
    taken_over = sum(fewer.cost.reused_seconds.values())
    first = f", {fmt.duration(fewer.cost.seconds + taken_over)} where the base has not been scored before," if taken_over else ""
    return (
        f'In less time: `make train SET="data.fraction={fraction}"` took {fmt.duration(fewer.cost.seconds)}{first} on '
        f"{(fewer.provenance.get('device') or {}).get('name')} with {fewer.provenance.get('threads')} threads and ended at {scores} (seed "
        f"{fewer.provenance.get('seed')}): {_lost(main, fewer)}."
    )


def _lost(main: Report, fewer: Report) -> str:
    return " and ".join(
        f"{_signed(_turned(lost))} on {fmt.tier_words(tier)}" for tier, lost in paired_tiers(main, fewer).items() if tier in JUDGED
    )


def _signed(difference: FamilyDifference) -> str:
    return f"{fmt.number(difference.difference, signed=True)} {fmt.interval(difference.interval, signed=True)}"


def _turned(found: FamilyDifference) -> FamilyDifference:
    bounds = None if found.interval is None else (-found.interval[1], -found.interval[0])
    return found.model_copy(update={"difference": -found.difference, "interval": bounds})


def report_block(found: PublishedRuns) -> str:
    """The README's block: verdict, table, costs."""
    return "\n\n".join(
        part
        for part in (
            f"> {found.main.comparison.headline}",
            score_table(found),
            cost_sentence(found.main),
            quarter_sentence(found),
            *(fewer_sentence(found.main, one) for one in found.fewer),
        )
        if part
    )


def recipe_lines(found: PublishedRuns) -> str:
    """One recipe in the table of recipes/README.md: a line for its seeds together, then one for each run that differs as stated."""
    several = f" (mean of {len(found.seeds)} seeds)" if len(found.seeds) > 1 else ""
    fewer = [_line(found.recipe, [one], f" (data.fraction={one.recipe['data']['fraction']})") for one in found.fewer]
    return "\n".join([_line(found.recipe, found.seeds, several), *fewer, *(_line(found.recipe, [one], "") for one in found.elsewhere)])


def _line(recipe: str, seeds: Sequence[Report], note: str) -> str:
    report = seeds[0]
    base = str((report.provenance.get("base") or {}).get("name", "")).partition("@")[0]
    scores = [fmt.number(seeds_score(seeds, tier)) for tier in JUDGED]
    cost, device = report.cost, report.provenance.get("device") or {}
    count = report.provenance.get("threads")
    threads = f", {count} thread{'' if count == 1 else 's'}" if device.get("kind") == "cpu" else ""
    memory = fmt.size(cost.peak_memory_bytes)
    memory += "" if cost.peak_device_bytes is None else f", {fmt.size(cost.peak_device_bytes)} on the GPU"
    money = f"as if {fmt.money(cost.usd_as_if)}" if cost.usd is None and cost.usd_as_if is not None else fmt.money(cost.usd)
    return (
        f"| [{recipe}]({recipe}.yaml) | {base} | {device.get('name')}{threads}, {report.provenance.get('dtype')} | {memory} | "
        f"{fmt.duration(cost.seconds)} | {money} | {' / '.join(scores)}{note} |"
    )


def precision_table(folder: Path, reference: str = "bfloat16") -> str:
    """What a quantised base loses: each report below `folder`, named for its precision, against the one called `reference`.

    Raises NomoatError where one is missing, does not hold or cannot be compared.
    """
    names = [reference, *sorted(path.stem for path in folder.glob("*.json") if path.stem != reference)]
    found = compare([read_report(folder / f"{name}.json") for name in names])
    head = [f"{fmt.tier_words(tier)}{less}" for less in ("", f", less {reference}") for tier in JUDGED]
    lines = [f"| base in | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name, report, lost in zip(names, found.reports, found.differences, strict=True):
        cells = [fmt.number(seeds_score([report], tier)) for tier in JUDGED]
        cells += ["-" if name == reference else _signed(lost[tier]) for tier in JUDGED]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + _how_sure(found.reports[0], found.differences[1:])


def _how_sure(first: Report, lost: Sequence[Mapping[str, FamilyDifference]]) -> str:
    """From how many rows and seeds, and how many of the differences are more than chance."""
    compared = [one[tier] for one in lost for tier in JUDGED]
    told = sum(one.verdict != "cannot tell" for one in compared)
    heldout = sum(lost[0][tier].n for tier in JUDGED)
    rows = fmt.counted(first.data.train.rows if first.data.train else None)
    return (
        f"{rows} training rows, seed {first.provenance.get('seed')}, one run each. With {heldout} held-out rows "
        f"{told or 'none'} of these {len(compared)} differences can be told from none."
    )


def fill_blocks(text: str, blocks: dict[str, str]) -> str:
    """`text` with what stands between `<!-- generated: name -->` and `<!-- end -->` replaced by the block of that name."""

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in blocks:
            raise NomoatError(f"nothing generates '{match['name']}'; known are {', '.join(sorted(blocks))}")
        return f"{match[1]}{blocks[match['name']]}\n{match[3]}"

    return MARKED.sub(replaced, text)
