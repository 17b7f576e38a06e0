"""Score one output against one row: pure functions from text to 0 or 1, safe with whatever a model writes.

    score("Paris.", row)  ->  Score(value=0.0, lenient=1.0, note="")        where row.completion is "Paris" and row.score {"by": "exact"}

`value` asks for the answer and nothing else. `lenient` asks whether the answer stands anywhere in the output, which separates
what a model knows from the format it was taught. A wrong or hostile output scores 0. Where the scorer itself fails (a fixture
that does not load, a spec that makes no sense) the row is unscored: both are None and the note says why.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from nomoat.errors import did_you_mean, quoted
from nomoat.scorers import rules
from nomoat.scorers.json import first_object, folded, parse_json, same_json
from nomoat.scorers.rules import check_rules
from nomoat.scorers.sql import QueryFailed, Result, Sandbox, is_ordered, queries_in, same_rows

# MERGED score_specs:
# What may stand in a row's `score`: the keys of each scorer and the values they take, checked before anything runs.

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
    problems = [f"{by} has no key {quoted(key)}{did_you_mean(str(key), known)}" for key in spec if key not in ("by", *known)]
    return problems + _value_problems(by, spec, completion)


def _value_problems(by: str, spec: Mapping[str, Any], completion: str) -> list[str]:
    """Problems with the values of a known scorer's keys."""
    if by in ("label", "choice"):
        key = f"{by}s"
        options: Any = spec.get(key)
        if not _texts(options) or len(set(options)) < max(2, len(options)):
            return [f"{by} needs {key}: a list of at least two different strings; saw {quoted(options)}"]
        return [] if completion in options else [f"the completion {quoted(completion)} is not one of the {key} {quoted(options)}"]
    if by == "contains":
        return _contains_problems(spec)
    if by == "constraints":
        return check_rules(spec.get("rules"))
    if by == "sql_rows":
        return _sql_problems(spec.get("script"), completion)
    if by == "json_fields":
        return _json_problems(completion)
    if by == "number" and not _is_tolerance(spec.get("tolerance", 0)):
        return [f"tolerance must be a number from 0; saw {quoted(spec['tolerance'])}"]
    return []


def _sql_problems(script: Any, query: str) -> list[str]:
    if not isinstance(script, str) or not script.strip():
        return [f"sql_rows needs script: the statements that build its tables; saw {quoted(script)}"]
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
        return [f"the completion must be a JSON object: {error}; saw {quoted(completion)}"]
    return [] if isinstance(value, dict) else [f"the completion must be a JSON object; saw {quoted(completion)}"]


def _contains_problems(spec: Mapping[str, Any]) -> list[str]:
    if not ("all" in spec or "any" in spec):
        return ["contains needs all, any or both: lists of strings"]
    return [
        f"{key} must be a list of strings, or of lists of strings that stand for one another; saw {quoted(spec[key])}"
        for key in ("all", "any")
        if key in spec and not _entries(spec[key])
    ]


def _entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_texts([entry] if isinstance(entry, str) else entry) for entry in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


SCORER_VERSION = "1"
LARGEST_TABLE = 4_000_000  # words of the output times words of the reference, which ROUGE-L looks at one by one
LONGEST_OUTPUT = 200_000  # characters; or 20 times the reference, if that is more
NOTE_LENGTH = 200

Spec = Mapping[str, Any]


class Scorable(Protocol):
    """What scoring reads of a row."""

    @property
    def completion(self) -> str: ...

    @property
    def score(self) -> Spec | str: ...


@dataclass(frozen=True)
class Score:
    """1 or 0 for a strict and a lenient reading; both None for a row that could not be scored, and `note` says why.

    For open-ended rows, scored by likeness to one reference, `value` lies between 0 and 1 and there is no lenient reading.
    """

    value: float | None
    lenient: float | None
    note: str = ""


def score(output: str, row: Scorable) -> Score:
    """Score `output` by the row's own rule; never raises for anything a model wrote."""
    try:
        if len(output) > max(LONGEST_OUTPUT, 20 * len(row.completion)):
            return Score(0.0, 0.0, f"{len(output):,} characters: too long to be the answer")
        spec = {"by": row.score} if isinstance(row.score, str) else row.score
        return _SCORERS[spec["by"]](output, row.completion, spec)
    except Exception as error:
        return unscored(f"{type(error).__name__}: {error}")


