"""Rows from a table with other columns than ours: a declarative map, so that no set needs code of its own.

    columns: {prompt: "{instruction}\\n\\n{context}", completion: response, family: category}
    columns: {messages: messages}
    columns: {tree: {id: message_id, parent: parent_id, text: text, role: role, rank: rank}}

A value is the name of a column, or a text with columns in braces.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from nomoat.config.schema import Columns, Data, Tree
from nomoat.errors import NomoatError, did_you_mean, quoted

# MERGED records:
# Records of a .jsonl, .csv or .parquet file, each with its line, read as strictly as a row has to be.


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
                yield line, f"not a JSON value ({error}); saw {quoted(text)}"


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
        return f"more cells than the header has columns; saw {quoted(cells[None])}"
    record = {key: value for key, value in cells.items() if value or key in ("prompt", "completion")}
    if str(record.get("score", "")).startswith("{"):
        try:
            record["score"] = json.loads(record["score"], object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return f"score is not JSON ({error}); saw {quoted(record['score'])}"
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


# MERGED trees:
# Messages that answer each other, one a record, as OpenAssistant's sets have them: each opening question with its best answer.

ASKS, ANSWERS = ("prompter", "user", "human"), ("assistant", "gpt")


def tree_exchanges(records: Iterable[tuple[int, Any]], tree: Tree) -> Iterator[tuple[int, Any]]:
    """(line of the question, row) for each message without a parent that somebody asked; the answer is that of lowest rank, else the first.

    What is said later in a conversation needs what went before, so it is left out. A string in a record's place is a problem with it.
    """
    questions: dict[Any, tuple[int, str]] = {}
    answers: dict[Any, tuple[float, str]] = {}
    for line, record in records:
        problem = record if isinstance(record, str) else _missing_column(record, tree)
        if problem:
            yield line, problem
            continue
        parent, role, text = record.get(tree.parent), record[tree.role], record[tree.text]
        if parent is None and role in ASKS:
            questions[record[tree.id]] = (line, text)
        elif parent is not None and role in ANSWERS:
            rank = record.get(tree.rank)
            found = (float("inf") if rank is None else rank, text)
            if parent not in answers or found[0] < answers[parent][0]:
                answers[parent] = found
    for name, (line, text) in questions.items():
        if name in answers:
            said = {"id": str(name), "prompt": text, "completion": answers[name][1]}
            yield line, {key: value for key, value in said.items() if value and value.strip()}  # a deleted message has no text


def _missing_column(record: Any, tree: Tree) -> str | None:
    """Why this is no message: a column that is not there. Parent and rank may be missing, as empty cells are."""
    needed = (tree.id, tree.text, tree.role)
    missing = [name for name in needed if not isinstance(record, dict) or name not in record]
    return f"data.columns.tree: no column {missing[0]!r}{did_you_mean(missing[0], record)}" if missing else None


Records = Iterable[tuple[int, Any]]  # each with its line
_BRACES = re.compile(r"\{([^{}]+)\}")
_SPEAKERS = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLE, _CONTENT = ("role", "from"), ("content", "value", "text")  # as the usual formats call them


def map_columns(records: Records, columns: Columns | None, where: Mapping[str, Any] | None = None) -> Records:
    """Records with our keys in place of the table's columns; a string in a record's place is a problem with it.

    A key whose columns are all empty is left out of its record, as an empty cell is. `where` keeps records with these values only.
    """
    if columns is None and not where:
        return records
    records = _with_all_columns(records)
    if where:
        records = _matching(records, where)
    if columns is None:
        return records
    if columns.tree is not None:
        return tree_exchanges(records, columns.tree)
    return ((line, record if isinstance(record, str) else _map_record(record, columns)) for line, record in records)


def _with_all_columns(records: Records) -> Records:
    """Every record with the columns of all: the readers of .csv and .parquet leave empty cells out."""
    found = list(records)
    empty: dict[str, Any] = dict.fromkeys(key for _, record in found if isinstance(record, dict) for key in record)
    return [(line, {**empty, **record} if isinstance(record, dict) else record) for line, record in found]


def _matching(records: Records, where: Mapping[str, Any]) -> Records:
    for line, record in records:
        absent = next((name for name in where if isinstance(record, dict) and name not in record), None)
        if absent is not None:
            yield line, f"data.where: no column {absent!r}{did_you_mean(absent, record)}"
        elif not isinstance(record, dict) or all(record[name] == value for name, value in where.items()):
            yield line, record


def _map_record(record: Any, columns: Columns) -> dict[str, Any] | str:
    if not isinstance(record, dict):
        return f"a row must be an object; saw {quoted(record)}"
    texts = columns.model_dump(exclude_none=True)
    messages = texts.pop("messages", None)
    try:
        found = {key: _fill_template(record, text) for key, text in texts.items()}
        if messages is not None:
            found |= _first_exchange(_column(record, messages))
    except LookupError as error:
        return str(error.args[0])
    return {key: value for key, value in found.items() if value != ""}


def _fill_template(record: dict[str, Any], text: str) -> str:
    """The text with its columns filled in, blank lines and spaces at its ends taken off."""
    if text in record or not _BRACES.search(text):
        return _cell(record, text).strip()
    return _BRACES.sub(lambda found: _cell(record, found[1]), text).strip()


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
    """The first question and its answer out of a conversation, with what the system said before: one row is one exchange."""
    said: dict[str, str] = {}
    for turn in turns if isinstance(turns, list) else [turns]:
        role, content = _turn(turn)
        if role == "assistant" and "user" not in said:
            raise LookupError(f"a conversation must begin with the user; saw {quoted(turns)}")
        said.setdefault(role, content.strip())
        if role == "assistant":
            break
    ours = {"system": "system", "user": "prompt", "assistant": "completion"}
    return {key: said[role] for role, key in ours.items() if said.get(role)}


def _turn(turn: Any) -> tuple[str, str]:
    if isinstance(turn, dict):
        role, content = (next((turn[key] for key in keys if key in turn), None) for keys in (_ROLE, _CONTENT))
        if role in _SPEAKERS and isinstance(content, str):
            return _SPEAKERS[role], content
    raise LookupError(f'messages must be a list of {{"role": ..., "content": ...}}, roles {", ".join(_SPEAKERS)}; saw {quoted(turn)}')


TABLES = ("json", "csv", "parquet", "arrow")  # the formats whose readers run nothing and unpickle nothing
CARD = "README.md"


def read_hub_table(data: Data) -> tuple[Any, str | None]:
    """The split as a sequence of records, and the licence its card states."""
    from datasets import DownloadConfig, load_dataset_builder
    from huggingface_hub.errors import HfHubHTTPError

    source = data.source if data.hub else str(Path(data.source).expanduser())
    try:
        builder = load_dataset_builder(source, data.subset, revision=data.revision, download_config=DownloadConfig(max_retries=1))
        kind = type(builder).__module__.split(".")
        if kind[:2] != ["datasets", "packaged_modules"] or kind[2] not in TABLES:
            raise NomoatError(f"data: {data.source} is no plain table ({', '.join(TABLES)}); saw {kind[-1]}")
        builder.download_and_prepare()
        return builder.as_dataset(split=data.split or "train"), _card_license(data)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise NomoatError(_reason(data, error)) from None


def _reason(data: Data, error: Exception) -> str:
    said = str(error).strip().splitlines()[0][:300]
    if data.path or isinstance(error, ValueError):
        return f"data.{'hub' if data.hub else 'path'}: {data.source}: {said}"
    return (
        f"data.hub: {data.hub} at {str(data.revision)[:12]} could not be fetched ({said}). Check the name, the revision, the network and, "
        "for a gated set, your login; without a hub, give data.path a folder that holds the set"
    )


def _card_license(data: Data) -> str | None:
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        if data.hub:
            card = Path(hf_hub_download(data.hub, CARD, repo_type="dataset", revision=data.revision))
        else:
            card = Path(data.source).expanduser() / CARD
        stated = DatasetCard.load(card).data.license if card.is_file() else None
    except (EntryNotFoundError, ValueError):
        return None
    return ", ".join(stated) if isinstance(stated, list) else stated
