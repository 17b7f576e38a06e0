"""Tables with other columns become rows through a column map, and records that do not fit are reported by name."""

from __future__ import annotations

from typing import Any

import pytest

from nomoat.config.schema import Columns, Tree
from nomoat.data.readers import Problem, map_columns


def one(record: Any, **columns: str) -> Any:
    [(line, found)] = map_columns([(3, record)], Columns(**columns))
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


def test_the_system_prompt_belongs_to_the_exchange() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    assert one({"m": turns}, messages="m") == {"system": "Be brief.", "prompt": "Who?", "completion": "Me."}
    assert one({"m": turns[:2]}, messages="m") == {"system": "Be brief.", "prompt": "Who?"}, (
        "the missing answer is reported by the code that needs it"
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
    ],
)
def test_what_does_not_fit_is_a_problem_of_that_record(record: Any, columns: Any, said: str) -> None:
    found = one(record, **columns)
    assert isinstance(found, Problem) and said in found


TREE = [
    {"message_id": "q1", "parent_id": None, "role": "prompter", "text": "Who?", "lang": "en", "rank": None},
    {"message_id": "a1", "parent_id": "q1", "role": "assistant", "text": "Worse.", "lang": "en", "rank": 1},
    {"message_id": "a2", "parent_id": "q1", "role": "assistant", "text": "Better.", "lang": "en", "rank": 0},
    {"message_id": "q2", "parent_id": "a2", "role": "prompter", "text": "And then?", "lang": "en", "rank": None},
    {"message_id": "a3", "parent_id": "q2", "role": "assistant", "text": "Later.", "lang": "en", "rank": 0},
    {"message_id": "q3", "role": "prompter", "text": "Nobody answers.", "lang": "en"},
    {"message_id": "a4", "parent_id": "q4", "role": "assistant", "text": "First.", "lang": "de"},
    {"message_id": "a5", "parent_id": "q4", "role": "assistant", "text": "Second.", "lang": "de"},
    {"message_id": "q4", "parent_id": None, "role": "prompter", "text": "Wer?", "lang": "de", "rank": None},
]


def test_a_tree_gives_each_opening_question_with_its_best_answer() -> None:
    found = list(map_columns(enumerate(TREE, start=1), Columns(tree=Tree())))
    assert found == [
        (1, {"id": "q1", "prompt": "Who?", "completion": "Better."}),
        (9, {"id": "q4", "prompt": "Wer?", "completion": "First."}),
    ]
    assert len(list(map_columns(enumerate(TREE), Columns(tree=Tree()), {"lang": "de"}))) == 1


def test_a_deleted_message_gives_no_text() -> None:
    deleted = [{**TREE[0], "text": " "}, TREE[1]]
    assert list(map_columns(enumerate(deleted, start=1), Columns(tree=Tree()))) == [(1, {"id": "q1", "completion": "Worse."})]


def test_a_table_without_the_columns_of_a_tree_or_of_where_is_refused_by_name() -> None:
    [(_, said)] = map_columns([(1, {"id": "q1", "text": "Who?", "role": "prompter"})], Columns(tree=Tree()))
    assert "data.columns.tree: no column 'message_id'" in said
    [(_, said)] = map_columns([(1, {"q": "Who?", "langs": "en"})], Columns(prompt="q", completion="q"), {"lang": "en"})
    assert "data.where: no column 'lang'; did you mean 'langs'?" in said
