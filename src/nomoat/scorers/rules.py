"""The scorer `constraints`: verifiable rules about the form of a reply, as in IFEval (Zhou et al. 2023, arXiv:2311.07911).

    {"by": "constraints", "rules": [{"rule": "starts_with", "text": "Dear"}, {"rule": "max_words", "number": 40}, {"rule": "no_digits"}]}

Rules ignore outer white space and empty lines; words are separated by white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nomoat.errors import did_you_mean, quoted
from nomoat.scorers.text import Score, Spec, mentions, result

Rule = Mapping[str, Any]
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|\Z)")  # anchored at the start of a run of marks, so linear in its length


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
    """The names of the rules that `reply` breaks; an empty reply breaks all. Raises KeyError for an unknown rule."""
    reply = reply.strip()
    return [rule["rule"] for rule in rules if not (reply and _holds(reply, rule))]


def broken_rules_leniently(reply: str, rules: Sequence[Rule]) -> list[str]:
    """As `broken_rules`, ignoring the case of `text`, for the whole reply or the one of its first 20 paragraphs that breaks fewest."""
    about_text = [{**rule, "text": rule["text"].casefold()} for rule in rules if "text" in rule]
    others = [rule for rule in rules if "text" not in rule]  # these read the reply in its own case: `uppercase` is one of them
    pieces = [reply, *reply.split("\n\n")[:20]]
    return min((broken_rules(piece, others) + broken_rules(piece.casefold(), about_text) for piece in pieces), key=len)


def _holds(reply: str, rule: Rule) -> bool:
    name = rule["rule"]
    if name in TEXT_RULES:
        return TEXT_RULES[name](reply, rule["text"])
    return NUMBER_RULES[name](reply, rule["number"]) if name in NUMBER_RULES else PLAIN_RULES[name](reply)


def check_constraints(spec: Spec, _completion: str) -> list[str]:
    """Unknown rules, missing or unknown keys, and arguments of the wrong type, each with the rule's position in the list."""
    rules = spec.get("rules")
    if not isinstance(rules, list) or not rules:
        return [f"rules must be a list with at least one rule; saw {quoted(rules)}"]
    return [f"rules[{at}]: {problem}" for at, rule in enumerate(rules) for problem in _check_rule(rule)]


def _check_rule(rule: Any) -> list[str]:
    if not isinstance(rule, dict) or not isinstance(rule.get("rule"), str):
        return [f'a rule looks like {{"rule": "max_words", "number": 40}}; saw {quoted(rule)}']
    name = rule["rule"]
    if name not in NAMES:
        return [f"no rule {quoted(name)}{did_you_mean(name, NAMES)}"]
    text, number = rule.get("text"), rule.get("number")
    keys = ["text"] if name in TEXT_RULES else ["number"] if name in NUMBER_RULES else []
    problems = [f"{name} has no key {quoted(key)}{did_you_mean(str(key), keys)}" for key in rule if key not in ("rule", *keys)]
    if name in TEXT_RULES and not (isinstance(text, str) and text.strip()):
        problems.append(f"{name}: text must be a string that is not blank; saw {quoted(text)}")
    if name in NUMBER_RULES and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        problems.append(f"{name}: number must be an integer, 0 or more; saw {quoted(number)}")
    return problems


def constraints(output: str, _completion: str, spec: Spec) -> Score:
    """Strict: the output breaks no rule. Lenient: as `broken_rules_leniently` reads it."""
    broken = broken_rules(output, spec["rules"])
    return result(not broken, not broken_rules_leniently(output, spec["rules"]), f"broken: {', '.join(broken)}")
