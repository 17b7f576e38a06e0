"""The rows on which compared runs disagree, with what each of them answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.comparing import ARM, Compared
from nomoat.files import read_lines
from nomoat.samples import shortened
from nomoat.wording import in_tier_order


@dataclass(frozen=True)
class Answered:
    """One run's answer to a row; `output` is None where only its report is at hand."""

    letter: str
    score: float | None
    output: str | None


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that not all runs got the same score for; prompt and target are None where no run's answers are at hand."""

    id: str
    tier: str
    family: str
    prompt: str | None
    target: str | None
    answers: tuple[Answered, ...]


def disagreements(found: Compared, paths: Sequence[Path], letters: Sequence[str]) -> list[Disagreement]:
    """Rows with different scores, in the order of tiers and families; `paths` are those of the reports, in their order."""
    lines = [{line["id"]: line for line in read_lines(path / "eval" / f"{ARM}.jsonl")} if path.is_dir() else {} for path in paths]
    scores = [{row[0]: row[4].get(ARM) for row in report.rows} for report in found.reports]
    apart = []
    for row_id, tier, family, _, _ in found.reports[found.reference].rows:
        if not all(row_id in of for of in scores) or len({of[row_id] for of in scores}) == 1:
            continue
        kept = [of.get(row_id) for of in lines]
        known = next((line for line in kept if line), None)
        prompt, target = (shortened(known["prompt"]), shortened(known["target"])) if known else (None, None)
        answers = [Answered(*one) for one in zip(letters, (of[row_id] for of in scores), map(_output, kept), strict=True)]
        apart.append(Disagreement(row_id, tier, family, prompt, target, tuple(answers)))
    tiers = in_tier_order({one.tier for one in apart})
    return sorted(apart, key=lambda one: (tiers.index(one.tier), one.family, one.id))


def _output(line: dict[str, Any] | None) -> str | None:
    return None if line is None else shortened(line["output"])
