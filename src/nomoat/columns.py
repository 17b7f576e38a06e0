"""Rows from a table with other columns than ours: a declarative map, so that no set needs code of its own.

    columns: {prompt: "{instruction}\\n\\n{context}", completion: response, family: category}
    columns: {messages: messages}
    columns: {tree: {id: message_id, parent: parent_id, text: text, role: role, rank: rank}}

A value is the name of a column, or a text with columns in braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nomoat.records import did_you_mean, shown
from nomoat.sources import Columns
from nomoat.trees import exchanges

Records = Iterable[tuple[int, Any]]  # each with its line
_BRACES = re.compile(r"\{([^{}]+)\}")
_SPEAKERS = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLE, _CONTENT = ("role", "from"), ("content", "value", "text")  # as the usual formats call them


def mapped(records: Records, columns: Columns | None, where: Mapping[str, Any] | None = None) -> Records:
    """Records with our keys in place of the table's columns; a string in a record's place is a problem with it.

    A key whose columns are all empty is left out of its record, as an empty cell is. `where` keeps records with these values only.
    """
    if columns is None and not where:
        return records
    records = _level(records)
    if where:
        records = _kept(records, where)
    if columns is None:
        return records
    if columns.tree is not None:
        return exchanges(records, columns.tree)
    return ((line, record if isinstance(record, str) else _mapped(record, columns)) for line, record in records)


def _level(records: Records) -> Records:
    """Every record with the columns of all: the readers of .csv and .parquet leave empty cells out."""
    found = list(records)
    empty: dict[str, Any] = dict.fromkeys(key for _, record in found if isinstance(record, dict) for key in record)
    return [(line, {**empty, **record} if isinstance(record, dict) else record) for line, record in found]


def _kept(records: Records, where: Mapping[str, Any]) -> Records:
    for line, record in records:
        absent = next((name for name in where if isinstance(record, dict) and name not in record), None)
        if absent is not None:
            yield line, f"data.where: no column {absent!r}{did_you_mean(absent, record)}"
        elif not isinstance(record, dict) or all(record[name] == value for name, value in where.items()):
            yield line, record


def _mapped(record: Any, columns: Columns) -> dict[str, Any] | str:
    if not isinstance(record, dict):
        return f"a row must be an object; saw {shown(record)}"
    texts = columns.model_dump(exclude_none=True)
    messages = texts.pop("messages", None)
    try:
        found = {key: _filled(record, text) for key, text in texts.items()}
        if messages is not None:
            found |= _exchange(_column(record, messages))
    except LookupError as error:
        return str(error.args[0])
    return {key: value for key, value in found.items() if value != ""}


def _filled(record: dict[str, Any], text: str) -> str:
    """The text with its columns filled in, blank lines and spaces at its ends taken off."""
    if text in record or not _BRACES.search(text):
        return _cell(record, text).strip()
    return _BRACES.sub(lambda found: _cell(record, found[1]), text).strip()


def _cell(record: dict[str, Any], column: str) -> str:
    value = _column(record, column)
    if value is not None and not isinstance(value, str | int | float):
        raise LookupError(f"column {column!r} must hold text or a number; saw {shown(value)}")
    return "" if value is None else str(value)


def _column(record: dict[str, Any], column: str) -> Any:
    if column not in record:
        raise LookupError(f"data.columns: no column {column!r}{did_you_mean(column, record)}")
    return record[column]


def _exchange(turns: Any) -> dict[str, str]:
    """The first question and its answer out of a conversation, with what the system said before: one row is one exchange."""
    said: dict[str, str] = {}
    for turn in turns if isinstance(turns, list) else [turns]:
        role, content = _turn(turn)
        if role == "assistant" and "user" not in said:
            raise LookupError(f"a conversation must begin with the user; saw {shown(turns)}")
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
    raise LookupError(f'messages must be a list of {{"role": ..., "content": ...}}, roles {", ".join(_SPEAKERS)}; saw {shown(turn)}')
