"""Rules that a reply must keep, each checked by a few lines of code: the scorer for "answer in this shape".

    {"by": "constraints", "rules": [{"rule": "starts_with", "text": "Dear"}, {"rule": "max_words", "number": 40}, {"rule": "no_digits"}]}

Every rule reads the reply without its outer white space. Lines are the non-empty ones; words are what white space separates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nomoat.errors import did_you_mean, quoted
from nomoat.scorers.text import Score, Scorer, Spec, mentions, result

Rule = Mapping[str, Any]
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|\Z)")  # only at the start of a run of marks: linear in its length


def _lines(reply: str) -> list[str]:
    return [line.strip() for line in reply.split("\n") if line.strip()]


def _sentences(reply: str) -> int:
    return len([piece for piece in _SENTENCE_END.split(reply) if piece.strip()])


def _numbered(reply: str) -> bool:
    return all(re.match(rf"{at}[.)]\s+\S", line) for at, line in enumerate(_lines(reply), start=1))


def _cased(reply: str) -> bool:
    return reply.upper() != reply.lower()


TEXT_RULES: dict[str, Callable[[str, str], bool]] = {
    "starts_with": str.startswith,
    "ends_with": str.endswith,
    "contains": mentions,
    "excludes": lambda reply, text: not mentions(reply, text),
    "each_line_starts_with": lambda reply, text: all(line.startswith(text) for line in _lines(reply)),
    "each_line_ends_with": lambda reply, text: all(line.endswith(text) for line in _lines(reply)),
}
NUMBER_RULES: dict[str, Callable[[str, int], bool]] = {
    "lines": lambda reply, number: len(_lines(reply)) == number,
    "max_lines": lambda reply, number: len(_lines(reply)) <= number,
    "words": lambda reply, number: len(reply.split()) == number,
    "max_words": lambda reply, number: len(reply.split()) <= number,
    "min_words": lambda reply, number: len(reply.split()) >= number,
    "each_line_max_words": lambda reply, number: all(len(line.split()) <= number for line in _lines(reply)),
    "sentences": lambda reply, number: _sentences(reply) == number,
    "max_characters": lambda reply, number: len(reply) <= number,
    "min_characters": lambda reply, number: len(reply) >= number,
}
PLAIN_RULES: dict[str, Callable[[str], bool]] = {
    "uppercase": lambda reply: _cased(reply) and reply == reply.upper(),
    "lowercase": lambda reply: _cased(reply) and reply == reply.lower(),
    "no_punctuation": lambda reply: not any(unicodedata.category(sign).startswith("P") for sign in reply),
    "no_digits": lambda reply: not any(sign.isdigit() for sign in reply),
    "numbered": _numbered,
    "one_line": lambda reply: "\n" not in reply,
}
NAMES = (*TEXT_RULES, *NUMBER_RULES, *PLAIN_RULES)


def broken_rules(reply: str, rules: Sequence[Rule]) -> list[str]:
    """The names of the rules that `reply` breaks; an empty reply breaks all. Raises KeyError for a rule that does not exist."""
    reply = reply.strip()
    return [rule["rule"] for rule in rules if not (reply and _holds(reply, rule))]


def broken_loosely(reply: str, rules: Sequence[Rule]) -> list[str]:
    """As `broken_rules` where the case of `text` does not matter, for the whole reply or the paragraph of it that does best."""
    folded = [{**rule, "text": rule["text"].casefold()} if "text" in rule else rule for rule in rules]
    replies = [reply, *reply.split("\n\n")[:20]]
    return min((_broken_in_either_case(piece, rules, folded) for piece in replies), key=len)


def _broken_in_either_case(reply: str, rules: Sequence[Rule], folded: Sequence[Rule]) -> list[str]:
    """Rules about case read the reply as it is, rules about a text read it in lower case."""
    cased = [rule for rule in rules if "text" not in rule]
    return broken_rules(reply, cased) + broken_rules(reply.casefold(), [rule for rule in folded if "text" in rule])


def _holds(reply: str, rule: Rule) -> bool:
    name = rule["rule"]
    if name in TEXT_RULES:
        return TEXT_RULES[name](reply, rule["text"])
    return NUMBER_RULES[name](reply, rule["number"]) if name in NUMBER_RULES else PLAIN_RULES[name](reply)


def check_rules(rules: Any) -> list[str]:
    """What is wrong with a list of rules: unknown names, missing or superfluous keys, values of the wrong kind."""
    if not isinstance(rules, list) or not rules:
        return [f"rules must be a list with at least one rule; saw {quoted(rules)}"]
    return [f"rules[{at}]: {problem}" for at, rule in enumerate(rules) for problem in _check_rule(rule)]


def _check_rule(rule: Any) -> list[str]:
    if not isinstance(rule, dict) or not isinstance(rule.get("rule"), str):
        return [f'a rule looks like {{"rule": "max_words", "number": 40}}; saw {quoted(rule)}']
    name = rule["rule"]
    if name not in NAMES:
        return [f"no rule {quoted(name)}{did_you_mean(name, NAMES)}"]
    wanted = ["text"] if name in TEXT_RULES else ["number"] if name in NUMBER_RULES else []
    problems = [f"{name} has no key {quoted(key)}{did_you_mean(str(key), wanted)}" for key in rule if key not in ("rule", *wanted)]
    return problems + [f"{name}: {_WANTED[key]}; saw {quoted(rule.get(key))}" for key in wanted if not _is_argument(key, rule.get(key))]


_WANTED = {"text": "text must be a string with something in it", "number": "number must be a whole number from 0"}


def _is_argument(key: str, value: Any) -> bool:
    if key == "text":
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _constraints(output: str, _completion: str, spec: Spec) -> Score:
    broken = broken_rules(output, spec["rules"])
    return result(not broken, not broken_loosely(output, spec["rules"]), f"broken: {', '.join(broken)}")


CONSTRAINTS = Scorer(_constraints, ("rules",), lambda spec, _completion: check_rules(spec.get("rules")))