def score_choice(logliks: Sequence[float], byte_lengths: Sequence[int], row: Scorable) -> Score:
    """Score by likelihood: the choice with the highest log-likelihood per byte (lenient: in sum) must be the reference.

    `logliks` are natural logarithms, one for each of the row's choices in their order, `byte_lengths` the choices' lengths in UTF-8.
    Dividing by bytes keeps a long choice from losing for its length, and is comparable across tokenizers. A tie is not an answer.
    """
    try:
        spec = row.score
        target = list(spec["choices"]).index(row.completion)  # type: ignore[index]
        if not len(logliks) == len(byte_lengths) == len(spec["choices"]) or not all(map(math.isfinite, logliks)):  # type: ignore[index]
            return unscored("one finite log-likelihood for each choice is needed")
        per_byte = [value / length for value, length in zip(logliks, byte_lengths, strict=True)]
        return _result(_wins(per_byte, target), _wins(logliks, target))
    except Exception as error:
        return unscored(f"{type(error).__name__}: {error}")


def unscored(why: str) -> Score:
    """The score of a row that could not be scored."""
    return Score(None, None, _note(why))


def _result(strict: bool, lenient: bool, note: str = "") -> Score:
    return Score(float(strict), float(strict or lenient), "" if strict else _note(note))


def _note(text: str) -> str:
    """One short line that any file and terminal takes: a note may quote what a model wrote."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:NOTE_LENGTH])[:NOTE_LENGTH]


def _wins(values: Sequence[float], target: int) -> bool:
    return all(values[target] > value for at, value in enumerate(values) if at != target)


def _exact(output: str, target: str, _spec: Spec) -> Score:
    wanted = target.strip()
    return _result(output.strip() == wanted, bool(wanted) and wanted.casefold() in output.casefold())


def _label(output: str, target: str, spec: Spec) -> Score:
    """Lenient: the wanted label is the only one named. The longest is looked for first: 'billing dispute' does not name 'billing'."""
    named, rest = set(), output
    for label in sorted(spec["labels"], key=len, reverse=True):
        if rules.mentions(rest, label):
            named.add(label)
            rest = re.sub(re.escape(label), "|", rest, flags=re.IGNORECASE)
    return _result(output.strip() == target.strip(), named == {target.strip()})


def _contains(output: str, _target: str, spec: Spec) -> Score:
    """Lenient: inside other words too."""
    inside = " ".join(output.casefold().split())
    return _result(
        _meets(spec, lambda text: rules.mentions(output, text)),
        _meets(spec, lambda text: " ".join(text.casefold().split()) in inside),
    )


def _meets(spec: Spec, found: Callable[[str], bool]) -> bool:
    def met(entry: str | list[str]) -> bool:
        return any(map(found, [entry] if isinstance(entry, str) else entry))

    return all(map(met, spec.get("all", ()))) and ("any" not in spec or any(map(met, spec["any"])))


def _rules(output: str, _target: str, spec: Spec) -> Score:
    broken = rules.broken_rules(output, spec["rules"])
    return _result(not broken, not rules.broken_loosely(output, spec["rules"]), f"broken: {', '.join(broken)}")


_NUMBER = re.compile(
    r"""(?:(?<![\w)\]])(?P<sign>[-+\u2212]))?  [$\u20ac\u00a3\u00a5]?   # a hyphen after a word or a number is no sign: 2024-05, covid-19
        (?<!\w)(?P<digits>
            \d{1,3}(?P<mark>[,_'\u2019\u00a0\u2009\u202f])\d{3}(?:(?P=mark)\d{3})*(?!\d)(?:\.\d+)?    # 1,234,567.8
          | \d+(?:\.\d+)?  |  (?<!\.)\.\d+ )
        (?P<exponent>[eE][-+]?\d{1,3}(?!\w))?""",
    re.VERBOSE,
)


def numbers_in(text: str) -> list[Decimal]:
    """Every number of a text, in order: signs, thousands marks, decimal points and exponents read, currency and units passed over."""
    found = []
    for match in _NUMBER.finditer(text):
        digits = match["digits"].replace(match["mark"] or ",", "")
        sign = "-" if match["sign"] in ("-", "\u2212") else ""
        found.append(Decimal(sign + digits + (match["exponent"] or "")))
    return found


def _number(output: str, target: str, spec: Spec) -> Score:
    """Strict: the last number of the output, in whatever words. Lenient: any number of it."""
    wanted, tolerance = numbers_in(target)[-1], Decimal(str(spec.get("tolerance", 0)))
    near = [number == wanted or abs(number - wanted) <= tolerance for number in numbers_in(output)]
    return _result(near[-1:] == [True], any(near), "" if near else "no number")


def _choice(_output: str, _target: str, _spec: Spec) -> Score:
    return unscored("a choice is scored by likelihood, not by what was written")


def _json_fields(output: str, target: str, _spec: Spec) -> Score:
    wanted = parse_json(target)
    try:
        found, note = parse_json(output), ""
    except ValueError as error:
        found, note = None, f"not JSON: {error}"
    return _result(same_json(found, wanted), folded(first_object(output)) == folded(wanted), note)


def _sql_rows(output: str, target: str, spec: Spec) -> Score:
    """Strict: the output is one query and returns the reference's rows. Lenient: a query in a fence or after other text does."""
    with Sandbox(spec["script"]) as sandbox:
        reference, ordered = sandbox.run(target), is_ordered(target)
        note = _wrong(sandbox, output.strip(), reference, ordered)
        lenient = bool(note) and any(not _wrong(sandbox, query, reference, ordered) for query in queries_in(output))
    return _result(not note, lenient, note)


def _wrong(sandbox: Sandbox, query: str, reference: Result, ordered: bool) -> str:
    """Why a query does not answer as the reference does, or '' where it does."""
    try:
        found = sandbox.run(query, most=len(reference.rows) + 1)
    except QueryFailed as error:
        return str(error)
    if reference.tables and not found.tables:
        return "reads no table"  # a lucky constant is not a query
    return "" if same_rows(found.rows, reference.rows, ordered=ordered) else "other rows than the reference"


def _rouge_l(output: str, target: str, _spec: Spec) -> Score:
    """F-measure of ROUGE-L (Lin, Text Summarization Branches Out, 2004): the longest common subsequence of words, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # here: it brings nltk, which takes a second to import

    if len(output.split()) * len(target.split()) > LARGEST_TABLE:
        return Score(0.0, None, f"{len(output):,} characters: too long to be compared word by word")
    return Score(float(RougeScorer(["rougeL"]).score(target, output)["rougeL"].fmeasure), None)


_SCORERS: dict[str, Callable[[str, str, Spec], Score]] = {
    "exact": _exact,
    "json_fields": _json_fields,
    "sql_rows": _sql_rows,
    "constraints": _rules,
    "label": _label,
    "contains": _contains,
    "number": _number,
    "choice": _choice,
    "rouge_l": _rouge_l,
}


@dataclass(frozen=True)
class _Reference:
    completion: str
    score: Spec


def check_spec(spec: Spec | str, completion: str) -> list[str]:
    """What is wrong with a row's way of scoring; empty where the reference completion scores 1 by it."""
    spec = {"by": spec} if isinstance(spec, str) else spec
    by = spec.get("by") if isinstance(spec, Mapping) else None
    if not isinstance(by, str) or by not in _SCORERS:
        return [f"no scorer {quoted(by)}{did_you_mean(str(by), _SCORERS)}"]
    problems = spec_problems(by, spec, completion)
    if problems or by == "choice":
        return problems
    own = score(completion, _Reference(completion, spec))
    if by == "rouge_l" and own.value != 1:
        return [f"ROUGE-L counts words of a to z and 0 to 9, and the completion {quoted(completion)} has none of them"]
    return [] if own.value == 1 else [f"the row's own completion does not score 1 by {by}: {own.note or 'it does not match'}"]
