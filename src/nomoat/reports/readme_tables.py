"""The published reports in recipes/reference/, and the tables that the READMEs show of them.

`<recipe>.json` is the report of a real run of that recipe; `<recipe>.<variant>.json` one of the same recipe with another seed
(`seed1`, `seed2`), on fewer rows (`quarter`: of the recipe's; `rows25`: 0.25 of the set's), or on another machine (any other name).
`precision/` holds one recipe in several precisions, `speed/` the results of `make bench`. Only tables are
generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nomoat.config.load import KeyDescription
from nomoat.errors import NomoatError
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.reports.compare import compare, paired_tiers
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import Report
from nomoat.stats.intervals import SeedsEstimate, seeds_estimate, standard_error_of

RECIPE_HEAD = """\
| recipe | base | trained on, in | memory | time, in all | rental | score on known / unseen phrasings |
|---|---|---|---|---|---|---|"""
JUDGED = ("values", "phrasing")
KEYS_HEAD = "| key | value | default | meaning |\n|---|---|---|---|"
PLAIN_DEFAULTS = ("", "none", "required")  # of a recipe key: words about it, not values
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
        f"| tier | rows | base | base with 4 examples | adapter (seed {found.main.seed}) |"
        + (f" mean of {len(found.seeds)} seeds | gain over the base |" if several else ""),
        "|---|---|---|---|---|" + ("---|---|" if several else ""),
    ]
    for tier in in_tier_order(set(found.main.comparison.tiers)):
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


def fewer_table(runs: PublishedRuns) -> str:
    """The recipe's runs on fewer training rows: rows, time, scores, and the paired difference from the full recipe."""
    lines = [
        f"| training rows | time, in all | {' | '.join(fmt.tier_words(tier) for tier in JUDGED)} | "
        f"{' | '.join(f'{fmt.tier_words(tier)}, difference' for tier in JUDGED)} |",
        "|---" * (2 + 2 * len(JUDGED)) + "|",
    ]
    for report in [*([runs.quarter] if runs.quarter else []), *runs.fewer, runs.main]:
        differences = {} if report is runs.main else paired_tiers(report, runs.main)
        cells = [fmt.number(seeds_score([report], tier)) for tier in JUDGED]
        cells += [fmt.change(differences[tier]) if tier in differences else "-" for tier in JUDGED]
        rows = fmt.counted(report.data.train.rows if report.data.train else None)
        lines.append(f"| {rows} | {fmt.duration(report.cost.seconds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recipe_lines(found: PublishedRuns) -> str:
    """One recipe in the table of recipes/README.md: a line for its seeds together, then one for each run that differs as stated."""
    several = f" (mean of {len(found.seeds)} seeds)" if len(found.seeds) > 1 else ""
    fewer = [_line(found.recipe, [one], f" (data.fraction={one.recipe.data.fraction:g})") for one in found.fewer]
    return "\n".join([_line(found.recipe, found.seeds, several), *fewer, *(_line(found.recipe, [one], "") for one in found.elsewhere)])


def _line(recipe: str, seeds: Sequence[Report], note: str) -> str:
    report = seeds[0]
    scores = [fmt.number(seeds_score(seeds, tier)) for tier in JUDGED]
    cost, device, count = report.cost, report.provenance.device, report.provenance.threads
    threads = f", {fmt.plural(count, 'thread')}" if device.kind == "cpu" and count else ""
    memory = fmt.size(cost.peak_memory_bytes)
    memory += "" if cost.peak_device_bytes is None else f", {fmt.size(cost.peak_device_bytes)} on the GPU"
    money = f"as if {fmt.money(cost.usd_as_if)}" if cost.usd is None and cost.usd_as_if is not None else fmt.money(cost.usd)
    return (
        f"| [{recipe}]({recipe}.yaml) | {report.base_name} | {device.name}{threads}, {report.provenance.dtype} | {memory} | "
        f"{fmt.duration(cost.seconds)} | {money} | {' / '.join(scores)}{note} |"
    )


def precision_table(folder: Path, reference: str = "bfloat16") -> str:
    """Quality cost of quantising the base: each report below `folder`, named for its precision, minus the one called `reference`.

    Raises NomoatError where one is missing, does not hold or cannot be compared.
    """
    names = [reference, *sorted(path.stem for path in folder.glob("*.json") if path.stem != reference)]
    found = compare([read_report(folder / f"{name}.json") for name in names])
    head = [f"{fmt.tier_words(tier)}{minus}" for minus in ("", f", minus {reference}") for tier in JUDGED]
    lines = [f"| base in | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name, report, lost in zip(names, found.reports, found.differences, strict=True):
        cells = [fmt.number(seeds_score([report], tier)) for tier in JUDGED]
        cells += ["-" if name == reference else fmt.change(lost[tier]) for tier in JUDGED]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def keys_table(descriptions: Sequence[KeyDescription]) -> str:
    """Every key of a recipe, for docs/recipes.md: the keys outside blocks first, then a heading and a table for each block."""
    blocks = {one.key: one.meaning for one in descriptions if one.type == "block" and "." not in one.key}
    lines: dict[str, list[str]] = {block: [] for block in ("", *blocks)}
    for one in descriptions:
        if one.key not in blocks:
            block, dot, _ = one.key.partition(".")
            default = one.default if one.default in PLAIN_DEFAULTS else f"`{one.default}`"
            lines[block if dot else ""].append(f"| `{one.key}` | {one.type} | {default} | {one.meaning} |")
    tables = {block: "\n".join([KEYS_HEAD, *found]) for block, found in lines.items()}
    return "\n\n".join([tables.pop(""), *(f"### {block}: {blocks[block]}\n\n{table}" for block, table in tables.items())])


def fill_blocks(text: str, blocks: dict[str, str]) -> str:
    """`text` with what stands between `<!-- generated: name -->` and `<!-- end -->` replaced by the block of that name."""

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in blocks:
            raise NomoatError(f"nothing generates '{match['name']}'; known are {', '.join(sorted(blocks))}")
        return f"{match[1]}{blocks[match['name']]}\n{match[3]}"

    return MARKED.sub(replaced, text)
