"""Train/test contamination: held-out rows that repeat training rows, from the same prompt to a shared run of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nomoat.data.examples import Example, normalise

GRAM = 13  # words; the overlap length of Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C
PHRASING_TIERS = ("phrasing", "family")  # their phrasings must be new; `values` rows share theirs with training on purpose
KINDS = ("exact", "masked", "ngram")
MAX_EXAMPLES = 10
_MASK = " \u25a2 "  # a symbol that normalise() keeps


@dataclass(frozen=True)
class Leak:
    """One held-out or validation row, the earlier row it repeats, and the normalised text they share."""

    kind: str
    row_id: str
    seen_id: str
    text: str


@dataclass(frozen=True)
class ContaminationReport:
    """Number of rows that repeat an earlier one: whole prompt, prompt with its slots masked, or a run of 13 words."""

    exact: int
    masked: int
    ngram: int
    examples: tuple[Leak, ...] = ()

    @property
    def clean(self) -> bool:
        """True when no row repeats another."""
        return not (self.exact or self.masked or self.ngram)

    def record(self) -> dict[str, Any]:
        """The report as rows.json keeps it."""
        return asdict(self)


def audit(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> ContaminationReport:
    """Compare held-out rows with training and validation rows, and validation rows with training rows.

    Whole prompts are compared for every row, in every tier. Rows whose phrasing should be new are compared again with slot values
    masked, whole and by runs of 13 words; a shorter prompt is one run. A user's rows have no slots: all of them are compared by runs of
    words of the raw text.
    """
    leaks = find_leaks(train, validation, heldout, user_data=user_data)
    exact, masked, ngram = (sum(leak.kind == kind for leak in leaks) for kind in KINDS)
    return ContaminationReport(exact, masked, ngram, tuple(leaks[:MAX_EXAMPLES]))


def find_leaks(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> list[Leak]:
    """Every leak that `audit` counts, exact ones first; a row may be in the list once per kind."""
    seen = [*train, *validation]
    new_wording = [row for row in heldout if user_data or row.tier in PHRASING_TIERS]
    exact = _repeats("exact", validation, train, _prompt) + _repeats("exact", heldout, seen, _prompt)
    masked = [] if user_data else _repeats("masked", new_wording, seen, masked_text)
    return [*exact, *masked, *_repeats("ngram", new_wording, seen, _prompt if user_data else masked_text, _runs)]


def describe_leaks(report: ContaminationReport) -> str:
    """The counts and up to five examples, as part of an error message."""
    examples = "\n".join(f"  {leak.kind}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:80]!r}" for leak in report.examples[:5])
    counts = f"{report.exact} exact, {report.masked} with slots masked, {report.ngram} by {GRAM} words"
    return f"({counts}), so a score would mean nothing:\n{examples}"


def masked_text(row: Example) -> str:
    """The prompt, normalised, with every slot value replaced by one symbol (longest values first, whole words only)."""
    if not row.slots:
        return normalise(row.prompt)
    values = sorted(set(row.slots), key=lambda value: (-len(value), value))
    pattern = "|".join(re.escape(value) for value in values)
    return normalise(re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", _MASK, row.prompt))


def _repeats(
    kind: str,
    rows: Sequence[Example],
    seen: Iterable[Example],
    text_of: Callable[[Example], str],
    parts_of: Callable[[str], list[str]] = lambda text: [text],
) -> list[Leak]:
    """One leak for each of `rows` that shares a part of its text with a row in `seen`; only the parts of `rows` are kept in memory."""
    wanted: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for part in parts_of(text_of(row)):
            wanted.setdefault(part, []).append(place)
    leaks: dict[int, Leak] = {}
    for earlier in seen:
        for part in parts_of(text_of(earlier)):
            for place in wanted.pop(part, ()):
                leaks.setdefault(place, Leak(kind, rows[place].id, earlier.id, part))
    return [leaks[place] for place in sorted(leaks)]


def _prompt(row: Example) -> str:
    return normalise(row.prompt)


def _runs(text: str) -> list[str]:
    """Every run of 13 words; a shorter text is one run."""
    words = text.split()
    return [" ".join(words[start : start + GRAM]) for start in range(max(1, len(words) - GRAM + 1))]
