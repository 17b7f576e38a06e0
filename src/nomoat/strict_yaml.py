"""YAML with its traps closed: what is read is what was written, or it is an error.

PyYAML reads `1e-3` as text, `no` as False, `010` as 8 and `1:30` as 90, and keeps the last of two equal keys in silence.
Here `1e-3` is a number, only `true` and `false` are booleans, and duplicate keys, unknown tags and alias bombs are errors.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from nomoat.errors import NomoatError

MAX_BYTES = 1_000_000  # a recipe is 1-3 kB; anchors that expand beyond this are an attack or an accident
_INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"^[-+]?([0-9][0-9_]*)?(\.[0-9_]+)?([eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$", re.IGNORECASE)
_HASH_LENGTH = 40  # a git revision or a sha256 may consist of digits only, or look like 12e34: it stays text


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and no silent overwriting."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = node.value
    if len(text) >= _HASH_LENGTH:
        return text
    if _INTEGER.match(text):
        return int(text.replace("_", ""))
    if any(character.isdigit() for character in text) or text.lower().lstrip("+-") in (".inf", ".nan"):
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, yaml.Node] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key_node.start_mark)
        if key_node.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{key_node.value}' is given twice", problem_mark=key_node.start_mark)
        seen[key_node.value] = key_node
    return loader.construct_mapping(node, deep=True)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:nomoat,number", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:nomoat,number", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:nomoat,number", _scalar)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _size(value: Any, budget: int) -> int:
    """What is left of `budget` characters after counting `value`, aliases counted each time they appear."""
    if budget < 0:
        return budget
    if isinstance(value, dict):
        for key, item in value.items():
            budget = _size(item, budget - len(str(key)))
        return budget
    if isinstance(value, list):
        for item in value:
            budget = _size(item, budget - 1)
        return budget
    return budget - len(str(value))


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document; NomoatError names the file, line and column of what is wrong."""
    if len(text) > MAX_BYTES:
        raise NomoatError(f"{where} is larger than {MAX_BYTES:,} characters: that is not a recipe")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NomoatError(f"{where}{place}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise NomoatError(f"{where} is not readable YAML: {str(error).splitlines()[0]}") from None
    if _size(value, MAX_BYTES) < 0:
        raise NomoatError(f"{where} expands to more than {MAX_BYTES:,} characters through its anchors")
    return value
