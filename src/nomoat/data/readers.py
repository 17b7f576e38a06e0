"""Records of data files and hub tables, and the column maps that turn them into rows.

    columns: {prompt: "{instruction}\\n\\n{context}", completion: response, family: category}
    columns: {messages: messages}
    columns: {tree: {id: message_id, parent: parent_id, text: text, role: role, rank: rank}}

A column map is declarative, so no data set needs code. A value is a column's name, or a text with columns in braces.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from nomoat.config.schema import Columns, Data, Tree
from nomoat.errors import NomoatError, did_you_mean, first_line, quoted
from nomoat.io import SURROGATE
from nomoat.scorers.json import parse_json

TABLES = ("json", "csv", "parquet", "arrow")  # hub formats whose readers execute nothing and unpickle nothing
CARD = "README.md"
ASKS, ANSWERS = ("user", "human", "prompter"), ("assistant", "gpt")
SPEAKERS = {"system": "system", **dict.fromkeys(ASKS, "user"), **dict.fromkeys(ANSWERS, "assistant")}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")  # of a chat turn, in the common formats
_BRACES = re.compile(r"\{([^{}]+)\}")


class Problem(str):
    """What is wrong with a line; it takes the place of the line's record."""


Records = Iterable[tuple[int, Any]]  # line number (or number of the record) and a record or Problem


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, record or Problem) for each record of a .jsonl, .csv or .parquet file; NomoatError if it is none of these."""
    readers = {".jsonl": _jsonl_records, ".csv": _csv_records, ".parquet": _parquet_records}
    if not path.is_file():
        raise NomoatError(f"{path}: no such file")
    if path.suffix.lower() not in readers:
        raise NomoatError(f"{path}: rows must be in a {', '.join(readers)} file; saw {path.suffix or 'no ending'!r}")
    return readers[path.suffix.lower()](path)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # a spreadsheet's byte-order mark is no text
    except UnicodeDecodeError as error:
        raise NomoatError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _parse_json(text: str) -> Any:
    """One JSON value; ValueError as `parse_json` says and for half of a surrogate pair, which no UTF-8 file can hold."""
    value = parse_json(text)
    if "\\u" in text and SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("a \\ud800 to \\udfff without its other half is no character")
    return value


def _jsonl_records(path: Path) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(_text_of(path).split("\n"), start=1):
        if text.strip():
            try:
                yield line, _parse_json(text)
            except ValueError as error:
                yield line, Problem(f"not a JSON value ({error}); saw {quoted(text)}")


def _csv_records(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_text_of(path), newline=""), strict=True)
    line = 1
    try:
        header = list(reader.fieldnames or [])
        if len(set(header)) < len(header):
            raise NomoatError(f"{path}:1: the same column twice in the header: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            yield line, _csv_record(cells)
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, Problem(f"not CSV ({error})")


def _csv_record(cells: dict[Any, Any]) -> dict[str, Any] | Problem:
    """Cells as a record: an empty cell is a missing one, a score that starts with a brace is JSON."""
    if None in cells:
        return Problem(f"more cells than the header has columns; saw {quoted(cells[None])}")
    record = {key: value for key, value in cells.items() if value or key in ("prompt", "completion")}
    if str(record.get("score", "")).startswith("{"):
        try:
            record["score"] = _parse_json(record["score"])
        except ValueError as error:
            return Problem(f"score is not JSON ({error}); saw {quoted(record['score'])}")
    return record


def _parquet_records(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise NomoatError(f"{path}: not a readable .parquet file ({first_line(error)})") from None
    for line, record in enumerate(records, start=1):
        yield line, _without_nulls(record)


def _without_nulls(value: Any) -> Any:
    """Parquet gives every record every field; a null one counts as missing."""
    return {key: _without_nulls(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def map_columns(records: Records, columns: Columns | None, where: Mapping[str, Any] | None = None) -> Records:
    """Records with a row's keys in place of the table's columns, or a Problem for a record that does not fit.

    A key whose columns are all empty is left out of its record, as an empty cell is. `where` keeps only records with these values. What
    is not an object stays as it is, to be refused with its line when rows are built.
    """
    if columns is None and not where:
        return records
    # The readers of .csv and .parquet leave empty cells out: every record gets the columns of all of them.
    records = list(records)
    empty: dict[str, Any] = dict.fromkeys(key for _, record in records if isinstance(record, dict) for key in record)
    records = [(line, {**empty, **record} if isinstance(record, dict) else record) for line, record in records]
    if where:
        records = _matching(records, where)
    if columns is None:
        return records
    if columns.tree is not None:
        return _first_exchanges_of_trees(records, columns.tree)
    return ((line, _map_record(record, columns) if isinstance(record, dict) else record) for line, record in records)


def _matching(records: Records, where: Mapping[str, Any]) -> Records:
    for line, record in records:
        if isinstance(record, dict) and (absent := [name for name in where if name not in record]):
            yield line, Problem(f"data.where: no column {absent[0]!r}{did_you_mean(absent[0], record)}")
        elif not isinstance(record, dict) or where.items() <= record.items():
            yield line, record


def _map_record(record: dict[str, Any], columns: Columns) -> dict[str, Any] | Problem:
    texts = columns.model_dump(exclude_none=True)
    messages = texts.pop("messages", None)
    try:
        row = {key: _fill_template(record, text) for key, text in texts.items()}
        if messages is not None:
            row |= _first_exchange(_column(record, messages))
    except LookupError as error:
        return Problem(error.args[0])
    return {key: value for key, value in row.items() if value != ""}


def _fill_template(record: dict[str, Any], text: str) -> str:
    """The text with its columns filled in, without white space at its ends."""
    if text in record or not _BRACES.search(text):
        return _cell(record, text).strip()
    return _BRACES.sub(lambda braces: _cell(record, braces[1]), text).strip()


def _cell(record: dict[str, Any], column: str) -> str:
    value = _column(record, column)
    if value is not None and not isinstance(value, str | int | float):
        raise LookupError(f"column {column!r} must hold text or a number; saw {quoted(value)}")
    return "" if value is None else str(value)


def _column(record: dict[str, Any], column: str) -> Any:
    if column not in record:
        raise LookupError(f"data.columns: no column {column!r}{did_you_mean(column, record)}")
    return record[column]


def _first_exchange(turns: Any) -> dict[str, str]:
    """Prompt and completion of a conversation's first exchange, and the system prompt before it."""
    said: dict[str, str] = {}
    for turn in turns if isinstance(turns, list) else [turns]:
        role, content = _turn(turn)
        if role == "assistant" and "user" not in said:
            raise LookupError(f"a conversation must begin with the user; saw {quoted(turns)}")
        said.setdefault(role, content.strip())
        if role == "assistant":
            break
    keys = {"system": "system", "user": "prompt", "assistant": "completion"}
    return {key: said[role] for role, key in keys.items() if said.get(role)}


