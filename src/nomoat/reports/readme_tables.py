"""The published reports in recipes/reference/, and the tables that the READMEs show of them.

`<recipe>.json` is the report of a real run of that recipe; `<recipe>.<variant>.json` one of the same recipe with another seed
(`seed1`, `seed2`), on fewer rows (`quarter`: of the recipe's; `rows25`: 0.25 of the set's), or on another machine (any other name).
`precision/` holds one recipe in several precisions, `speed/` the results of `make bench`. Only tables are generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nomoat.config.load import KeyDescription
from nomoat.errors import NomoatError
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.reports.compare import compare, paired_tiers
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import ARMS, Report, TierDifference
from nomoat.stats.intervals import SeedsEstimate, seeds_estimate, standard_error_of

JUDGED = ("values", "phrasing")
PLAIN_DEFAULTS = ("", "none", "required")  # of a recipe key: words, not values
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
    by_recipe: dict[str, dict[str, Report]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.split(".")):
        recipe, _, variant = path.stem.partition(".")
        by_recipe.setdefault(recipe, {})[variant] = read_report(path)
    for recipe, reports in by_recipe.items():
        if "" not in reports:
            raise NomoatError(f"{folder} has variants of {recipe} but not {recipe}.json, the run they vary")
    return {recipe: _by_variant(recipe, reports) for recipe, reports in by_recipe.items()}


def _by_variant(recipe: str, reports: dict[str, Report]) -> PublishedRuns:
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
    """The adapter minus the base over several seeds; None without intervals. The groups' standard error is the mean over runs."""
    differences = [report.comparison.tiers.get(tier) for report in reports]
    known = [(run.difference, standard_error_of(run.interval)) for run in differences if run is not None and run.interval is not None]
    if not known:
        return None
    return seeds_estimate([difference for difference, _ in known], sum(error for _, error in known) / len(known))


def score_table(runs: PublishedRuns) -> str:
    """By tier: base, base with examples, adapter with its interval, and the mean and gain of several seeds."""
    several = len(runs.seeds) > 1
    head = ["tier", "rows", "base", "base with 4 examples", f"adapter (seed {runs.main.seed})"]
    rows = []
    for tier in in_tier_order(set(runs.main.comparison.tiers)):
        base, few_shot, adapter = (runs.main.arms[arm].tiers.get(tier) for arm in ARMS)
        untrained = [fmt.number(score.score) if score else "-" for score in (base, few_shot)]
        trained = f"**{fmt.number(adapter.score)}** {fmt.interval(adapter.interval)}" if adapter else "-"
        rows.append([fmt.tier_words(tier), str(adapter.n if adapter else 0), *untrained, trained])
        if several:
            gain = seeds_gain(runs.seeds, tier)
            rows[-1] += [fmt.number(seeds_score(runs.seeds, tier)), fmt.change(gain) if gain else "-"]
    return fmt.markdown_table([*head, *([f"mean of {len(runs.seeds)} seeds", "gain over the base"] if several else [])], rows)


def fewer_table(runs: PublishedRuns) -> str:
    """The recipe's runs on fewer training rows: rows, time, scores, and the paired difference from the full recipe."""
    rows = []
    for report in [*([runs.quarter] if runs.quarter else []), *runs.fewer, runs.main]:
        count = fmt.counted(report.data.train.rows if report.data.train else None)
        differences = {} if report is runs.main else paired_tiers(report, runs.main)
        rows.append([count, fmt.duration(report.cost.seconds), *_judged_cells(report, differences)])
    return fmt.markdown_table(["training rows", "time, in all", *_judged_head(", difference")], rows)


def _judged_head(difference: str) -> list[str]:
    return [f"{fmt.tier_words(tier)}{suffix}" for suffix in ("", difference) for tier in JUDGED]


def _judged_cells(report: Report, differences: dict[str, TierDifference]) -> list[str]:
    scores = [fmt.number(seeds_score([report], tier)) for tier in JUDGED]
    return scores + [fmt.change(differences[tier]) if tier in differences else "-" for tier in JUDGED]


