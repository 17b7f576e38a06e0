"""Rows: the one form in which training and evaluation data travel, from a shipped set or a user's own file.

One row, as it stands in a .jsonl file:

    {"id": "edit-t-0007", "prompt": "Reverse: Oslo, Lima, Quito", "completion": "Quito, Lima, Oslo",
     "family": "edit", "tier": "train", "group": "edit-p31", "score": {"by": "exact"}, "slots": ["Oslo, Lima, Quito"]}
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nomoat.config.schema import Data
from nomoat.data.readers import Records, map_columns, read_records
from nomoat.errors import NomoatError, did_you_mean, quoted
from nomoat.io import sha256_of

HELDOUT_TIERS = ("values", "phrasing", "family", "retention")
TIERS_OF_FILE = {"train": ("train",), "validation": ("validation",), "heldout": HELDOUT_TIERS}
USER_KEYS = ("prompt", "completion", "system", "family", "group", "score", "id")
SHIPPED_KEYS = (*USER_KEYS, "tier", "slots")
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Example:
    """One example: what is asked, what is wanted, which phrasing it came from, and how an answer is scored.

    `group` names the phrasing: rows of one group are not independent. `slots` are the values filled into the
    phrasing's prompt, as they appear there; the leak audit masks them.
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
    """A set divided once and for all: train, validation (for every choice made on the way) and held-out rows."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    heldout: tuple[Example, ...]
    origin: dict[str, Any] = field(default_factory=dict)  # of a published set: revision, subset, split, licence, rows left out

    @cached_property
    def train_sha256(self) -> str:
        """Hex digest of the training rows, order included."""
        return sha256_of([row.record() for row in self.train])

    @cached_property
    def heldout_sha256(self) -> str:
        """Hex digest of the held-out rows, order included: runs that differ here cannot be compared."""
        return sha256_of([row.record() for row in self.heldout])


class _Separators(dict[int, Any]):
    """For str.translate: punctuation, separators and control characters become a space (marks of a script stay)."""

    def __missing__(self, code: int) -> Any:
        self[code] = " " if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_SEPARATORS = _Separators()


def normalise(text: str) -> str:
    """`text` for comparing only: NFKC, casefolded, punctuation and white space collapsed to single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SEPARATORS).split()) or folded.strip()


def load_shipped_set(name_or_dir: str | Path, root: Path) -> Splits:
    """The shipped set `data/<name>` below the repository `root`, or a folder laid out like one.

    Raises NomoatError for an unknown set, a missing file or any malformed row.
    """
    folder = root / "data" / name_or_dir
    if not folder.is_dir():
        folder = Path(name_or_dir)
    if not (folder / "train.jsonl").is_file():
        known = sorted(path.parent.name for path in (root / "data").glob("*/train.jsonl"))
        raise NomoatError(f"data: no set named {str(name_or_dir)!r}{did_you_mean(str(name_or_dir), known)}")
    parts = {part: _load_file(folder / f"{part}.jsonl", SHIPPED_KEYS, tiers) for part, tiers in TIERS_OF_FILE.items()}
    _refuse_repeated_ids(str(folder), [row for rows in parts.values() for row in rows])
    return Splits(folder.name, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["heldout"]))


def load_heldout(path: Path) -> tuple[Example, ...]:
    """The held-out rows that a run keeps beside its report."""
    return tuple(_load_file(path, SHIPPED_KEYS, HELDOUT_TIERS))


def load_user_examples(path: Path, data: Data | None = None) -> list[Example]:
    """Rows of a user's .jsonl, .csv or .parquet file; only prompt and completion are required of each.

    `data` says what other columns hold them, which records count, and how rows are scored that do not say so themselves; a file with
    a prompt and a completion in its first record is taken as it is. Raises NomoatError naming file, line (record number in a
    .parquet), the value seen and what is allowed, for at most 20 problems at once.
    """
    found = list(_records(path))
    ready = any(isinstance(record, dict) and {"prompt", "completion"} <= record.keys() for _, record in found[:1])
    records = found if data is None or ready else map_columns(found, data.columns, data.where)
    return build_examples(str(path), records, score=data.score if data else None)


def build_examples(place: str, records: Records, *, score: dict[str, Any] | None = None) -> list[Example]:
    """Rows from records of `place` that have our keys; `score` is for those that state none. Raises as `load_user_rows` does."""
    if score is not None:
        records = _with_score(records, score)
    return _build_examples(place, records, USER_KEYS, ("train",), check_scores=True)


