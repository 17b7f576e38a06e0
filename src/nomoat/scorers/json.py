"""The scorer `json_fields`: a JSON object with the reference's keys and values, in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from nomoat.errors import quoted
from nomoat.scorers.text import Score, Spec, result

MAX_DEPTH = 100  # nested arrays and objects
MAX_TRIES = 100  # opening braces tried as the start of an object


def parse_json(text: str) -> Any:
    """The one JSON value of a text. Raises ValueError for anything else: repeated keys, NaN, extra text, more than `MAX_DEPTH` levels."""
    return _bounded(lambda: json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse))


def _bounded(parse: Callable[[], Any]) -> Any:
    """The parsed value, or ValueError where it is nested too deep to be compared."""
    try:
        value = parse()
    except RecursionError:
        raise ValueError("nested too deep") from None
    level, depth = [value], 0
    while level:
        children = (value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list))
        level = [item for items in children for item in items]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the same key twice")
    return dict(pairs)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def same_json(left: Any, right: Any) -> bool:
    """Equality with types: 1, 1.0 and true differ, as they do for the programs that read JSON."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


def first_object(text: str) -> Any:
    """The first JSON object in a text, or None."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    start = text.find("{")
    for _ in range(MAX_TRIES):
        if start < 0:
            return None
        try:
            return _bounded(lambda at=start: decoder.raw_decode(text, at)[0])  # type: ignore[misc]
        except ValueError:
            start = text.find("{", start + 1)
    return None


def folded(value: Any) -> Any:
    """A value with lower-case text as its leaves: 3, 3.0 and "3" become equal, and so do "Paris " and "paris"."""
    if isinstance(value, dict):
        return {key: folded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [folded(item) for item in value]
    if isinstance(value, str):
        return value.strip().casefold()
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def json_fields(output: str, completion: str, _spec: Spec) -> Score:
    """Strict: the output is the completion's object. Lenient: the first object in the output has the same values as text."""
    reference = parse_json(completion)
    try:
        answer, note = parse_json(output), ""
    except ValueError as error:
        answer, note = None, f"not JSON: {error}"
    return result(same_json(answer, reference), folded(first_object(output)) == folded(reference), note)


def check_json_fields(_spec: Spec, completion: str) -> list[str]:
    try:
        value, why = parse_json(completion), ""
    except ValueError as error:
        value, why = None, f": {error}"
    return [] if isinstance(value, dict) else [f"the completion must be a JSON object{why}; saw {quoted(completion)}"]
