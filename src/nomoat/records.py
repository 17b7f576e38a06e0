"""Records of a .jsonl, .csv or .parquet file, each with its line, read as strictly as a row has to be."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from nomoat.errors import NomoatError


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, record) of a file, a string in the record's place being a problem with that line."""
    readers = {".jsonl": _jsonl_records, ".csv": _csv_records, ".parquet": _parquet_records}
    if path.suffix.lower() not in readers:
        raise NomoatError(f"{path}: rows must be in a {', '.join(readers)} file; saw {path.suffix or 'no ending'!r}")
    return readers[path.suffix.lower()](path)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NomoatError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _jsonl_records(path: Path) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(_text_of(path).split("\n"), start=1):
        if text.strip():
            try:
                yield line, json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                yield line, f"not a JSON value ({error}); saw {shown(text)}"


def _csv_records(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_text_of(path), newline=""), strict=True)
    line = 1
    try:
        if len(set(reader.fieldnames or [])) < len(reader.fieldnames or []):
            raise NomoatError(f"{path}:1: the same column twice in the header: {', '.join(reader.fieldnames or [])}")
        line = reader.line_num + 1
        for cells in reader:
            yield line, _csv_record(cells)
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, f"not CSV ({error})"


def _csv_record(cells: dict[Any, Any]) -> dict[str, Any] | str:
    """Cells as a record: an empty cell is a missing one, a score that starts with a brace is JSON."""
    if None in cells:
        return f"more cells than the header has columns; saw {shown(cells[None])}"
    record = {key: value for key, value in cells.items() if value or key in ("prompt", "completion")}
    if str(record.get("score", "")).startswith("{"):
        try:
            record["score"] = json.loads(record["score"], object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return f"score is not JSON ({error}); saw {shown(record['score'])}"
    return record


def _parquet_records(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise NomoatError(f"{path}: not a readable .parquet file ({error})") from None
    for line, record in enumerate(records, start=1):
        yield line, _without_nulls(record)


def _without_nulls(value: Any) -> Any:
    """Parquet gives every record every field: a null one is a missing one."""
    return {key: _without_nulls(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("the same key twice")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def shown(value: Any) -> str:
    """A value as a message quotes it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a near miss, and always what is allowed."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" (allowed: {', '.join(known) or 'none'})"
