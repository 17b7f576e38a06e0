"""Score types, and the scorers that read an output as text: exact, label, contains, number, choice and rouge_l.

Each scorer maps (output, reference completion, spec) to a `Score`; its check, beside it, returns the problems of a spec's values, one
per line. A check need not test that the completion scores 1: the registry does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from nomoat.errors import quoted

LARGEST_TABLE = 4_000_000  # words of the output times words of the reference: the cells that ROUGE-L fills one by one
NOTE_LENGTH = 200  # characters

Spec = Mapping[str, Any]


class Scorable(Protocol):
    """The fields of a row that scoring reads: `score` is a spec such as {"by": "number", "tolerance": 0.1}, or just a scorer's name."""

    @property
    def completion(self) -> str: ...

    @property
    def score(self) -> Spec | str: ...


@dataclass(frozen=True)
class Score:
    """`value` is strict: the answer and nothing else. `lenient`: the answer appears anywhere in the output, in whatever format.

    Each is 0 or 1; both are None for a row that could not be scored, and `note` says why. ROUGE-L gives any `value` from 0 to 1 and
    has no lenient reading.
    """

    value: float | None
    lenient: float | None
    note: str = ""


def result(strict: bool, lenient: bool, note: str = "") -> Score:
    """The score of a 0/1 scorer; `note` is kept only where the strict reading fails."""
    return Score(float(strict), float(strict or lenient), "" if strict else one_line(note))


def unscored(reason: str) -> Score:
    """The score of a row that could not be scored."""
    return Score(None, None, one_line(reason))


def one_line(text: str) -> str:
    """A short printable line: a note may quote anything that a model wrote."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:NOTE_LENGTH])[:NOTE_LENGTH]


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, ignoring case and the kind of white space: '5' is not in '15' or '5.2'."""
    phrase, text = (" ".join(piece.casefold().split()) for piece in (phrase, text))
    if not phrase:
        return False
    left = (r"(?<!\w)" if re.match(r"\w", phrase) else "") + (r"(?<!\d[.,])" if phrase[0].isdigit() else "")
    right = (r"(?!\w)" if re.search(r"\w\Z", phrase) else "") + (r"(?![.,]\d)" if phrase[-1].isdigit() else "")
    return re.search(left + re.escape(phrase) + right, text) is not None


