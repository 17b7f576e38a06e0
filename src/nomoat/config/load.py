"""Recipes from YAML files and `section.key=value` overrides, with every problem reported at once."""

from __future__ import annotations

import datetime
import difflib
import os
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nomoat.config.schema import BASE_SOURCES, DATA_SOURCES, Recipe, Section, kind_of_rate, map_paths
from nomoat.errors import NomoatError, RecipeError, first_line
from nomoat.io import canonical_json

MAX_BYTES = 1_000_000  # a recipe has 1 to 3 kB
MAX_PARENTS = 8


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without duplicate keys.

    PyYAML reads `1e-3` as text, `no` as False, `010` as 8 and `1:30` as 90, and silently keeps the last of two equal keys. Here `1e-3`
    is a number, only `true` and `false` are booleans, and duplicate keys and unknown tags are errors.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_document(self, node: Any) -> Any:
        if _expanded_size(node, {}) > MAX_BYTES:
            raise yaml.MarkedYAMLError(problem="its aliases repeat too much", problem_mark=node.start_mark)
        return super().construct_document(node)


def _expanded_size(node: Any, known: dict[Any, int]) -> int:
    """Number of values once every alias is replaced by what it stands for; a cycle, which the constructor refuses, counts once."""
    if node not in known:
        known[node] = 1
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        known[node] += sum(_expanded_size(part, known) for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
    return known[node]


for _type, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"^({_pattern})$"), list(_first))


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document; NomoatError names file, line and column of a mistake."""
    if len(text) > MAX_BYTES:
        raise NomoatError(f"{where} is larger than {MAX_BYTES:,} characters: that is not a recipe")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NomoatError(f"{where}{place}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise NomoatError(f"{where} is not readable YAML: {first_line(error)}") from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, its parents and the overrides into one Recipe; RecipeError lists every problem.

    A path in a file is relative to the folder of that file, a path in an override to the current folder; the Recipe has absolute paths.
    """
    return _validate(_read_with_parents(path, ()), path, overrides)


