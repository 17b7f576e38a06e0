"""The scorer `json_fields`: a JSON object with the reference's keys and values, in any order.

Strict: the whole output is that object, types included. Lenient: the first object in the output has these values as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from nomoat.errors import quoted
from nomoat.scorers.text import Score, Scorer, Spec, result

MAX_DEPTH = 100  # of nesting
MAX_TRIES = 100  # opening braces that are tried as the beginning of an object


def parse_json(text: str) -> Any:
    """The one JSON value of a text. ValueError for anything else: repeated keys, NaN, extra text, nesting deeper than 100."""
    return _guarded(lambda: json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse))


def _guarded(parse: Callable[[], Any]) -> Any:
    try:
        value = parse()
    except RecursionError:
        raise ValueError("nested too deep") from None
    level, depth = [value], 0
    while level:
        level = [item for parent in level for item in _items(parent)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
    return value


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the same key twice")
    return dict(pairs)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def same_json(left: Any, right: Any) -> bool:
    """Equal with types: 1, 1.0 and true are three things, in JSON as in what reads it."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


def first_object(text: str) -> Any:
    """The first {...} of a text that is a JSON object, or None."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    start = text.find("{")
    for _ in range(MAX_TRIES):
        if start < 0:
            return None
        try:
            return _guarded(lambda at=start: decoder.raw_decode(text, at)[0])  # type: ignore[misc]
        except ValueError:
            start = text.find("{", start + 1)
    return None


def folded(value: Any) -> Any:
    """A value with its leaves as lower-case text: 3, 3.0 and "3" are one thing, as are "Paris " and "paris"."""
    if isinstance(value, dict):
        return {key: folded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [folded(item) for item in value]
    if isinstance(value, str):
        return value.strip().casefold()
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _json_fields(output: str, completion: str, _spec: Spec) -> Score:
    reference = parse_json(completion)
    try:
        answer, note = parse_json(output), ""
    except ValueError as error:
        answer, note = None, f"not JSON: {error}"
    return result(same_json(answer, reference), folded(first_object(output)) == folded(reference), note)


def _check_json(_spec: Spec, completion: str) -> list[str]:
    try:
        value, why = parse_json(completion), ""
    except ValueError as error:
        value, why = None, f": {error}"
    return [] if isinstance(value, dict) else [f"the completion must be a JSON object{why}; saw {quoted(completion)}"]


JSON_FIELDS = Scorer(_json_fields, check=_check_json)
