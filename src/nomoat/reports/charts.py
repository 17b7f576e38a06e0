"""Charts as SVG inside a page: text stays text, and colours are the page's CSS variables.

matplotlib draws with placeholder colours (`COLOURS`), which are then replaced by `var(--...)`, so that one drawing serves the dark and the
light page. The same report always gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nomoat.reports.metrics import in_tier_order
from nomoat.reports.schema import ARMS, LossCurve, Report
from nomoat.stats.intervals import Interval

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

RUN_COLOURS = 6  # then they repeat, dashed
_VARIABLES = ("ink", "muted", "line", "panel", *ARMS, "baseline", *(f"run{number}" for number in range(RUN_COLOURS)))
COLOURS = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate(_VARIABLES, start=1)}
_OFFSETS = {"base": 0.24, "few_shot": 0.0, "adapter": -0.24}  # of a tier's height; the arms are drawn one above the other
WIDE, NARROW = 8.6, 3.9  # inches at 72 points: the content width of a screen and of a phone
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10.5,
    "text.parse_math": False,
    "axes.labelcolor": COLOURS["muted"],
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
}


def both_widths(drawings: Mapping[str, Callable[[float], str | None]]) -> dict[str, Markup | None]:
    """Each chart as `<name>_wide` for screens and `<name>_narrow` for phones, of which a page shows one; None where there is none."""
    from markupsafe import Markup

    pairs = [(f"{name}_{suffix}", draw(width)) for name, draw in drawings.items() for suffix, width in (("wide", WIDE), ("narrow", NARROW))]
    return {name: None if svg is None else Markup(svg) for name, svg in pairs}  # not escaped again: draw_svg escapes its words


def score_chart(report: Report, *, width: float) -> str:
    """Score and 95 % interval of each arm on each tier, with marks for the baselines.

    Base is a ring, few-shot a square, the adapter a disc; majority a stroke and nearest row a diamond.
    """
    tiers = [tier for tier in in_tier_order(set(report.baselines)) if any(arm.tiers.get(tier) for arm in report.arms.values())]

    def draw(axes: Axes) -> None:
        for height, tier in enumerate(reversed(tiers)):
            _tier_marks(axes, report, tier, height)
        axes.set_yticks(range(len(tiers)), list(reversed(tiers)))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.50", "0.75", "1"])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.55, len(tiers) - 0.45))
        for edge in range(1, len(tiers)):
            axes.axhline(edge - 0.5, color=COLOURS["line"], linewidth=0.8)
        axes.grid(axis="x")

    return draw_svg(draw, width, 0.55 + 0.72 * len(tiers), "scores", _score_words(report, tiers))


def _tier_marks(axes: Axes, report: Report, tier: str, height: float) -> None:
    baseline = report.baselines[tier]
    middle = height + _OFFSETS["adapter"]  # the adapter has to exceed a baseline, which is therefore drawn on its line
    for value, marker, size in ((baseline.majority, "|", 11), (baseline.nearest_row, "D", 5)):
        if value is not None:
            axes.plot(value, middle, marker, color=COLOURS["baseline"], markersize=size, markeredgewidth=1.6, markerfacecolor="none")
    for arm in ARMS:
        estimate = report.arms[arm].tiers.get(tier)
        if estimate is None or estimate.score is None:
            continue
        y = height + _OFFSETS[arm]
        if estimate.interval is not None:
            axes.plot(estimate.interval, (y, y), color=COLOURS[arm], linewidth=2.2, solid_capstyle="round")
        face = COLOURS["panel"] if arm == "base" else COLOURS[arm]
        marker = "s" if arm == "few_shot" else "o"
        axes.plot(estimate.score, y, marker, color=COLOURS[arm], markerfacecolor=face, markersize=7.5, markeredgewidth=1.8)


def _score_words(report: Report, tiers: Sequence[str]) -> str:
    """The chart in words, for screen readers."""
    by_tier = []
    for tier in tiers:
        scores = [(arm.replace("_", "-"), score.score) for arm in ARMS if (score := report.arms[arm].tiers.get(tier))]
        by_tier.append(f"{tier}: " + ", ".join(f"{arm} {value:.2f}" for arm, value in scores if value is not None))
    return f"Scores from 0 to 1 with 95 % intervals. {'; '.join(by_tier)}. The table below has the same numbers."


def learning_curve_chart(curve: LossCurve, *, width: float) -> str | None:
    """Training and validation loss by optimiser step; None where nothing was logged."""
    validation = [(step, loss) for step, loss, _ in curve.validation if loss is not None]
    if not curve.training and not validation:
        return None

    def draw(axes: Axes) -> None:
        if curve.training:
            axes.plot(*zip(*curve.training, strict=True), color=COLOURS["base"], linewidth=1.1)
        if validation:
            axes.plot(*zip(*validation, strict=True), "o-", color=COLOURS["adapter"], linewidth=1.8, markersize=5, clip_on=False)
        axes.margins(x=0.02)
        _loss_axes(axes, "loss per labelled token (nats)", width)

    ends = f" Validation loss goes from {validation[0][1]:.2f} to {validation[-1][1]:.2f}." if validation else ""
    return draw_svg(draw, width, 2.9, "curve", "Training and validation loss by optimiser step." + ends)


def _loss_axes(axes: Axes, label: str, width: float) -> None:
    axes.set(xlabel="optimiser step", ylabel=label, ylim=(0, None))
    axes.locator_params(axis="x", nbins=5 if width < WIDE else 9)
    axes.grid(axis="y")


def draw_svg(draw: Callable[[Any], None], width: float, height: float, name: str, words: str) -> str:
    """Draw on fresh axes without a frame and return the `<svg>` element alone."""
    from matplotlib import style
    from matplotlib.figure import Figure

    # "default" ignores the user's matplotlibrc; the salt makes ids the same in every run and different between the drawings of a page
    with style.context(["default", {**_SETTINGS, "svg.hashsalt": f"{name}-{width}"}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.tick_params(length=0, colors=COLOURS["muted"], labelsize=10.5)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(text.getvalue(), words)


def _for_page(svg: str, words: str) -> str:
    """Keep only the element, name it for screen readers, and hand colours and fonts to the page."""
    from markupsafe import escape

    # a style inside an inline SVG would apply to the whole page
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    for variable, colour in COLOURS.items():
        element = element.replace(colour, f"var(--{variable})")
    element = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", element)
    element = re.sub(r"font-family: [^;\"]*;?", "", element)
    opening = re.match(r"<svg[^>]*>", element)
    box = re.search(r'viewBox="([^"]*)"', element)
    if opening is None or box is None:
        raise RuntimeError("matplotlib wrote an SVG without an opening tag or a viewBox")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" role="img"'
    return f'{head} aria-label="{escape(words)}">' + element[opening.end() :].strip()


@dataclass(frozen=True)
class Point:
    """One run: its letter, its cost (USD or minutes), and its score with the 95 % interval."""

    letter: str
    cost: float
    score: float
    interval: Interval | None


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Runs on the cost/score Pareto front, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def cost_chart(points: Sequence[Point], *, unit: str, tier: str, width: float) -> str:
    """Score by cost, each run marked by its letter; the line is the Pareto front."""
    front = pareto_front(points)

    def draw(axes: Axes) -> None:
        axes.step([run.cost for run in front], [run.score for run in front], where="post", color=COLOURS["line"], linewidth=2)
        for run in points:
            colour = COLOURS["adapter"] if run in front else COLOURS["base"]
            if run.interval is not None:
                axes.plot((run.cost, run.cost), run.interval, color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(run.cost, run.score, "o", color=colour, markersize=7)
            axes.annotate(run.letter, (run.cost, run.score), (8, 6), textcoords="offset points", color=COLOURS["ink"], fontsize=11)
        axes.set(xlabel=unit, ylabel=f"score on {tier}", xlim=(0, None), ylim=(-0.03, 1.03))
        axes.margins(x=0.12)
        axes.grid(axis="y")

    by_run = "; ".join(f"{run.letter}: {run.score:.2f} for {run.cost:.3g}" for run in points)
    words = f"Score on {tier} by cost ({unit}): {by_run}. On the front: {', '.join(run.letter for run in front)}."
    return draw_svg(draw, width, 3.2, "cost", words)


def ends_together(lines: Sequence[tuple[str, list[tuple[float, float]]]]) -> list[tuple[list[str], tuple[float, float]]]:
    """Letters of curves that end in the same place (within 3 % of the width and 7 % of the height), for one label."""
    lines = [(letter, points) for letter, points in lines if len(points) > 1]
    width, height = (max((point[axis] for _, points in lines for point in points), default=1.0) for axis in (0, 1))
    labels: list[tuple[list[str], tuple[float, float]]] = []
    for letter, points in lines:
        x, y = points[-1]
        near = next((letters for letters, (a, b) in labels if abs(a - x) < 0.03 * width and abs(b - y) < 0.07 * height), None)
        if near is None:
            labels.append(([letter], (x, y)))
        else:
            near.append(letter)
    return labels


def curves_chart(curves: Sequence[tuple[str, LossCurve]], *, width: float) -> str | None:
    """Validation loss by optimiser step, one line per run; None where none was logged."""
    lines = [(letter, [(step, loss) for step, loss, _ in curve.validation if loss is not None]) for letter, curve in curves]
    if not any(len(points) > 1 for _, points in lines):
        return None

    def draw(axes: Axes) -> None:
        for number, (_, points) in enumerate(lines):
            if len(points) < 2:
                continue
            colour = COLOURS[f"run{number % RUN_COLOURS}"]
            dashes = "-" if number < RUN_COLOURS else "--"
            axes.plot(*zip(*points, strict=True), f"o{dashes}", color=colour, linewidth=1.6, markersize=4)
        for letters, place in ends_together(lines):
            axes.annotate(", ".join(letters), place, (7, -3), textcoords="offset points", color=COLOURS["ink"], fontsize=11)
        axes.margins(x=0.05)
        _loss_axes(axes, "validation loss (nats)", width)

    ends = "; ".join(f"{letter} ends at {points[-1][1]:.3f}" for letter, points in lines if points)
    return draw_svg(draw, width, 2.9, "curves", f"Validation loss by optimiser step. {ends}.")
