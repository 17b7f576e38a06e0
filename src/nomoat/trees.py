"""Messages that answer each other, one a record, as OpenAssistant's sets have them: each opening question with its best answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nomoat.records import did_you_mean
from nomoat.sources import Tree

ASKS, ANSWERS = ("prompter", "user", "human"), ("assistant", "gpt")


def exchanges(records: Iterable[tuple[int, Any]], tree: Tree) -> Iterator[tuple[int, Any]]:
    """(line of the question, row) for each message without a parent that somebody asked; the answer is that of lowest rank, else the first.

    What is said later in a conversation needs what went before, so it is left out. A string in a record's place is a problem with it.
    """
    questions: dict[Any, tuple[int, str]] = {}
    answers: dict[Any, tuple[float, str]] = {}
    for line, record in records:
        problem = record if isinstance(record, str) else _absent(record, tree)
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


def _absent(record: Any, tree: Tree) -> str | None:
    """Why this is no message: a column that is not there. Parent and rank may be missing, as empty cells are."""
    needed = (tree.id, tree.text, tree.role)
    missing = [name for name in needed if not isinstance(record, dict) or name not in record]
    return f"data.columns.tree: no column {missing[0]!r}{did_you_mean(missing[0], record)}" if missing else None