def recipes_table(published: Iterable[PublishedRuns]) -> str:
    """For each recipe a line for its seeds together, then one for each run on fewer rows or on another machine."""
    rows = []
    for runs in published:
        rows.append(_recipe_row(runs.recipe, runs.seeds, f" (mean of {len(runs.seeds)} seeds)" if len(runs.seeds) > 1 else ""))
        rows += [_recipe_row(runs.recipe, [report], f" (data.fraction={report.recipe.data.fraction:g})") for report in runs.fewer]
        rows += [_recipe_row(runs.recipe, [report], "") for report in runs.elsewhere]
    head = ("recipe", "base", "trained on, in", "memory", "time, in all", "rental", "score on known / unseen phrasings")
    return fmt.markdown_table(head, rows)


def _recipe_row(recipe: str, seeds: Sequence[Report], note: str) -> list[str]:
    report = seeds[0]
    cost, device, count = report.cost, report.provenance.device, report.provenance.threads
    threads = f", {fmt.plural(count, 'thread')}" if device.kind == "cpu" and count else ""
    gpu_memory = "" if cost.peak_device_bytes is None else f", {fmt.size(cost.peak_device_bytes)} on the GPU"
    return [
        f"[{recipe}]({recipe}.yaml)",
        report.base_name,
        f"{device.name}{threads}, {report.provenance.dtype}",
        fmt.size(cost.peak_memory_bytes) + gpu_memory,
        fmt.duration(cost.seconds),
        f"as if {fmt.money(cost.usd_as_if)}" if cost.usd is None and cost.usd_as_if is not None else fmt.money(cost.usd),
        " / ".join(fmt.number(seeds_score(seeds, tier)) for tier in JUDGED) + note,
    ]


def precision_table(folder: Path, reference: str = "bfloat16") -> str:
    """Quality cost of quantising the base: each report below `folder`, named for its precision, minus the one called `reference`.

    Raises NomoatError for a report that is missing, whose numbers do not follow from its rows, or that is not comparable.
    """
    names = [reference, *sorted(path.stem for path in folder.glob("*.json") if path.stem != reference)]
    runs = compare([read_report(folder / f"{name}.json") for name in names])
    differences: tuple[dict[str, TierDifference], ...] = ({}, *runs.differences[1:])  # none of the reference from itself
    rows = [[name, *_judged_cells(report, lost)] for name, report, lost in zip(names, runs.reports, differences, strict=True)]
    return fmt.markdown_table(["base in", *_judged_head(f", minus {reference}")], rows)


def keys_table(descriptions: Sequence[KeyDescription]) -> str:
    """Every key of a recipe, for docs/recipes.md: the keys outside blocks first, then a heading and a table for each block."""
    blocks = {key.key: key.meaning for key in descriptions if key.type == "block" and "." not in key.key}
    rows: dict[str, list[list[str]]] = {block: [] for block in ("", *blocks)}
    for key in descriptions:
        if key.key not in blocks:
            block, dot, _ = key.key.partition(".")
            default = key.default if key.default in PLAIN_DEFAULTS else f"`{key.default}`"
            rows[block if dot else ""].append([f"`{key.key}`", key.type, default, key.meaning])
    tables = {block: fmt.markdown_table(("key", "value", "default", "meaning"), part) for block, part in rows.items()}
    return "\n\n".join([tables.pop(""), *(f"### {block}: {blocks[block]}\n\n{table}" for block, table in tables.items())])


def fill_blocks(text: str, blocks: dict[str, str]) -> str:
    """`text` with everything between `<!-- generated: name -->` and `<!-- end -->` replaced by the block of that name."""

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in blocks:
            raise NomoatError(f"nothing generates '{match['name']}'; known are {', '.join(sorted(blocks))}")
        return f"{match[1]}{blocks[match['name']]}\n{match[3]}"

    return MARKED.sub(replaced, text)
