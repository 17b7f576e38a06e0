"""memo.html: the verdict on one page that needs nothing else, drawn from memo.json alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from nomoat.memo.literature import results_for
from nomoat.reports import format as fmt
from nomoat.reports.charts import COLOURS, NARROW, WIDE, draw_svg
from nomoat.reports.html import page_environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# MERGED memo_view:
# The memo's verdict in a terminal: one line a claim, and under it what was measured.

STYLES = {"held": "bold green", "failed": "bold red", "cannot tell": "bold yellow", "out of reach": "dim"}
SIDES = {True: "more than", False: "at most"}


def print_verdict(found: dict[str, Any], console: Console) -> None:
    """Every claim of memo.json; then how many of each kind."""
    for claim in found["claims"]:
        line = Text(f"{claim['id']:<4} ")
        line.append(f"{claim['verdict']:<12}", style=STYLES[claim["verdict"]])
        line.append(f' "{claim["quote"]}"')
        console.print(line, soft_wrap=True)
        for one in claim["measured"]:
            console.print(f"       {measured_words(one)}", highlight=False, soft_wrap=True)
        for one in claim["shown"]:
            console.print(f"       beside it: {shown_words(one)}", highlight=False, soft_wrap=True)
        if claim["lacking"]:
            console.print(f"       {claim['lacking']}", highlight=False, soft_wrap=True)
        if claim["changed_after_looking"]:
            before = claim["changed_after_looking"]
            console.print(f"       changed after looking: under {before['limits']} it was {before['verdict']}", highlight=False)
    console.print(f"\n{counts_words(found)}", highlight=False, soft_wrap=True)


def measured_words(one: dict[str, Any]) -> str:
    """One value beside its threshold: what, how much, how sure, from how many seeds, and which side is the claim's."""
    value, limit = (show_number(number, one["unit"]) for number in (one["value"], one["limit"]))
    low_high = one["interval"]
    sure = (
        "exact"
        if one["exact"]
        else "no interval"
        if low_high is None
        else f"[{', '.join(show_number(end, one['unit']) for end in low_high)}]"
    )
    seeds = "" if one["exact"] else ", one seed" if one["seeds"] == 1 else f", {one['seeds']} seeds"
    more = one["times_the_data"]
    takes = "" if more is None or more > 1e4 else f"; {_times(more)} times the rows or seeds might tell"
    return f"{one['what']}: {value} ({sure}{seeds}); the claim needs {SIDES[one['above']]} {limit}: {one['verdict']}{takes}"


def _times(more: float) -> str:
    return f"{more:,.0f}" if more >= 10 else f"{max(more, 1.0):.1f}"


def shown_words(one: dict[str, Any]) -> str:
    """A value that decides nothing, with its interval where it has one."""
    sure = "" if one["interval"] is None else f" [{', '.join(show_number(end, one['unit']) for end in one['interval'])}]"
    return f"{one['what']}: {show_number(one['value'], one['unit'])}{sure}, {fmt.plural(one['seeds'], 'seed')}"


def show_number(number: float | None, unit: str) -> str:
    """A number with its unit, as the reports write it."""
    if number is None:
        return "not known"
    if unit == "s":
        return fmt.duration(number)
    if unit == "bytes":
        return fmt.size(round(number))
    if unit == "USD":
        return fmt.money(number)
    return f"{number:,.0f}" if abs(number) >= 100 else fmt.number(number)


def counts_words(found: dict[str, Any]) -> str:
    """How many claims of each kind, in one line."""
    counts = Counter(claim["verdict"] for claim in found["claims"])
    return ", ".join(f"{counts[word]} {word}" for word in STYLES if counts[word])


