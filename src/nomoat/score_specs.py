"""What may stand in a row's `score`: the keys of each scorer and the values they take, checked before anything runs."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from nomoat.constraints import check_rules
from nomoat.json_answers import parse_json
from nomoat.records import did_you_mean, shown
from nomoat.sql_sandbox import QueryFailed, Sandbox

KEYS: dict[str, tuple[str, ...]] = {
    "sql_rows": ("script",),
    "constraints": ("rules",),
    "label": ("labels",),
    "contains": ("all", "any"),
    "number": ("tolerance",),
    "choice": ("choices",),
}


def spec_problems(by: str, spec: Mapping[str, Any], completion: str) -> list[str]:
    """One line for each unknown key, missing key or unfit value of the spec of a known scorer."""
    known = KEYS.get(by, ())
    problems = [f"{by} has no key {shown(key)}{did_you_mean(str(key), known)}" for key in spec if key not in ("by", *known)]
    return problems + _value_problems(by, spec, completion)


def _value_problems(by: str, spec: Mapping[str, Any], completion: str) -> list[str]:
    """Problems with the values of a known scorer's keys."""
    if by in ("label", "choice"):
        key = f"{by}s"
        options: Any = spec.get(key)
        if not _texts(options) or len(set(options)) < max(2, len(options)):
            return [f"{by} needs {key}: a list of at least two different strings; saw {shown(options)}"]
        return [] if completion in options else [f"the completion {shown(completion)} is not one of the {key} {shown(options)}"]
    if by == "contains":
        return _contains_problems(spec)
    if by == "constraints":
        return check_rules(spec.get("rules"))
    if by == "sql_rows":
        return _sql_problems(spec.get("script"), completion)
    if by == "json_fields":
        return _json_problems(completion)
    if by == "number" and not _is_tolerance(spec.get("tolerance", 0)):
        return [f"tolerance must be a number from 0; saw {shown(spec['tolerance'])}"]
    return []


def _sql_problems(script: Any, query: str) -> list[str]:
    if not isinstance(script, str) or not script.strip():
        return [f"sql_rows needs script: the statements that build its tables; saw {shown(script)}"]
    try:
        with Sandbox(script) as sandbox:
            rows = sandbox.run(query, most=1).rows
    except (sqlite3.Error, QueryFailed) as error:
        return [f"the script or the reference query does not run: {error}"]
    return [] if rows else ["the reference query returns no rows, so that many wrong queries would pass: add rows to the script"]


def _json_problems(completion: str) -> list[str]:
    try:
        value = parse_json(completion)
    except ValueError as error:
        return [f"the completion must be a JSON object: {error}; saw {shown(completion)}"]
    return [] if isinstance(value, dict) else [f"the completion must be a JSON object; saw {shown(completion)}"]


def _contains_problems(spec: Mapping[str, Any]) -> list[str]:
    if not ("all" in spec or "any" in spec):
        return ["contains needs all, any or both: lists of strings"]
    return [
        f"{key} must be a list of strings, or of lists of strings that stand for one another; saw {shown(spec[key])}"
        for key in ("all", "any")
        if key in spec and not _entries(spec[key])
    ]


def _entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_texts([entry] if isinstance(entry, str) else entry) for entry in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