def _turn(turn: Any) -> tuple[str, str]:
    if isinstance(turn, dict):
        role, content = (next((turn[key] for key in keys if key in turn), None) for keys in (ROLE_KEYS, CONTENT_KEYS))
        if role in SPEAKERS and isinstance(content, str):
            return SPEAKERS[role], content
    raise LookupError(f'messages must be a list of {{"role": ..., "content": ...}}, roles {", ".join(SPEAKERS)}; saw {quoted(turn)}')


def _first_exchanges_of_trees(records: Records, tree: Tree) -> Iterator[tuple[int, Any]]:
    """(line of the question, row) for each answered opening question, with its answer of lowest rank, else the first one.

    Later messages need the conversation before them, so they are left out.
    """
    questions: dict[Any, tuple[int, str]] = {}
    answers: dict[Any, tuple[float, str]] = {}
    for line, record in records:
        absent = [name for name in (tree.id, tree.text, tree.role) if isinstance(record, dict) and name not in record]
        if absent or not isinstance(record, dict):  # parent and rank may be missing, as empty cells are
            yield line, Problem(f"data.columns.tree: no column {absent[0]!r}{did_you_mean(absent[0], record)}") if absent else record
            continue
        parent, role, text = record.get(tree.parent), record[tree.role], record[tree.text]
        if parent is None and role in ASKS:
            questions[record[tree.id]] = (line, text)
        elif parent is not None and role in ANSWERS:
            rank = float("inf") if record.get(tree.rank) is None else record[tree.rank]
            answers[parent] = min(answers.get(parent, (rank, text)), (rank, text), key=itemgetter(0))  # the first one of equal rank
    for name, (line, text) in questions.items():
        if name in answers:
            row = {"id": str(name), "prompt": text, "completion": answers[name][1]}
            yield line, {key: value for key, value in row.items() if value and value.strip()}  # a deleted message has no text


def read_hub_table(data: Data) -> tuple[Any, str | None]:
    """The records of the data set's split, and the licence that its card states.

    Raises NomoatError if the set cannot be fetched, is not a plain table, or has no such subset or split. A set's own code never runs.
    """
    from datasets import DownloadConfig, load_dataset_builder
    from huggingface_hub.errors import HfHubHTTPError

    place, key = data.hub or data.path, "hub" if data.hub else "path"
    try:
        builder = load_dataset_builder(place, data.subset, revision=data.revision, download_config=DownloadConfig(max_retries=1))
        kind = type(builder).__module__.split(".")
        if kind[:2] != ["datasets", "packaged_modules"] or kind[2] not in TABLES:
            raise NomoatError(f"data.{key}: {data.source} is not a plain table ({', '.join(TABLES)}); saw {kind[-1]}")
        builder.download_and_prepare()
        return builder.as_dataset(split=data.split or "train"), _card_license(data)
    except (OSError, ValueError, HfHubHTTPError) as error:
        if data.path or isinstance(error, ValueError):
            raise NomoatError(f"data.{key}: {data.source}: {first_line(error)}") from None
        raise NomoatError(
            f"data.hub: {data.hub} at {str(data.revision)[:12]} could not be fetched ({first_line(error)}). Check the name, the revision, "
            "the network and, for a gated set, your login; without a hub, set data.path to a folder that holds the set"
        ) from None


def _card_license(data: Data) -> str | None:
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        card = hf_hub_download(data.hub, CARD, repo_type="dataset", revision=data.revision) if data.hub else f"{data.path}/{CARD}"
        stated = DatasetCard.load(card).data.license if Path(card).is_file() else None
    except (EntryNotFoundError, ValueError):
        return None
    return ", ".join(stated) if isinstance(stated, list) else stated
