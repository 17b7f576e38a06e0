"""Tables with other columns become rows by a map, and what does not fit is told by name."""

from __future__ import annotations

from typing import Any

import pytest

from nomoat.columns import mapped
from nomoat.recipe import Columns


def one(record: Any, **columns: str) -> Any:
    [(line, found)] = mapped([(3, record)], Columns(**columns))
    assert line == 3
    return found


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"q": "Who?", "a": "Me."}, {"prompt": "q", "completion": "a"}, {"prompt": "Who?", "completion": "Me."}),
        ({"q": "Who?", "c": "", "a": 4}, {"prompt": "{q}\n\n{c}", "completion": "{a}"}, {"prompt": "Who?", "completion": "4"}),
        (
            {"q": "Who?", "c": "A {q} b.", "a": "x"},
            {"prompt": "{c}\n{q}", "completion": "a"},
            {"prompt": "A {q} b.\nWho?", "completion": "x"},
        ),
        ({"q": None, "a": "x"}, {"prompt": "q", "completion": "a"}, {"completion": "x"}),
        ({"{q}": "odd name", "a": "x"}, {"prompt": "{q}", "completion": "a"}, {"prompt": "odd name", "completion": "x"}),
        (
            {"q": "Who?", "a": "Me.", "topic": "people", "n": 7},
            {"prompt": "q", "completion": "a", "family": "topic", "id": "row {n}", "system": "Answer briefly about {topic}."},
            {"prompt": "Who?", "completion": "Me.", "family": "people", "id": "row 7", "system": "Answer briefly about people."},
        ),
    ],
)
def test_a_column_or_a_text_with_columns_becomes_a_key(record: Any, columns: Any, expected: Any) -> None:
    assert one(record, **columns) == expected


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " Me."}],
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}, {"from": "human", "value": "Sure?"}],
        [{"role": "prompter", "text": "Who?"}, {"role": "assistant", "text": "Me."}, {"role": "assistant", "text": "No."}],
    ],
)
def test_a_conversation_gives_its_first_exchange(turns: Any) -> None:
    assert one({"m": turns}, messages="m") == {"prompt": "Who?", "completion": "Me."}


def test_what_the_system_said_goes_with_the_exchange() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    assert one({"m": turns}, messages="m") == {"system": "Be brief.", "prompt": "Who?", "completion": "Me."}
    assert one({"m": turns[:2]}, messages="m") == {"system": "Be brief.", "prompt": "Who?"}, (
        "the missing answer is told by whoever needs it"
    )


@pytest.mark.parametrize(
    ("record", "columns", "said"),
    [
        ({"question": "a", "b": "c"}, {"prompt": "questoin", "completion": "b"}, "no column 'questoin'; did you mean 'question'?"),
        ({"q": "a"}, {"prompt": "{q} {w}", "completion": "q"}, "no column 'w'"),
        ({"q": ["a"], "b": "c"}, {"prompt": "q", "completion": "b"}, "column 'q' must hold text or a number; saw ['a']"),
        ({"m": "Who?"}, {"messages": "m"}, "messages must be a list"),
        ({"m": [{"role": "tool", "content": "x"}]}, {"messages": "m"}, "roles system, user"),
        ({"m": [{"role": "assistant", "content": "x"}]}, {"messages": "m"}, "must begin with the user"),
        ("text", {"prompt": "q", "completion": "a"}, "a row must be an object; saw 'text'"[:24]),
    ],
)
def test_what_does_not_fit_is_a_problem_of_that_record(record: Any, columns: Any, said: str) -> None:
    found = one(record, **columns)
    assert isinstance(found, str) and (said in found or found == record)