REACH = 10.0  # thresholds: what lies further from one than this is drawn here
ROLE_WORDS = {
    "default": "the default recipe",
    "quarter": "the default recipe on a quarter of its rows",
    "lora": "the default recipe on half of its rows; what follows differs from this",
    "full": "every parameter trained in place of an adapter",
    "a": "only the task families that are not B's",
    "b": "only B's task families, calendar and route",
    "b_on_a": "B's families, trained on top of the adapter of a",
    "a_plus_b": "the adapters of a and b added, nothing trained",
    "noisy25": "a quarter of the training rows with another row's answer",
    "noisy50": "half of the training rows with another row's answer",
    "rank1": "an adapter of rank 1 in place of 16",
    "rank4": "an adapter of rank 4 in place of 16",
    "rank64": "an adapter of rank 64 in place of 16",
    "gemma": "the default recipe on a base twice as large",
}
TONES = {"held": "better", "failed": "worse", "cannot tell": "unclear", "out of reach": "muted"}


def render_memo(found: dict[str, Any]) -> str:
    """The page as one string; `found` is what memo.json holds."""
    from markupsafe import Markup

    charts = {
        claim["id"]: [Markup(claim_chart(claim, width=width)) for width in (WIDE, NARROW)] if _known(claim) else []
        for claim in found["claims"]
    }
    return (
        page_environment()
        .get_template("memo.html.j2")
        .render(
            found=found,
            charts=charts,
            curve=[Markup(curve_chart(found["curve"], width=width)) for width in (WIDE, NARROW)] if found["curve"] else [],
            shown_words=shown_words,
            tones=TONES,
            counts=counts_words(found),
            paragraph=quotable(found),
            measured_words=measured_words,
            roles=[_role(role, runs) for role, runs in found["runs"].items()],
            published={claim["id"]: results_for(claim["id"]) for claim in found["claims"]},
        )
    )


