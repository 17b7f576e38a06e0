"""The memo's verdict in a terminal: one line a claim, and under it what was measured."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text

from nomoat import wording

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
    value, limit = (shown(number, one["unit"]) for number in (one["value"], one["limit"]))
    low_high = one["interval"]
    sure = "exact" if one["exact"] else "no interval" if low_high is None else f"[{', '.join(shown(end, one['unit']) for end in low_high)}]"
    seeds = "" if one["exact"] else ", one seed" if one["seeds"] == 1 else f", {one['seeds']} seeds"
    more = one["times_the_data"]
    takes = "" if more is None or more > 1e4 else f"; {_times(more)} times the rows or seeds might tell"
    return f"{one['what']}: {value} ({sure}{seeds}); the claim needs {SIDES[one['above']]} {limit}: {one['verdict']}{takes}"


def _times(more: float) -> str:
    return f"{more:,.0f}" if more >= 10 else f"{max(more, 1.0):.1f}"


def shown_words(one: dict[str, Any]) -> str:
    """A value that decides nothing, with its interval where it has one."""
    sure = "" if one["interval"] is None else f" [{', '.join(shown(end, one['unit']) for end in one['interval'])}]"
    return f"{one['what']}: {shown(one['value'], one['unit'])}{sure}, {'one seed' if one['seeds'] == 1 else str(one['seeds']) + ' seeds'}"


def shown(number: float | None, unit: str) -> str:
    """A number with its unit, as the reports write it."""
    if number is None:
        return "not known"
    if unit == "s":
        return wording.duration(number)
    if unit == "bytes":
        return wording.size(round(number))
    if unit == "USD":
        return wording.money(number)
    return f"{number:,.0f}" if abs(number) >= 100 else wording.number(number)


def counts_words(found: dict[str, Any]) -> str:
    """How many claims of each kind, in one line."""
    counts = Counter(claim["verdict"] for claim in found["claims"])
    return ", ".join(f"{counts[word]} {word}" for word in STYLES if counts[word])