def run_recipe(run_dir: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a finished run, from its recipe.yaml.

    That file's paths are relative to the folder in which the run was trained, which usually is a parent of the run's own folder: the
    nearest one where the path exists is taken, and without one the current folder.
    """
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise NomoatError(f"{run_dir} is not a run directory (no recipe.yaml in it); runs are made by `make train` below runs/")
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter yet: finish it with the `make train` command that began it")

    def resolve(stated: str) -> str:
        places = [_absolute(folder, stated) for folder in (*run_dir.absolute().parents, Path.cwd())]
        return next(filter(os.path.exists, places), places[-1])

    return _validate(map_paths(_read_mapping(path), resolve), path, overrides)


def _validate(raw: dict[str, Any], path: Path, overrides: Sequence[str]) -> Recipe:
    stated: dict[str, Any] = {}
    for override in overrides:
        stated = _merge(stated, _parse_override(override), among_overrides=True)
    raw = _merge(raw, map_paths(stated, lambda place: _absolute(Path.cwd(), place)))
    try:
        return Recipe.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        raise RecipeError(str(path), [_describe_problem(item) for item in error.errors(include_url=False)]) from None


def _absolute(folder: Path, stated: str) -> str:
    return os.path.abspath(folder / os.path.expanduser(stated))


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen or len(seen) >= MAX_PARENTS:
        raise NomoatError(f"{path}: `extends` forms a circle or is deeper than {MAX_PARENTS} files")
    value = _read_mapping(path)
    parent = value.pop("extends", None)
    value = map_paths(value, lambda stated: _absolute(path.parent, stated))
    if parent is None:
        return value
    if not isinstance(parent, str):
        raise NomoatError(f"{path}: extends is {parent!r}; expected the file name of another recipe")
    return _merge(_read_with_parents(path.parent / parent, (*seen, path.resolve())), value)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, sorted(p.stem for p in path.parent.glob("*.yaml")), n=3)
        hint = f"; did you mean {' or '.join(str(path.parent / f'{name}.yaml') for name in near)}?" if near else ""
        raise NomoatError(f"there is no recipe {path}{hint}") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise NomoatError(f"{path} is not a readable recipe file: {error}") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise NomoatError(f"{path} holds {type(value).__name__}, not a recipe: expected keys such as base, data, lora, train")
    return value


def _merge(parent: dict[str, Any], child: dict[str, Any], *, among_overrides: bool = False) -> dict[str, Any]:
    """Child over parent, key by key; a block of alternatives (base, data, rate) is replaced, not mixed.

    The overrides of one command give such a block key by key in any order, so among themselves they are joined, except for the rate.
    """
    merged = {**parent, **child}
    for key in parent.keys() & child.keys():
        old, new = parent[key], child[key]
        joined = isinstance(old, dict) and isinstance(new, dict)
        if joined and ((among_overrides and key != "rate") or not _replaces(key, old, new)):
            merged[key] = _merge(old, new, among_overrides=among_overrides)
    return merged


def _replaces(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether `new` states another alternative than `old`: another source of base or rows, or electricity in place of rental."""
    if key == "base":
        return any(source in new for source in BASE_SOURCES)
    if key == "data":  # the parent's fraction or columns belong to the parent's rows
        return any(source in new and new[source] != old.get(source) for source in DATA_SOURCES)
    return key == "rate" and kind_of_rate(old) != kind_of_rate(new)


def _parse_override(override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise NomoatError(f"the override '{override}' is not of the form section.key=value, as in train.learning_rate=1e-3")
    value: Any = parse_yaml(text, f"the override '{override}'")
    for key in reversed(keys):
        value = {key: value}
    return value


def _describe_problem(item: Any) -> str:
    """One line: dotted path, what is wrong, the value seen, the nearest known key for a typo."""
    keys = [str(part) for part in item["loc"] if not str(part).startswith("<")]
    path = ".".join(keys) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{path}: no such key{_nearest(keys)}"
    if item["type"] == "missing":
        return f"{path}: missing; this key is required"
    message = item["msg"].removeprefix("Value error, ")
    seen = item.get("input")
    plain = isinstance(seen, str | bool | int | list) or seen is None
    shown = "" if isinstance(seen, dict) else f" (seen: {canonical_json(seen) if plain else repr(seen)})"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _nearest(keys: list[str]) -> str:
    """The most similar key of the same block, else of any block, else the keys of the block."""
    block = ".".join("N" if key.isdigit() else key for key in keys[:-1])
    known = [(description.key, *description.key.rpartition(".")) for description in describe_keys()]
    here = {key: path for path, parent, _, key in known if parent == block}
    everywhere = {key: path for path, _, _, key in known}
    for candidates in (here, everywhere):
        for near in difflib.get_close_matches(keys[-1], sorted(candidates), n=1):
            return f"; did you mean {candidates[near]}?"
    return f"; known keys here: {', '.join(sorted(here))}"


@dataclass(frozen=True)
class KeyDescription:
    """One key of a recipe for its reader; `key` is dotted, with N for a position in a list, `type` "block" for a section."""

    key: str
    type: str
    default: str
    meaning: str


def describe_keys(section: type[Section] = Recipe, prefix: str = "") -> list[KeyDescription]:
    """Every key of a recipe (or of another section, below `prefix`), sections before the keys in them, in the order of the schema."""
    described: list[KeyDescription] = []
    for name, field in section.model_fields.items():
        kind = _type_in_words(field.annotation, field.metadata)
        default = "required" if field.is_required() else "" if isinstance(field.default, Section) else _as_yaml(field.default)
        described.append(KeyDescription(f"{prefix}{name}", kind, default, field.description or ""))
        position = "N." if kind.startswith("list") else ""
        described += [key for inner in _sections_in(field.annotation) for key in describe_keys(inner, f"{prefix}{name}.{position}")]
    return described


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
PLAIN_TYPES = {str: "text", bool: "true or false", int: "integer", float: "number", dict: "mapping", datetime.date: "date"}


def _type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    constraints = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    origin, parts = get_origin(annotation), get_args(annotation)
    for stated in constraints:
        if isinstance(stated, str):
            return stated
    if origin is Annotated:
        return _type_in_words(parts[0], parts[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_in_words(part, metadata) for part in parts if part is not type(None)))
    if origin is Literal:
        *others, last = (f"`{word}`" for word in parts)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is tuple:
        return f"list of {_type_in_words(parts[0]).replace('block', 'blocks')}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "block"
    bounds = [f"{words} {getattr(item, name):g}" for name, words in BOUNDS.items() for item in constraints if hasattr(item, name)]
    return " ".join([PLAIN_TYPES[origin or annotation], " and ".join(bounds)]).strip()
