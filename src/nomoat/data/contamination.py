"""Train/test contamination: held-out rows that repeat training rows, from the same prompt to a shared run of words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nomoat.data.examples import Example, normalise

GRAM = 13  # words; the overlap length of Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C
PHRASING_TIERS = ("phrasing", "family")  # their phrasings must be new; `values` rows share theirs with training on purpose
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


def audit(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> ContaminationReport:
    """Compare held-out rows with training and validation rows, and validation rows with training rows.

    Whole prompts are compared for every row, in every tier. Rows whose phrasing should be new are compared again with slot values
    masked, whole and by runs of 13 words; a shorter prompt is one run. A user's rows have no slots: all of them are compared by runs of
    words of the raw text.
    """
    leaks = find_leaks(train, validation, heldout, user_data=user_data)
    counts = Counter(leak.kind for leak in leaks)
    return ContaminationReport(counts["exact"], counts["masked"], counts["ngram"], tuple(leaks[:MAX_EXAMPLES]))


def find_leaks(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> list[Leak]:
    """Every leak that `audit` counts, exact ones first; a row may be in the list once per kind."""
    seen = [*train, *validation]
    new_wording = [row for row in heldout if user_data or row.tier in PHRASING_TIERS]
    leaks = _repeats("exact", validation, train, _prompt) + _repeats("exact", heldout, seen, _prompt)
    if not user_data:
        leaks += _repeats("masked", new_wording, seen, lambda row: [masked_text(row)])
    return leaks + _repeats("ngram", new_wording, seen, lambda row: _runs(normalise(row.prompt) if user_data else masked_text(row)))


def describe_leaks(report: ContaminationReport) -> str:
    """The counts and up to five examples, as part of an error message."""
    examples = "\n".join(f"  {leak.kind}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:80]!r}" for leak in report.examples[:5])
    counts = f"{report.exact} exact, {report.masked} with slots masked, {report.ngram} by {GRAM} words"
    return f"({counts}), so a score would mean nothing:\n{examples}"


def masked_text(row: Example) -> str:
    """The prompt, normalised, with every slot value replaced by one symbol (longest values first, whole words only)."""
    pattern = "|".join(re.escape(value) for value in sorted(row.slots, key=len, reverse=True))
    return normalise(re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", _MASK, row.prompt) if row.slots else row.prompt)


def _repeats(kind: str, rows: Sequence[Example], seen: Iterable[Example], texts: Callable[[Example], list[str]]) -> list[Leak]:
    """One leak for each of `rows` that shares one of its `texts` with a row in `seen`; only the texts of `rows` are kept in memory."""
    wanted: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for text in texts(row):
            wanted.setdefault(text, []).append(place)
    leaks: dict[int, Leak] = {}
    for earlier in seen:
        for text in texts(earlier):
            for place in wanted.pop(text, ()):
                leaks.setdefault(place, Leak(kind, rows[place].id, earlier.id, text))
    return [leaks[place] for place in sorted(leaks)]


def _prompt(row: Example) -> list[str]:
    return [normalise(row.prompt)]


def _runs(text: str) -> list[str]:
    """Every run of 13 words; a shorter text is one run."""
    words = text.split()
    return [" ".join(words[start : start + GRAM]) for start in range(max(1, len(words) - GRAM + 1))]
