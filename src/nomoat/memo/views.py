"""Views of memo.json: the terminal, the page memo.html with its charts, and the tables of the READMEs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from nomoat.config.load import parse_yaml
from nomoat.memo.evidence import ROLES, Finding, Measurement, ThresholdTest
from nomoat.memo.verdict import CurvePoint, MemoVerdict
from nomoat.reports import format as fmt
from nomoat.reports.charts import COLOURS, NARROW, WIDE, draw_svg
from nomoat.reports.html import page_environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LITERATURE = "recipes/memo/literature.yaml"
REACH = 10.0  # thresholds: a value further from its threshold than this is drawn here
VERDICT_WORDS = {"held": "supported", "failed": "refuted", "cannot tell": "inconclusive", "out of reach": "not testable"}
STYLES = {"held": "bold green", "failed": "bold red", "cannot tell": "bold yellow", "out of reach": "dim"}
TONES = {"held": "better", "failed": "worse", "cannot tell": "unclear", "out of reach": "muted"}  # classes of the page's style sheet


def load_literature(root: Path) -> list[dict[str, Any]]:
    """What others published on the claims, from recipes/memo/literature.yaml."""
    return list(parse_yaml((root / LITERATURE).read_text(encoding="utf-8"), LITERATURE))


def print_verdict(verdict: MemoVerdict, console: Console) -> None:
    """Every claim with what was measured, then the number of claims by verdict."""
    for claim in verdict.claims:
        verdict_cell = (f"{VERDICT_WORDS[claim.verdict]:<13}", STYLES[claim.verdict])
        console.print(Text.assemble(f"{claim.id:<4} ", verdict_cell, f' "{claim.quote}"'), soft_wrap=True)
        lines = [*map(describe_test, claim.measured), *(f"also: {describe_value(value)}" for value in claim.shown)]
        lines += [claim.lacking] if claim.lacking else []
        earlier = claim.changed_after_looking
        lines += [f"changed after looking: under {earlier.limits} it was {VERDICT_WORDS[earlier.verdict]}"] if earlier else []
        for line in lines:
            console.print(f"       {line}", highlight=False, soft_wrap=True)
    counts = Counter(VERDICT_WORDS[claim.verdict] for claim in verdict.claims)
    console.print("\n" + ", ".join(f"{counts[word]} {word}" for word in VERDICT_WORDS.values()), highlight=False)


def describe_test(test: ThresholdTest) -> str:
    """A tested value with its interval, its threshold, and the verdict on it."""
    bounds = "exact" if test.exact else f"{_interval(test) or 'no interval'}, {fmt.plural(test.seeds, 'seed')}"
    threshold = f"{'more than' if test.above else 'at most'} {_number(test.limit, test.unit)}"
    value = f"{test.what}: {_number(test.value, test.unit)} ({bounds})"
    words = f"{value}; the claim needs {threshold}: {VERDICT_WORDS[test.verdict]}"
    if test.times_the_data is None or test.times_the_data > 1e4:
        return words
    times = max(test.times_the_data, 1.0)
    return f"{words}; about {times:,.{0 if times >= 10 else 1}f} times the rows or seeds might decide it"


def describe_value(value: Measurement) -> str:
    """A value that decides nothing, with its interval if it has one."""
    bounds = _interval(value)
    return f"{value.what}: {_number(value.value, value.unit)}{bounds and ' ' + bounds}, {fmt.plural(value.seeds, 'seed')}"


def _interval(value: Measurement | ThresholdTest) -> str:
    return f"[{', '.join(_number(end, value.unit) for end in value.interval)}]" if value.interval else ""


def _number(number: float | None, unit: str) -> str:
    if number is None:
        return "not known"
    plain = f"{number:,.0f}" if abs(number) >= 100 else fmt.number(number)
    return {"s": fmt.duration(number), "bytes": fmt.size(round(number)), "USD": fmt.money(number)}.get(unit, plain)


def readme_block(verdict: MemoVerdict) -> str:
    """One line per claim: its verdict, its words, and the first value that decides it."""
    rows = []
    for claim in verdict.claims:
        measured = describe_test(claim.measured[0]) if claim.measured else claim.lacking
        more = f" (and {len(claim.measured) - 1} more)" if len(claim.measured) > 1 else ""
        rows.append((claim.id, f"**{VERDICT_WORDS[claim.verdict]}**", claim.quote, f"{measured}{more}"))
    return fmt.markdown_table(("", "verdict", "the memo's words", "measured"), rows)


def minutes_block(verdict: MemoVerdict) -> str:
    """One line per role: its seeds, where its runs were made, and what each took."""
    rows = []
    for role, runs in verdict.runs.items():
        where = sorted({f"{run.dtype}, {run.device}, {run.threads}{' (shared)' if run.shared else ''}" for run in runs})
        seeds = ", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed))
        rows.append((f"`{role}`", seeds, "; ".join(where), _range(run.train_seconds for run in runs), _range(run.seconds for run in runs)))
    return fmt.markdown_table(("role", "seeds", "precision, device, threads", "training time per run", "total time per run"), rows)


def _range(seconds: Iterable[float | None]) -> str:
    known = sorted(value for value in seconds if value is not None)
    return " to ".join(dict.fromkeys(map(fmt.duration, (known[0], known[-1])))) if known else "-"


def render_memo(verdict: MemoVerdict, literature: Sequence[dict[str, Any]]) -> str:
    """The page as one string."""
    from markupsafe import Markup

    widths = (WIDE, NARROW)  # for screens and for phones: the page shows one of the two
    tested = [claim for claim in verdict.claims if any(test.value is not None for test in claim.measured)]
    template = page_environment().get_template("memo.html.j2")
    return template.render(
        verdict=verdict,
        words=VERDICT_WORDS,
        tones=TONES,
        counts=Counter(claim.verdict for claim in verdict.claims),
        all_runs=[run for runs in verdict.runs.values() for run in runs],
        charts={claim.id: [Markup(claim_chart(claim, width)) for width in widths] for claim in tested},
        curve=[Markup(curve_chart(verdict.curve, width)) for width in widths] if verdict.curve else [],
        describe_test=describe_test,
        describe_value=describe_value,
        roles=ROLES,
        literature=literature,
    )


def claim_chart(claim: Finding, width: float) -> str:
    """Each tested value with its interval, as its distance from the threshold in units of the threshold; right is the claim's side."""
    tests = [test for test in claim.measured if test.value is not None]
    labels = [f"{fill(test.what, 60 if width >= WIDE else 24)}\n{_number(test.value, test.unit)}" for test in tests]

    def draw(axes: Axes) -> None:
        reach = max(abs(end) for test in tests for end in _distances(test))
        for height, test in enumerate(reversed(tests)):
            value, *ends = _distances(test)
            colour = COLOURS["adapter" if test.verdict == "held" else "base"]
            axes.plot(ends, (height, height), color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot(value, height, "D" if test.exact else "o", color=colour, markersize=7)
        axes.axvline(0, color=COLOURS["baseline"], linewidth=1.6)
        axes.set_yticks(range(len(tests)), labels[::-1])
        axes.set_ylim(-0.6, len(tests) - 0.4)
        axes.set_xlim(-1.15 * reach - 0.02, 1.15 * reach + 0.02)
        axes.set_xticks([0], ["threshold"])

    words = f"{claim.id}: {'; '.join(map(describe_test, tests))}. Right of the line is the claim's side."
    return draw_svg(draw, width, 0.55 + 0.5 * len(tests), f"claim-{claim.id}", words)


def _distances(test: ThresholdTest) -> list[float]:
    """Value and interval ends as distances from the threshold, positive on the claim's side, in units of the threshold (0.1 for 0)."""
    unit = (abs(test.limit) or 0.1) * (1 if test.above else -1)
    value = test.value or 0.0
    return [max(-REACH, min(REACH, (number - test.limit) / unit)) for number in (value, *(test.interval or (value, value)))]


def curve_chart(points: Sequence[CurvePoint], width: float) -> str:
    """Score against training rows, one point with its interval per run; below each size, what its first run took."""

    def draw(axes: Axes) -> None:
        for point in points:
            axes.plot(point.rows, point.score, "o", color=COLOURS["adapter"], markersize=6)
            ends = point.interval or (point.score, point.score)
            axes.plot((point.rows, point.rows), ends, color=COLOURS["adapter"], linewidth=1.6, alpha=0.6)
        sizes = sorted({point.rows for point in points})
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(sizes, [_size_label(points, size) for size in sizes])
        axes.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        axes.set_ylim(0, 1)
        axes.set_ylabel("score, unseen phrasings")

    words = "; ".join(f"{point.rows} rows: {point.score:.2f}" for point in points)
    return draw_svg(draw, width, 2.6, "curve", f"Score against training rows. {words}.")


def _size_label(points: Sequence[CurvePoint], size: int) -> str:
    alone = [point for point in points if point.rows == size and not point.shared]  # times of runs that shared their machine say nothing
    money = [fmt.money(point.usd) for point in alone[:1] if point.usd is not None]
    return "\n".join([f"{size:,} rows", *(fmt.duration(point.seconds) for point in alone[:1]), *money])
