"""Charts of a comparison: score against cost with the front that nobody beats, and learning curves over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nomoat.plots import COLOURS, WIDE, drawn
from nomoat.report_schema import LearningCurve
from nomoat.score_schema import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUN_COLOURS = 6  # after that they start again, dashed


@dataclass(frozen=True)
class Point:
    """One run: its letter, what it cost (USD or minutes), and its score with the 95 % interval."""

    letter: str
    cost: float
    score: float
    interval: Interval | None


def front(points: Sequence[Point]) -> list[Point]:
    """The runs than which none is both as cheap and better, or as good and cheaper; from the cheapest on."""
    best = float("-inf")
    kept = []
    for point in sorted(points, key=lambda one: (one.cost, -one.score)):
        if point.score > best:
            kept.append(point)
            best = point.score
    return kept


def cost_chart(points: Sequence[Point], *, unit: str, tier: str, width: float) -> str:
    """Score by cost, each run under its letter; the line joins the front."""
    best = front(points)

    def draw(axes: Axes) -> None:
        axes.step([one.cost for one in best], [one.score for one in best], where="post", color=COLOURS["line"], linewidth=2)
        for one in points:
            colour = COLOURS["adapter"] if one in best else COLOURS["base"]
            if one.interval is not None:
                axes.plot((one.cost, one.cost), one.interval, color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(one.cost, one.score, "o", color=colour, markersize=7)
            axes.annotate(one.letter, (one.cost, one.score), (8, 6), textcoords="offset points", color=COLOURS["ink"], fontsize=11)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel(unit, color=COLOURS["muted"])
        axes.set_ylabel(f"score on {tier}", color=COLOURS["muted"])
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)

    said = "; ".join(f"{one.letter}: {one.score:.2f} for {one.cost:.3g}" for one in points)
    words = f"Score on {tier} by cost ({unit}): {said}. On the front: {', '.join(one.letter for one in best)}."
    return drawn(draw, width, 3.2, "cost", words)


def ends_together(lines: Sequence[tuple[str, list[tuple[float, float]]]]) -> list[tuple[list[str], tuple[float, float]]]:
    """Letters of curves that end in the same place, for one label; the same is within 3 % of the width and 7 % of the height."""
    drawn_lines = [(letter, points) for letter, points in lines if len(points) > 1]
    width, height = (max((point[axis] for _, points in drawn_lines for point in points), default=1.0) for axis in (0, 1))
    found: list[tuple[list[str], tuple[float, float]]] = []
    for letter, points in drawn_lines:
        x, y = points[-1]
        near = next((names for names, (a, b) in found if abs(a - x) < 0.03 * width and abs(b - y) < 0.07 * height), None)
        if near is None:
            found.append(([letter], (x, y)))
        else:
            near.append(letter)
    return found


def curves_chart(curves: Sequence[tuple[str, LearningCurve]], *, width: float) -> str | None:
    """Validation loss by optimiser step, a line a run; None where none was logged."""
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
        axes.set_ylim(bottom=0)
        axes.margins(x=0.05)
        axes.locator_params(axis="x", nbins=5 if width < WIDE else 9)
        axes.set_xlabel("optimiser step", color=COLOURS["muted"])
        axes.set_ylabel("validation loss (nats)", color=COLOURS["muted"])
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)

    ends = "; ".join(f"{letter} ends at {points[-1][1]:.3f}" for letter, points in lines if points)
    return drawn(draw, width, 2.9, "curves", f"Validation loss by optimiser step. {ends}.")
