"""From YAML files and `section.key=value` overrides to a Recipe, with every problem reported at once."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nomoat.config.schema import BASE_SOURCES, DATA_SOURCES, Recipe
from nomoat.errors import NomoatError, RecipeError
from nomoat.io import canonical_json

# MERGED strict_yaml:
# YAML with its traps closed: what is read is what was written, or it is an error.
#
# PyYAML reads `1e-3` as text, `no` as False, `010` as 8 and `1:30` as 90, and keeps the last of two equal keys in silence.
# Here `1e-3` is a number, only `true` and `false` are booleans, and duplicate keys, unknown tags and alias bombs are errors.

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


MAX_PARENTS = 8
ELECTRICITY = {"watts", "usd_per_kwh"}


def load_recipe(path: Path, overrides: list[str] | tuple[str, ...] = (), *, folder: Path | None = None) -> Recipe:
    """Read `path`, its parents and the overrides into one Recipe; RecipeError lists every problem.

    Paths inside are relative to `folder`, by default the recipe's own (a run's recipe.yaml has them resolved already); those of
    overrides to where the command is given.
    """
    raw = _read_with_parents(path, ())
    stated: dict[str, Any] = {}
    for override in overrides:
        stated = _merge(stated, _parse_override(override), overrides=True)
    raw = _merge(raw, _from_here(stated))
    raw.setdefault("name", path.stem)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(str(path), describe_problems(error)) from None
    return _with_portable_paths(recipe, path.parent if folder is None else folder)


def _from_here(stated: dict[str, Any]) -> dict[str, Any]:
    """Overrides with their paths made absolute."""
    found = {block: dict(value) if isinstance(value, dict) else value for block, value in stated.items()}
    for block, key in (("base", "path"), ("data", "rows"), ("data", "path"), ("lora", "start")):
        of = found.get(block)
        value = of.get(key) if isinstance(of, dict) else None
        if isinstance(of, dict) and isinstance(value, str) and (key != "rows" or is_data_file(value)):
            of[key] = str(Path(value).expanduser().absolute())
    return found


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen or len(seen) >= MAX_PARENTS:
        raise NomoatError(f"{path}: `extends` goes round in a circle or deeper than {MAX_PARENTS} files")
    value = parse_yaml(_read_text(path), str(path))
    if not isinstance(value, dict):
        raise NomoatError(f"{path} holds {type(value).__name__}, not a recipe: expected keys such as base, data, lora, train")
    parent = value.pop("extends", None)
    if parent is None:
        return value
    if not isinstance(parent, str):
        raise NomoatError(f"{path}: extends is {parent!r}; expected the file name of another recipe")
    return _merge(_read_with_parents(path.parent / parent, (*seen, path.resolve())), value)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, sorted(p.stem for p in path.parent.glob("*.yaml")), n=3)
        hint = f"; did you mean {' or '.join(str(path.parent / f'{name}.yaml') for name in near)}?" if near else ""
        raise NomoatError(f"there is no recipe {path}{hint}") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise NomoatError(f"{path} is not a readable recipe file: {error}") from None


def _merge(parent: dict[str, Any], child: dict[str, Any], *, overrides: bool = False) -> dict[str, Any]:
    """Child over parent, key by key; a block of alternatives (base, data, rate) is replaced, not mixed.

    One line's `overrides` say such a block piece by piece, in any order, so among themselves base and data are joined.
    """
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and ((overrides and key != "rate") or not _replaces(key, old, value)):
            merged[key] = _merge(old, value, overrides=overrides)
        else:
            merged[key] = value
    return merged


def _replaces(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether `new` states another alternative than `old`: another source of base or rows, or electricity in place of rental."""
    if key == "base":
        return any(source in new for source in BASE_SOURCES)
    if key == "data":  # what was said of other rows (a fraction of them, their columns) does not hold for these
        return any(source in new and new[source] != old.get(source) for source in DATA_SOURCES)
    return key == "rate" and bool(ELECTRICITY & old.keys()) != bool(ELECTRICITY & new.keys())


def _parse_override(override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise NomoatError(f"the override '{override}' is not of the form section.key=value, as in train.learning_rate=1e-3")
    value: Any = parse_yaml(text, f"the override '{override}'")
    for key in reversed(keys):
        value = {key: value}
    return value


def describe_problems(error: ValidationError) -> list[str]:
    """One line a problem: dotted path, what is wrong, the value seen, the nearest known key for a typo."""
    return [_describe_one(item) for item in error.errors(include_url=False)]


def _describe_one(item: Any) -> str:
    keys = [str(part) for part in item["loc"] if not str(part).startswith("<")]
    path = ".".join(keys) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{path}: no such key{_nearest(keys)}"
    if item["type"] == "missing":
        return f"{path}: missing; this key is required"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    seen = item.get("input")
    shown = "" if isinstance(seen, dict) else f" (seen: {canonical_json(seen) if _is_plain(seen) else repr(seen)})"
    return f"{path}: {message}{shown}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int | list) or value is None


def _nearest(keys: list[str]) -> str:
    known = _known_keys(Recipe)
    siblings = [name for name in known if name.rpartition(".")[0] == ".".join(keys[:-1])]
    leaves = {name.rpartition(".")[2]: name for name in known}
    beside = {name.rpartition(".")[2]: name for name in siblings}
    for known_here in (beside, leaves):
        near = difflib.get_close_matches(keys[-1], sorted(known_here), n=1, cutoff=0.6)
        if near:
            return f"; did you mean {known_here[near[0]]}?"
    return f"; known keys here: {', '.join(sorted(name.rpartition('.')[2] for name in siblings))}"


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for kind in _models_in(field.annotation):
            names += _known_keys(kind, f"{prefix}{name}.")
    return names


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _with_portable_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths in a recipe are relative to its file; the home folder is written as ~ so that no run names its user."""
    base, data = recipe.base, recipe.data
    if base.path is not None:
        base = base.model_copy(update={"path": portable_path(folder / Path(base.path).expanduser())})
    for name, stated in (("rows", data.rows if data.rows and is_data_file(data.rows) else None), ("path", data.path)):
        if stated is not None:
            data = data.model_copy(update={name: portable_path(folder / Path(stated).expanduser())})
    lora = recipe.lora
    if lora.start is not None:
        lora = lora.model_copy(update={"start": portable_path(folder / Path(lora.start).expanduser())})
    tasks = tuple(portable_path(folder / Path(task).expanduser()) if is_task_file(task) else task for task in recipe.eval.harness)
    return recipe.model_copy(update={"base": base, "data": data, "lora": lora, "eval": recipe.eval.model_copy(update={"harness": tasks})})


def is_data_file(rows: str) -> bool:
    """Whether `data.rows` names a file rather than a shipped set."""
    return Path(rows).suffix in (".jsonl", ".csv", ".parquet") or os.sep in rows


def is_task_file(task: str) -> bool:
    """Whether an entry of `eval.harness` names a file rather than a task that the harness knows."""
    return Path(task).suffix in (".yaml", ".yml")


def portable_path(path: Path) -> str:
    """`path` as a run may record it: relative to the current folder where it lies below it, else with ~ for home."""
    absolute = Path(os.path.abspath(path))
    for root, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if absolute.is_relative_to(root):
            return f"{prefix}{absolute.relative_to(root)}"
    return str(absolute)


def run_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe of a run directory."""
    if not (run_dir / "recipe.yaml").is_file():
        raise NomoatError(f"{run_dir} is not a run directory (no recipe.yaml in it); runs are made by `make train` below runs/")
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter yet: finish it with the `make train` command that began it")
    return load_recipe(run_dir / "recipe.yaml", folder=Path())
