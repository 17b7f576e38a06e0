"""Examples (rows): the one form of training and evaluation data, loaded from a shipped set or from a user's file.

A row as it appears in a .jsonl file:

    {"id": "edit-t-0007", "prompt": "Reverse: Oslo, Lima, Quito", "completion": "Quito, Lima, Oslo",
     "family": "edit", "tier": "train", "group": "edit-p31", "score": {"by": "exact"}, "slots": ["Oslo, Lima, Quito"]}
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

from nomoat.config.schema import Data, Tier
from nomoat.data.readers import Problem, Records, map_columns, read_records
from nomoat.errors import NomoatError, did_you_mean, quoted
from nomoat.io import sha256_of
from nomoat.scorers import check_spec

HELDOUT_TIERS: tuple[str, ...] = get_args(Tier)
TIERS_OF_FILE = {"train": ("train",), "validation": ("validation",), "heldout": HELDOUT_TIERS}
USER_KEYS = ("prompt", "completion", "system", "family", "group", "score", "id")
SHIPPED_KEYS = (*USER_KEYS, "tier", "slots")  # also of the held-out rows that a run keeps
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Example:
    """One row: prompt and reference completion, the kind of task (`family`), and how an answer is scored.

    `group` names the phrasing (template): rows of one group are not independent. `slots` are the values filled into the phrasing's
    prompt, as they appear there; the contamination check masks them.
    """

    id: str
    prompt: str
    completion: str
    system: str | None
    family: str
    tier: str
    group: str
    score: dict[str, Any] = field(hash=False)
    slots: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The row as a JSON object; system and slots are left out when empty."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("system", "slots")}


@dataclass(frozen=True)
class Splits:
    """A data set divided once and for all: train, validation (for every choice made during development) and held-out rows."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    heldout: tuple[Example, ...]
    origin: dict[str, Any] = field(default_factory=dict)  # of a hub set: revision, subset, split, licence, number of rows left out

    @cached_property
    def train_sha256(self) -> str:
        """Hex digest of the training rows, order included."""
        return sha256_of([row.record() for row in self.train])

    @cached_property
    def heldout_sha256(self) -> str:
        """Hex digest of the held-out rows, order included: runs that differ here cannot be compared."""
        return sha256_of([row.record() for row in self.heldout])