def _role(role: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    where = {f"{run['device']}{', beside other runs' if run['shared'] else ''}" for run in runs}
    return {
        "name": role,
        "words": ROLE_WORDS.get(role, ""),
        "base": ", ".join(sorted({str(run["base"]) for run in runs})),
        "where": "; ".join(sorted(where)),
        "runs": ", ".join(f"{run['run']} (seed {run['seed']})" for run in runs),
    }


def _known(claim: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in claim["measured"] if one["value"] is not None]


def claim_chart(claim: dict[str, Any], *, width: float) -> str:
    """Each measured value with its interval as a multiple of its threshold's distance from none, the claim's side shaded."""
    rows = _known(claim)

    def draw(axes: Axes) -> None:
        for height, one in enumerate(reversed(rows)):
            _one_row(axes, one, height)
        axes.axvline(0, color=COLOURS["baseline"], linewidth=1.6)
        axes.set_yticks(range(len(rows)), [_label(one, width) for one in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        reach = max(max(abs(end) for end in _scaled(one)) for one in rows)
        axes.set_xlim(-1.15 * reach - 0.02, 1.15 * reach + 0.02)
        axes.set_xticks([0], ["threshold"])

    said = "; ".join(measured_words(one) for one in rows)
    return draw_svg(
        draw, width, 0.55 + 0.5 * len(rows), f"claim-{claim['id']}", f"{claim['id']}: {said}. Right of the line is the claim's side."
    )


def _scaled(one: dict[str, Any]) -> list[float]:
    """Value and interval's ends as distances from the threshold, the claim's side positive, in units of the threshold (or of 0.1)."""
    unit, side = abs(one["limit"]) or 0.1, 1 if one["above"] else -1
    ends = one["interval"] or (one["value"], one["value"])
    return [max(-REACH, min(REACH, side * (number - one["limit"]) / unit)) for number in (one["value"], *ends)]


def _one_row(axes: Axes, one: dict[str, Any], height: int) -> None:
    value, *ends = _scaled(one)
    colour = COLOURS["adapter"] if one["verdict"] == "held" else COLOURS["base"]
    axes.plot(ends, (height, height), color=colour, linewidth=2.4, solid_capstyle="round")
    axes.plot(value, height, "D" if one["exact"] else "o", color=colour, markersize=7)


def _label(one: dict[str, Any], width: float) -> str:
    words = one["what"] if width >= WIDE or len(one["what"]) < 24 else one["what"][:22] + "…"
    return f"{words}\n{show_number(one['value'], one['unit'])}"


def curve_chart(points: list[dict[str, Any]], *, width: float) -> str:
    """Score against training rows, a point a run with its interval; beside the first run of each size, what it took."""

    def draw(axes: Axes) -> None:
        sizes = sorted({point["rows"] for point in points})
        for point in points:
            low, high = point["interval"] or (point["score"], point["score"])
            axes.plot((point["rows"], point["rows"]), (low, high), color=COLOURS["adapter"], linewidth=1.6, alpha=0.6)
            axes.plot(point["rows"], point["score"], "o", color=COLOURS["adapter"], markersize=6)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(sizes, [_size_label(points, size) for size in sizes])
        axes.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        axes.set_ylim(0, 1)
        axes.set_ylabel("score, unseen phrasings")

    said = "; ".join(f"{point['rows']} rows: {point['score']:.2f}" for point in points)
    return draw_svg(draw, width, 2.6, "curve", f"Score against training rows. {said}.")


def _size_label(points: list[dict[str, Any]], size: int) -> str:
    alone = [point for point in points if point["rows"] == size and not point["shared"]]
    if not alone:
        return f"{size:,} rows"  # what runs took that shared their machine says nothing
    first = alone[0]
    money = "" if first["usd"] is None else f"\n{show_number(first['usd'], 'USD')}"
    return f"{size:,} rows\n{show_number(first['seconds'], 's')}{money}"


def readme_block(found: dict[str, Any]) -> str:
    """The README's section in Markdown: the quotable paragraph, and a line a claim with the first number that it rests on."""
    lines = ["| | verdict | the memo's words | measured |", "|---|---|---|---|"]
    for claim in found["claims"]:
        rests_on = measured_words(claim["measured"][0]) if claim["measured"] else claim["lacking"]
        further = len(claim["measured"]) - 1
        more = f" (and {further} more)" if further > 0 else ""
        lines.append(f"| {claim['id']} | **{claim['verdict']}** | {claim['quote']} | {rests_on}{more} |")
    return "\n".join([quotable(found), "", *lines])


def minutes_block(found: dict[str, Any]) -> str:
    """What the runs took, role by role, in Markdown."""
    lines = ["| role | seeds | precision, device, threads | training, each | in all, each |", "|---|---|---|---|---|"]
    for role, runs in found["runs"].items():
        where = sorted({f"{run['dtype']}, {run['device']}, {run['threads']}{' (shared)' if run['shared'] else ''}" for run in runs})
        seeds = ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"]))
        lines.append(f"| `{role}` | {seeds} | {'; '.join(where)} | {_range(runs, 'train_seconds')} | {_range(runs, 'seconds')} |")
    return "\n".join(lines)


def _range(runs: list[dict[str, Any]], key: str) -> str:
    times = sorted(run[key] for run in runs if run[key] is not None)
    if not times:
        return "-"
    shortest, longest = show_number(times[0], "s"), show_number(times[-1], "s")
    return shortest if shortest == longest else f"{shortest} to {longest}"


def quotable(found: dict[str, Any]) -> str:
    """A paragraph that says no more than the numbers do: what was run, what held, what failed, and what stays open."""
    runs = [run for runs in found["runs"].values() for run in runs]
    bases, devices = (sorted({str(run[key]) for run in runs}) for key in ("base", "device"))
    judged = [claim for claim in found["claims"] if claim["verdict"] != "out of reach"]
    scope = f"{len(runs)} runs of {' and '.join(bases)} on {' and '.join(devices)}"
    parts = [f"Of the memo's {len(found['claims'])} claims {counts_words(found)}, by {scope}."]
    for word, said in (("held", "Held"), ("failed", "Failed")):
        which = [f'{claim["id"]} ("{claim["quote"]}")' for claim in judged if claim["verdict"] == word]
        if which:
            parts.append(f"{said}: {'; '.join(which)}.")
    open_ones = [claim["id"] for claim in judged if claim["verdict"] == "cannot tell"]
    if open_ones:
        parts.append(f"Not decided by these runs: {', '.join(open_ones)}.")
    return " ".join(parts)