def is_text_list(value: Any) -> bool:
    """Whether a spec's value is a list of at least one string, none of them blank."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)


def exact(output: str, completion: str, _spec: Spec) -> Score:
    """Strict: the completion, apart from outer white space. Lenient: the completion occurs in the output, ignoring case."""
    wanted = completion.strip()
    return result(output.strip() == wanted, bool(wanted) and wanted.casefold() in output.casefold())


def check_options(key: str, spec: Spec, completion: str) -> list[str]:
    """The completion must be in the list of answers under `key`, `labels` or `choices`."""
    options: Any = spec.get(key)
    if not is_text_list(options) or len(set(options)) < max(2, len(options)):
        return [f"{spec['by']} needs {key}: a list of at least two different strings, none of them blank; saw {quoted(options)}"]
    return [] if completion in options else [f"the completion {quoted(completion)} is not one of the {key} {quoted(options)}"]


def label(output: str, completion: str, spec: Spec) -> Score:
    """Lenient: the output mentions the right label and no other. Longest first: 'billing dispute' is no 'billing'."""
    named, rest = set(), output
    for option in sorted(spec["labels"], key=len, reverse=True):
        if mentions(rest, option):
            named.add(option)
            rest = re.sub(re.escape(option), "|", rest, flags=re.IGNORECASE)
    return result(output.strip() == completion.strip(), named == {completion.strip()})


def contains(output: str, _completion: str, spec: Spec) -> Score:
    """Strict: `all` entries and one of `any` occur as whole words. Lenient: inside other words too."""
    flat = " ".join(output.casefold().split())
    return result(
        _contains_entries(spec, lambda text: mentions(output, text)),
        _contains_entries(spec, lambda text: " ".join(text.casefold().split()) in flat),
    )


def _contains_entries(spec: Spec, occurs: Callable[[str], bool]) -> bool:
    def occurs_in_some_form(entry: str | list[str]) -> bool:
        return any(map(occurs, [entry] if isinstance(entry, str) else entry))

    return all(map(occurs_in_some_form, spec.get("all", ()))) and ("any" not in spec or any(map(occurs_in_some_form, spec["any"])))


def check_contains(spec: Spec, _completion: str) -> list[str]:
    if not ("all" in spec or "any" in spec):
        return ["contains needs all, any or both: lists of strings"]

    def is_valid(entries: Any) -> bool:
        return isinstance(entries, list) and bool(entries) and all(is_text_list([e] if isinstance(e, str) else e) for e in entries)

    return [
        f"{key} must be a list of strings, or of lists of alternative strings; saw {quoted(spec[key])}"
        for key in ("all", "any")
        if key in spec and not is_valid(spec[key])
    ]


_NUMBER = re.compile(
    r"""(?:(?<![\w)\]])(?P<sign>[-+\u2212]))?  [$\u20ac\u00a3\u00a5]?   # a hyphen after a word or a number is no sign: 2024-05, covid-19
        (?<!\w)(?P<digits>
            \d{1,3}(?P<mark>[,_'\u2019\u00a0\u2009\u202f])\d{3}(?:(?P=mark)\d{3})*(?!\d)(?:\.\d+)?    # 1,234,567.8
          | \d+(?:\.\d+)?  |  (?<!\.)\.\d+ )
        (?P<exponent>[eE][-+]?\d{1,3}(?!\w))?""",
    re.VERBOSE,
)


def numbers_in(text: str) -> list[Decimal]:
    """Every number of a text, in order: signs, thousands marks, decimal points and exponents are read, currencies and units skipped."""
    numbers = []
    for match in _NUMBER.finditer(text):
        digits = match["digits"].replace(match["mark"] or ",", "")
        sign = "-" if match["sign"] in ("-", "\u2212") else ""
        numbers.append(Decimal(sign + digits + (match["exponent"] or "")))
    return numbers


def number(output: str, completion: str, spec: Spec) -> Score:
    """Strict: the last number of the output is within `tolerance` (default 0) of the completion's last. Lenient: any number is."""
    wanted, tolerance = numbers_in(completion)[-1], Decimal(str(spec.get("tolerance", 0)))
    near = [value == wanted or abs(value - wanted) <= tolerance for value in numbers_in(output)]
    return result(near[-1:] == [True], any(near), "" if near else "no number")


def check_number(spec: Spec, completion: str) -> list[str]:
    tolerance = spec.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        return [f"tolerance must be a finite number, 0 or more; saw {quoted(tolerance)}"]
    return [] if numbers_in(completion) else [f"the completion must contain a number; saw {quoted(completion)}"]


def needs_likelihoods(row: Scorable) -> bool:
    """Whether a row is scored by the likelihood of its choices (`score_choice`), not by what the model writes."""
    return (row.score if isinstance(row.score, str) else row.score["by"]) == "choice"


def choices_of(row: Scorable) -> tuple[str, ...]:
    """The answers whose likelihoods `score_choice` needs, in its order; empty for a row that is scored by its text."""
    return tuple(row.score["choices"]) if needs_likelihoods(row) and not isinstance(row.score, str) else ()


def score_choice(log_likelihoods: Sequence[float], byte_lengths: Sequence[int], row: Scorable) -> Score:
    """Score by likelihood: the choice with the highest log-likelihood per byte (lenient: in sum) must be the row's completion.

    `log_likelihoods` are natural logarithms of each choice's probability given the prompt, `byte_lengths` the choices' lengths in
    UTF-8, both in the order of `choices_of(row)`. These are lm-evaluation-harness's `acc_norm` and `acc` (Gao, Multiple Choice
    Normalization in LM Evaluation, EleutherAI 2021): division by bytes keeps a long choice from losing for its length and does not
    depend on the tokenizer. A tie for the first place scores 0. Unscored where a number is missing or not finite.
    """
    choices = choices_of(row)
    if row.completion not in choices:
        return unscored("the row is not scored by choice, or its completion is not among its choices")
    if not (len(log_likelihoods) == len(byte_lengths) == len(choices) and all(map(math.isfinite, log_likelihoods)) and all(byte_lengths)):
        return unscored(f"each of the {len(choices)} choices needs a finite log-likelihood and a length of 1 byte or more")
    per_byte = [value / length for value, length in zip(log_likelihoods, byte_lengths, strict=True)]

    def rivals(values: Sequence[float]) -> list[str]:
        reference = values[choices.index(row.completion)]
        return [choice for choice, value in zip(choices, values, strict=True) if value >= reference and choice != row.completion]

    return result(not rivals(per_byte), not rivals(log_likelihoods), f"at least as likely per byte: {', '.join(rivals(per_byte))}")


def check_choice(spec: Spec, completion: str) -> list[str]:
    problems = check_options("choices", spec, completion)
    if problems:
        return problems
    choices = spec["choices"]
    if len({choice.strip() for choice in choices}) < len(choices):
        return [f"choices must differ in more than outer white space; saw {quoted(choices)}"]
    if any(choice != choice.encode(errors="ignore").decode() for choice in choices):
        return [f"choices must be valid Unicode, without lone surrogates; saw {quoted(choices)}"]
    return []


def rouge_l(output: str, completion: str, _spec: Spec) -> Score:
    """F-measure of ROUGE-L (Lin, Text Summarization Branches Out, 2004): the longest common subsequence of words, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # here: it brings nltk, which takes a second to import

    if len(output.split()) * len(completion.split()) > LARGEST_TABLE:
        return Score(0.0, None, f"{len(output):,} characters: too long to be compared word by word")
    return Score(float(RougeScorer(["rougeL"]).score(completion, output)["rougeL"].fmeasure), None)


def check_rouge_l(_spec: Spec, completion: str) -> list[str]:
    if re.search("[a-z0-9]", completion.lower()):
        return []
    return [f"ROUGE-L counts words of a to z and 0 to 9, and the completion {quoted(completion)} has none of them"]
