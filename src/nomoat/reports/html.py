"""report.html: one page that needs nothing else, computed from the report alone.

Everything in it is escaped (autoescape is on, and every text passes through `visible`), since model outputs may hold HTML, NULs, lone
surrogates or ten megabytes on one line. It contains no local path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nomoat.reports import format as fmt
from nomoat.reports import summary
from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import ArmScores, Comparison, FamilyDifference, FamilyScore, Report
from nomoat.stats.intervals import Interval

MAX_SHOWN = 700
KIND_WORDS = {"won": "The adapter won", "lost": "The adapter lost", "both_wrong": "Both wrong", "both_right": "Both right"}
TONES = {"better": ("better", "\u25b2"), "worse": ("worse", "\u25bc"), "cannot tell": ("unclear", "\u25c6"), "failed": ("worse", "\u2715")}


def render_html(report: Report, run_dir: Path | None = None) -> str:
    """The page as one string: no scripts, no network, light and dark, for screens from 360 pixels and for paper.

    `run_dir` is only for the command that computes the run again; a folder outside the working directory is not named.
    """
    from nomoat.reports.charts import both_widths, learning_curve_chart, score_chart

    charts = {
        "scores": lambda width: score_chart(report, width=width) if report.rows else None,
        "curve": lambda width: learning_curve_chart(report.learning_curve, width=width),
    }
    template = page_environment().get_template("report.html.j2")
    view = _view(report, run_dir)
    return str(template.render(report=report, summary=summary, view=view, charts=both_widths(charts), family_of=_family, extent=_extent))


def page_environment() -> Any:
    """Jinja's environment of every page: all text escaped, an unknown name an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nomoat.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": fmt.visible,
        "excerpt": excerpt,
        "number": fmt.number,
        "signed": lambda value: fmt.number(value, signed=True),
        "interval": _unbroken_interval,
        "signed_interval": lambda value: _unbroken_interval(value, signed=True),
        "tier_words": fmt.tier_words,
        "check_words": fmt.check_words,
        "mark": mark,
        "metric": fmt.metric,
        "p_value": fmt.p_value,
        "tone": lambda verdict: TONES.get(verdict, TONES["cannot tell"])[0],
        "shown_json": lambda value: excerpt(json.dumps(value, ensure_ascii=False, indent=1)),
    }
    return environment


def _unbroken_interval(value: Interval | None, *, signed: bool = False) -> str:
    """Numbers stay on one line; the words for a missing interval may break."""
    words = fmt.interval(value, signed=signed)
    return words if value is None else words.replace(" ", "\u00a0")


def excerpt(text: str) -> str:
    """The first MAX_SHOWN characters of a text, safe to show, and how many are missing."""
    return fmt.visible(fmt.shortened(text, MAX_SHOWN))


def mark(score: float | None) -> str:
    """A row's score in one word."""
    if score is None:
        return "not scored"
    return {1.0: "right", 0.0: "wrong"}.get(score, fmt.number(score))


def _view(report: Report, run_dir: Path | None) -> dict[str, Any]:
    phases = summary.phase_seconds(report)
    slowest = max((seconds for _, seconds in phases), default=0.0) or 1.0
    return {
        "claims": _claims(report),
        "path": _shown_path(report, run_dir),
        "subtitle": _subtitle(report),
        "sentence": ". ".join(fmt.headline(report)) + ".",
        "tiers": in_tier_order(set(report.baselines)),
        "below": "; ".join(f"{', '.join(names)} on {tier}" for tier, names in report.comparison.families_below_baseline.items() if names),
        "samples": [(words, [sample for sample in report.samples if sample.kind == kind]) for kind, words in KIND_WORDS.items()],
        "phases": [{"name": name, "percent": round(100 * seconds / slowest, 1), "time": fmt.duration(seconds)} for name, seconds in phases],
        "provenance": _leaves(report.provenance.record()),
        "recipe": _leaves(report.recipe.as_dict()),
    }


def _claims(report: Report) -> list[dict[str, str]]:
    """The verdict and forgetting as one heading, with a symbol, so that nothing depends on colour alone."""
    comparison = report.comparison
    if report.status == "failed":
        return [_claim("failed", "Failed", "")]
    if comparison.verdict is None:
        return [_claim("cannot tell", "No verdict", "")]
    verdict, place = comparison.verdict, f" on {fmt.tier_words(comparison.primary)}"
    if comparison.retention_verdict != "worse" or comparison.primary == "retention":
        return [_claim(verdict, verdict.capitalize(), place)]
    return [_claim(verdict, verdict.capitalize(), f"{place}, but "), _claim("worse", "worse", f" on {fmt.tier_words('retention')}")]


def _claim(verdict: str, word: str, rest: str) -> dict[str, str]:
    tone, symbol = TONES[verdict]
    return {"tone": tone, "symbol": symbol, "word": word, "rest": rest}


def _shown_path(report: Report, run_dir: Path | None) -> str:
    """The run's path below the working directory, else below runs/: no local path gets into the page."""
    if run_dir is not None and run_dir.resolve().is_relative_to(Path.cwd()):
        return str(run_dir.resolve().relative_to(Path.cwd()))
    return f"runs/{report.run}"


def _subtitle(report: Report) -> str:
    """Base, method and machine in one line, as far as they are known."""
    rank = f"rank {report.adapter.rank}" if report.adapter.rank else ""
    method = "trained in full (the adapter below is the whole model)" if report.adapter.method == "full" else report.adapter.method
    line = ", ".join(filter(None, (report.base_name, " ".join(filter(None, (method, rank))), report.provenance.device.name)))
    note = report.provenance.base.note
    return f"{line}. {fmt.capitalised(note)}." if note else line


def _leaves(value: Any) -> list[tuple[str, str]]:
    return [(key, excerpt(text)) for key, text in fmt.flattened(value)]


def _extent(report: Report, tier: str) -> str:
    difference = report.comparison.tiers.get(tier)
    counts = difference or report.arms["adapter"].tiers.get(tier)
    if counts is None:
        return ""
    detectable = difference.smallest_detectable if difference else None
    shown = "" if detectable is None else f", \u00b1{fmt.number(detectable)}"
    return f"{fmt.plural(counts.n, 'row')}, {fmt.plural(counts.groups, 'group')}{shown}"


def _family(scores: ArmScores | Comparison, tier: str, name: str) -> FamilyScore | FamilyDifference | None:
    """The score of an arm, or the difference from the base, on one family of a tier."""
    whole = scores.tiers.get(tier)
    return whole.families.get(name) if whole else None