def _with_score(records: Records, score: dict[str, Any]) -> Records:
    for line, record in records:
        yield line, {**record, "score": record.get("score") or score} if isinstance(record, dict) else record


def _load_file(path: Path, keys: tuple[str, ...], tiers: tuple[str, ...]) -> list[Example]:
    return _build_examples(str(path), _records(path), keys, tiers)


def _records(path: Path) -> Records:
    if not path.is_file():
        raise NomoatError(f"{path}: no such file")
    return read_records(path)


def _build_examples(
    place: str, records: Records, keys: tuple[str, ...], tiers: tuple[str, ...], *, check_scores: bool = False
) -> list[Example]:
    """Check and build every row, or report the problems together.

    `check_scores`: also refuse a row whose own completion does not score 1. A shipped set is spared that at every
    start; its test does it.
    """
    rows: list[Example] = []
    problems: list[str] = []
    for line, record in records:
        found = [record] if isinstance(record, str) else _problems(record, keys, tiers)
        if not found:
            row = _example(record, line, tiers[0])
            found = _score_problems(row) if check_scores else []
            rows.append(row)
        problems += [f"{place}:{line}: {problem}" for problem in found]
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        more = "\n  (there may be more)" if len(problems) >= MAX_PROBLEMS else ""
        raise NomoatError("bad rows:\n  " + "\n  ".join(problems[:MAX_PROBLEMS]) + more)
    if not rows:
        raise NomoatError(f"{place}: no rows in it; one row a line is needed, with {' and '.join(keys[:2])}")
    _refuse_repeated_ids(place, rows)
    return rows


def _score_problems(row: Example) -> list[str]:
    from nomoat.scorers import check_spec

    return [f"score: {problem}" for problem in check_spec(row.score, row.completion)]


def _example(record: dict[str, Any], line: int, tier: str) -> Example:
    score = record.get("score") or "exact"
    return Example(
        id=record.get("id") or f"row-{line}",
        prompt=record["prompt"],
        completion=record["completion"],
        system=record.get("system"),
        family=record.get("family") or "rows",
        tier=record.get("tier") or tier,
        group=record.get("group") or hashlib.sha256(normalise(record["prompt"]).encode()).hexdigest()[:16],
        score={"by": score} if isinstance(score, str) else score,
        slots=tuple(record.get("slots") or ()),
    )


def _problems(record: Any, keys: tuple[str, ...], tiers: tuple[str, ...]) -> list[str]:
    """Everything wrong with one record, each with the value seen and what is allowed."""
    if not isinstance(record, dict):
        return [f"a row must be an object with {', '.join(keys)}; saw {quoted(record)}"]
    found = [f"no such key as {key!r}{did_you_mean(key, keys)}" for key in record if key not in keys]
    found += [f"{key} is missing" for key in ("prompt", "completion") if record.get(key) is None]
    texts = [key for key in keys if key not in ("score", "slots") and record.get(key) is not None]
    found += [f"{key} must be text that is not empty; saw {quoted(record[key])}" for key in texts if not _is_text(record[key])]
    if "tier" in keys and record.get("tier") not in tiers:
        found.append(f"tier must be {' or '.join(tiers)} in this file; saw {quoted(record.get('tier'))}")
    score = record.get("score")
    if score is not None and not _is_text(score.get("by") if isinstance(score, dict) else score):
        found.append(f'score must be the name of a scorer or an object like {{"by": "exact"}}; saw {quoted(score)}')
    slots = record.get("slots", [])
    if not isinstance(slots, list) or not all(_is_text(slot) for slot in slots):
        found.append(f"slots must be a list of texts; saw {quoted(slots)}")
    return found


def _is_text(value: Any) -> bool:
    """Text that is not blank and can be encoded (a lone surrogate cannot)."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= character <= "\udfff" for character in value)


def _refuse_repeated_ids(place: str, rows: list[Example]) -> None:
    seen: set[str] = set()
    twice = sorted({row.id for row in rows if row.id in seen or seen.add(row.id)})  # type: ignore[func-returns-value]
    if twice:
        raise NomoatError(f"{place}: the same id on more than one row: {', '.join(twice[:MAX_PROBLEMS])}; each row needs its own")
