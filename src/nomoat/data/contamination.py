"""Does a held-out row stand in the training data? Three questions, from the same prompt to a shared run of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nomoat.data.examples import Example, normalise

GRAM = 13  # words; the length of the overlap check in Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C
PHRASING_TIERS = ("phrasing", "family")  # their wording must be new; `values` rows share theirs with training on purpose
MAX_EXAMPLES = 10
KINDS = ("exact", "masked", "ngram")
_MASK = " \u25a2 "  # a symbol that normalise() keeps


@dataclass(frozen=True)
class Leak:
    """One held-out (or validation) row, the earlier row it repeats, and the text they share after normalising."""

    kind: str
    row_id: str
    seen_id: str
    text: str


@dataclass(frozen=True)
class ContaminationReport:
    """How many rows repeat an earlier one: whole prompt, prompt with its slots masked, or a run of 13 words."""

    exact: int
    masked: int
    ngram: int
    examples: tuple[Leak, ...] = ()

    @property
    def clean(self) -> bool:
        """True when nothing was found."""
        return not (self.exact or self.masked or self.ngram)

    def record(self) -> dict[str, Any]:
        """The report as rows.json keeps it."""
        return asdict(self)


def audit(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> ContaminationReport:
    """Look for held-out rows in the training and validation rows.

    Prompts are compared whole for every row, no tier exempt (validation against training too). Rows whose wording
    should be new are compared again with slot values masked, whole and by runs of 13 words; a shorter prompt is one
    run. A user's rows have no slots: all of them are compared by runs of words of the raw text.
    """
    found = find_leaks(train, validation, heldout, user_data=user_data)
    exact, masked, ngram = (sum(leak.kind == kind for leak in found) for kind in KINDS)
    return ContaminationReport(exact, masked, ngram, tuple(found[:MAX_EXAMPLES]))


def find_leaks(train: Sequence[Example], validation: Sequence[Example], heldout: Sequence[Example], *, user_data: bool) -> list[Leak]:
    """Every leak that `audit` counts, exact ones first; a row may be in it once for each kind."""
    seen = [*train, *validation]
    new_wording = [row for row in heldout if user_data or row.tier in PHRASING_TIERS]
    exact = _repeats("exact", validation, train, _whole) + _repeats("exact", heldout, seen, _whole)
    masked = [] if user_data else _repeats("masked", new_wording, seen, _whole_masked)
    return [*exact, *masked, *_repeats("ngram", new_wording, seen, _grams if user_data else _masked_grams)]


def describe_leaks(found: ContaminationReport) -> str:
    """The counts and up to five examples, to be put into an error message."""
    examples = "\n".join(f"  {leak.kind}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:80]!r}" for leak in found.examples[:5])
    counts = f"{found.exact} exact, {found.masked} with slots masked, {found.ngram} by {GRAM} words"
    return f"({counts}), so a score would mean nothing:\n{examples}"


def masked_text(row: Example) -> str:
    """The prompt, normalised, with every slot value replaced by one symbol (longest values first, whole words only)."""
    if not row.slots:
        return normalise(row.prompt)
    values = sorted(set(row.slots), key=lambda value: (-len(value), value))
    pattern = "|".join(re.escape(value) for value in values)
    return normalise(re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", _MASK, row.prompt))


def _repeats(kind: str, rows: Sequence[Example], seen: Iterable[Example], parts_of: Any) -> list[Leak]:
    """One leak for each of `rows` that shares a part with a row in `seen`; memory is for the parts of `rows` only."""
    wanted: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for part in parts_of(row):
            wanted.setdefault(part, []).append(place)
    found: dict[int, Leak] = {}
    for earlier in seen:
        for part in parts_of(earlier):
            for place in wanted.pop(part, ()):
                found.setdefault(place, Leak(kind, rows[place].id, earlier.id, part))
    return [found[place] for place in sorted(found)]


def _whole(row: Example) -> Iterator[str]:
    yield normalise(row.prompt)


def _whole_masked(row: Example) -> Iterator[str]:
    yield masked_text(row)


def _grams(row: Example) -> Iterator[str]:
    return _runs(normalise(row.prompt))


def _masked_grams(row: Example) -> Iterator[str]:
    return _runs(masked_text(row))


def _runs(text: str) -> Iterator[str]:
    """Every run of 13 words; a shorter text is one run."""
    words = text.split()
    for start in range(max(1, len(words) - GRAM + 1)):
        yield " ".join(words[start : start + GRAM])
