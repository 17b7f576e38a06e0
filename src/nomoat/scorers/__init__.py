"""Score one output against one row: pure functions from text to 0 or 1, safe with whatever a model writes.

    score("Paris.", row)  ->  Score(value=0.0, lenient=1.0, note="")        where row.completion is "Paris" and row.score {"by": "exact"}

A row's `score` is the name of a scorer, or an object with its name and its keys:

    "exact"                                         the completion, apart from outer white space
    {"by": "label", "labels": [...]}                one label of a closed set
    {"by": "contains", "all": [...], "any": [...]}  phrases; an entry may be a list of alternatives
    {"by": "number", "tolerance": 0.5}              the last number of the output
    {"by": "choice", "choices": [...]}              the likeliest choice: no text is generated (`score_choice`)
    {"by": "rouge_l"}                               overlap with one reference text, from 0 to 1
    {"by": "json_fields"}                           a JSON object equal to the completion's
    {"by": "constraints", "rules": [...]}           rules of form: see rules.py
    {"by": "sql_rows", "script": "CREATE ..."}      a query that returns the rows of the completion's query

A wrong or hostile output scores 0. Where the scorer itself fails (a fixture that does not load, an invalid spec) the row is
unscored: `value` and `lenient` are None and `note` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nomoat.errors import did_you_mean, quoted
from nomoat.scorers import json, rules, sql, text
from nomoat.scorers.text import Scorable, Score, Spec, choices_of, needs_likelihoods, score_choice, unscored

__all__ = ["SCORER_VERSION", "Score", "check_spec", "choices_of", "needs_likelihoods", "score", "score_choice", "unscored"]

SCORER_VERSION = "1"
LONGEST_OUTPUT = 200_000  # characters; or 20 times the reference, if that is more


@dataclass(frozen=True)
class Scorer:
    """`score(output, completion, spec)`, the keys that a spec may have besides `by`, and `check(spec, completion)` of their values."""

    score: Callable[[str, str, Spec], Score]
    keys: tuple[str, ...] = ()
    check: Callable[[Spec, str], list[str]] = lambda _spec, _completion: []


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(text.exact),
    "json_fields": Scorer(json.json_fields, check=json.check_json_fields),
    "sql_rows": Scorer(sql.sql_rows, ("script",), sql.check_sql_rows),
    "constraints": Scorer(rules.constraints, ("rules",), rules.check_constraints),
    "label": Scorer(text.label, ("labels",), partial(text.check_options, "labels")),
    "contains": Scorer(text.contains, ("all", "any"), text.check_contains),
    "number": Scorer(text.number, ("tolerance",), text.check_number),
    # Models answer by likelihood (`score_choice`). Where there is only a text, as for baselines, it is scored as by exact.
    "choice": Scorer(text.exact, ("choices",), text.check_choice),
    "rouge_l": Scorer(text.rouge_l, check=text.check_rouge_l),
}


def score(output: str, row: Scorable) -> Score:
    """Score `output` by the row's own scorer; never raises for anything a model wrote."""
    return _score(output, row.completion, row.score)


def _score(output: str, completion: str, spec: Spec | str) -> Score:
    try:
        if len(output) > max(LONGEST_OUTPUT, 20 * len(completion)):
            return Score(0.0, 0.0, f"{len(output):,} characters: too long to be the answer")
        spec = {"by": spec} if isinstance(spec, str) else spec
        return SCORERS[spec["by"]].score(output, completion, spec)
    except Exception as error:
        return unscored(f"{type(error).__name__}: {error}")


def check_spec(spec: Any, completion: str) -> list[str]:
    """Problems of a row's `score`, one per line; empty where it is valid and the reference completion scores 1 by it."""
    spec = {"by": spec} if isinstance(spec, str) else spec
    by = spec.get("by") if isinstance(spec, Mapping) else None
    if not isinstance(by, str) or by not in SCORERS:
        return [f"no scorer {quoted(by)}{did_you_mean(str(by), SCORERS)}"]
    keys = SCORERS[by].keys
    problems = [f"{by} has no key {quoted(key)}{did_you_mean(str(key), keys)}" for key in spec if key not in ("by", *keys)]
    problems += SCORERS[by].check(spec, completion)
    if not problems and (own := _score(completion, completion, spec)).value != 1:
        problems = [f"the row's own completion does not score 1 by {by}: {own.note or 'it does not match'}"]
    return problems