def normalise(text: str) -> str:
    """`text` for comparisons only: NFKC, casefolded, punctuation and white space collapsed to single spaces (combining marks stay)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(map(_letter_or_space, folded)).split()) or folded.strip()


@cache
def _letter_or_space(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "PZC" else character  # punctuation, separators, control characters


def load_shipped_set(name_or_dir: str | Path, root: Path) -> Splits:
    """The shipped set `data/<name>` of the repository `root`, or a folder with the same files.

    Raises NomoatError for an unknown set, a missing file or a malformed row.
    """
    folder = root / "data" / name_or_dir
    if not folder.is_dir():
        folder = Path(name_or_dir)
    if not (folder / "train.jsonl").is_file():
        known = sorted(path.parent.name for path in (root / "data").glob("*/train.jsonl"))
        raise NomoatError(f"data: no set named {str(name_or_dir)!r}{did_you_mean(str(name_or_dir), known)}")
    paths = ((folder / f"{part}.jsonl", tiers) for part, tiers in TIERS_OF_FILE.items())
    train, validation, heldout = (tuple(build_examples(str(path), read_records(path), tiers=tiers)) for path, tiers in paths)
    _refuse_repeated_ids(str(folder), (*train, *validation, *heldout))
    return Splits(folder.name, train, validation, heldout)


def load_heldout(path: Path) -> tuple[Example, ...]:
    """The held-out rows that a run keeps in its heldout.jsonl."""
    return tuple(build_examples(str(path), read_records(path), tiers=HELDOUT_TIERS))


def load_user_examples(path: Path, data: Data | None = None) -> list[Example]:
    """Rows of a user's .jsonl, .csv or .parquet file; only prompt and completion are required of each.

    `data` gives the column map, which records to keep, and the scorer of rows that state none; a file whose first record has a prompt
    and a completion needs no map. Raises NomoatError naming file, line (in a .parquet file: number of the record), the value seen and
    what is allowed, for at most 20 problems at once.
    """
    if data is None:
        return build_examples(str(path), read_records(path))
    records = list(read_records(path))
    ready = bool(records) and isinstance(records[0][1], dict) and {"prompt", "completion"} <= records[0][1].keys()
    return build_examples(str(path), records if ready else map_columns(records, data.columns, data.where), score=data.score)


def build_examples(
    place: str, records: Records, *, tiers: tuple[str, ...] | None = None, score: dict[str, Any] | None = None
) -> list[Example]:
    """Rows from records of `place` with a row's keys; `score` is for those that state none. Raises as `load_user_examples` does.

    With `tiers` they are a shipped set's, which state one of these. Without, they are a user's, all of tier "train", and a row is also
    refused if its own completion does not score 1 (a shipped set's scores are checked by its test instead of at every start).
    """
    keys = SHIPPED_KEYS if tiers else USER_KEYS
    rows: list[Example] = []
    problems: list[str] = []
    for line, record in records:
        if score is not None and isinstance(record, dict) and not record.get("score"):
            record = {**record, "score": score}
        mistakes = [str(record)] if isinstance(record, Problem) else _problems(record, keys, tiers)
        if not mistakes:
            row = _example(record, line)
            mistakes = [] if tiers else [f"score: {problem}" for problem in check_spec(row.score, row.completion)]
            rows.append(row)
        problems += [f"{place}:{line}: {problem}" for problem in mistakes]
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        more = "\n  (there may be more)" if len(problems) >= MAX_PROBLEMS else ""
        raise NomoatError("bad rows:\n  " + "\n  ".join(problems[:MAX_PROBLEMS]) + more)
    if not rows:
        raise NomoatError(f"{place}: no rows in it; one row per line is needed, with {' and '.join(keys[:2])}")
    _refuse_repeated_ids(place, rows)
    return rows


def _example(record: dict[str, Any], line: int) -> Example:
    score = record.get("score") or "exact"
    return Example(
        id=record.get("id") or f"row-{line}",
        prompt=record["prompt"],
        completion=record["completion"],
        system=record.get("system"),
        family=record.get("family") or "rows",
        tier=record.get("tier", "train"),
        group=record.get("group") or hashlib.sha256(normalise(record["prompt"]).encode()).hexdigest()[:16],
        score={"by": score} if isinstance(score, str) else score,
        slots=tuple(record.get("slots") or ()),
    )


def _problems(record: Any, keys: tuple[str, ...], tiers: tuple[str, ...] | None) -> list[str]:
    """Everything wrong with one record, each with the value seen and what is allowed."""
    if not isinstance(record, dict):
        return [f"a row must be an object with {', '.join(keys)}; saw {quoted(record)}"]
    mistakes = [f"no such key as {key!r}{did_you_mean(key, keys)}" for key in record if key not in keys]
    mistakes += [f"{key} is missing" for key in ("prompt", "completion") if record.get(key) is None]
    texts = [key for key in keys if key not in ("score", "slots") and record.get(key) is not None]
    mistakes += [f"{key} must be text that is not empty; saw {quoted(record[key])}" for key in texts if not _is_text(record[key])]
    if tiers and record.get("tier") not in tiers:
        mistakes.append(f"tier must be {' or '.join(tiers)} in this file; saw {quoted(record.get('tier'))}")
    score = record.get("score")
    if score is not None and not _is_text(score.get("by") if isinstance(score, dict) else score):
        mistakes.append(f'score must be the name of a scorer or an object like {{"by": "exact"}}; saw {quoted(score)}')
    slots = record.get("slots", [])
    if not isinstance(slots, list) or not all(_is_text(slot) for slot in slots):
        mistakes.append(f"slots must be a list of texts; saw {quoted(slots)}")
    return mistakes


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _refuse_repeated_ids(place: str, rows: Iterable[Example]) -> None:
    repeated = sorted(name for name, times in Counter(row.id for row in rows).items() if times > 1)
    if repeated:
        raise NomoatError(f"{place}: the same id on more than one row: {', '.join(repeated[:MAX_PROBLEMS])}; ids must be unique")
