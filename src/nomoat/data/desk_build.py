"""Builds the rows of the shipped set from the hand-written files in its folder.

A family's file lists phrasings by kind (an operation, a queue). A phrasing is a template of a prompt with its completion and scorer;
`{{ person }}` draws a person, `{{ person2 }}` another one.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, meta

from nomoat.config.load import parse_yaml
from nomoat.data.desk_fields import FILTERS, Persona, plain, table_script
from nomoat.data.desk_slots import PARTS, Listing, Values
from nomoat.data.examples import Example, Splits
from nomoat.errors import NomoatError

PHRASINGS = 110  # per trained family: many phrasings with few rows each, because a small model learns a phrasing rather than a task
HELDOUT_PHRASINGS, VALIDATION_PHRASINGS = 10, 4  # of these; the other 96 are for training
# Training rows per phrasing in the family's file, and per phrasing in the folder `more`: more where validation scores were low.
# No two rows are alike, so that one epoch is enough.
TRAIN_ROWS = {"edit": (20, 8), "persona": (6, 0), "route": (5, 4), "shape": (10, 6), "sql": (7, 4)}
TRAIN_ROWS_ELSE = (9, 6)
PHRASING_ROWS = 3  # per held-out phrasing, also of the held-out family
VALUES_ROWS = 24  # per family, each of another training phrasing
VALIDATION_VALUES_ROWS = 10
VALIDATION_PHRASING_ROWS = (3, 3, 3, 2)
VALIDATION_ONLY_PHRASING_ROWS = (6, 5, 5, 5)  # for a family without slots, which has no rows with unseen values
HELDOUT_FAMILY = "csv_line"
WITHOUT_SLOTS = "persona"
SYSTEM = "Office desk."  # in every row, retention included; a template's default system prompt may be ten times as long


@dataclass(frozen=True, kw_only=True)
class Phrasing:
    """One wording of a task; every row made from it has the group `group`."""

    family: str
    kind: str
    group: str
    prompt: str
    completion: str = ""
    fields: dict[str, str] = field(default_factory=dict)  # for json_fields: key -> expression
    score: dict[str, Any]


def load_phrasings(path: Path, more: Path | None = None) -> list[Phrasing]:
    """The phrasings of a family's file, or those of the file `more` (kind -> phrasings, for training only), in their order.

    A phrasing inherits what it does not state from its kind in the family's file; rules add up.
    """
    content, added = _read(path), _read(more) if more else {}
    phrasings: list[Phrasing] = []
    for kind in added or content["kinds"]:
        shared = content["kinds"][kind]
        for number, item in enumerate(added.get(kind, shared["phrasings"]), start=1):
            own = {"prompt": item} if isinstance(item, str) else item
            stated = {key: value for key, value in {**shared, **own}.items() if key in ("prompt", "completion", "fields")}
            rules = [*shared.get("rules", ()), *own.get("rules", ())]
            score = {**content["score"], **({"rules": rules} if rules else {})}
            group = f"{path.stem}-{kind}-{'more-' if more else ''}{number}"
            phrasings.append(Phrasing(family=path.stem, kind=kind, group=group, score=score, **stated))
    return phrasings


def _read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def deal(phrasings: list[Phrasing], heldout: int, validation: int) -> dict[str, list[Phrasing]]:
    """Divide phrasings by a seeded shuffle, every kind in proportion, so that the parts are exchangeable.

    Within a kind, shuffled phrasings get evenly spaced places with a random start; the lowest places overall are held out.
    """
    rng = random.Random(f"deal {phrasings[0].family}")
    places: dict[str, float] = {}
    for kind in dict.fromkeys(phrasing.kind for phrasing in phrasings):
        members = [phrasing.group for phrasing in phrasings if phrasing.kind == kind]
        rng.shuffle(members)
        start = rng.random()
        places |= {group: (place + start) / len(members) for place, group in enumerate(members)}
    order = sorted(phrasings, key=lambda phrasing: (places[phrasing.group], phrasing.group))
    train = sorted(order[heldout + validation :], key=phrasings.index)
    return {"heldout": order[:heldout], "validation": order[heldout : heldout + validation], "train": train}


def build_set(folder: Path) -> Splits:
    """All rows of the set in `folder`, made from its hand-written files only and the same on every machine."""
    writer = Writer(folder)
    rows: list[Example] = []
    for path in sorted((folder / "families").glob("*.yaml")):
        if path.stem == HELDOUT_FAMILY:
            rows += writer.rows(load_phrasings(path), f"{path.stem}-h-family", "family", PHRASING_ROWS)
        else:
            rows += _trained_family(writer, path)
    rows += _retention_rows(folder / "retention.yaml")
    train, validation = (tuple(row for row in rows if row.tier == tier) for tier in ("train", "validation"))
    return Splits(folder.name, train, validation, tuple(row for row in rows if row.tier not in ("train", "validation")))


def _trained_family(writer: Writer, path: Path) -> list[Example]:
    """Rows of a trained family; validation and held-out rows are known phrasings with unseen values, then unseen phrasings."""
    name, phrasings, more = path.stem, load_phrasings(path), path.parent.parent / "more" / path.name
    if len(phrasings) != PHRASINGS:
        raise NomoatError(f"{path.name}: a trained family has {PHRASINGS} phrasings, this one has {len(phrasings)}")
    dealt = deal(phrasings, HELDOUT_PHRASINGS, VALIDATION_PHRASINGS)
    added = load_phrasings(path, more) if more.is_file() else []
    of_known, of_added = TRAIN_ROWS.get(name, TRAIN_ROWS_ELSE)
    counts = [of_known] * len(dealt["train"]) + [of_added] * len(added)
    rows = writer.rows([*dealt["train"], *added], f"{name}-t", "train", counts)
    if name != WITHOUT_SLOTS:
        checked = random.Random(f"checked {name}").sample(dealt["train"], VALIDATION_VALUES_ROWS)
        rows += writer.rows(checked, f"{name}-v-values", "validation", 1)
        asked = random.Random(f"known {name}").sample(dealt["train"], VALUES_ROWS)
        rows += writer.rows(asked, f"{name}-h-values", "values", 1)
    counts = list(VALIDATION_ONLY_PHRASING_ROWS if name == WITHOUT_SLOTS else VALIDATION_PHRASING_ROWS)
    rows += writer.rows(dealt["validation"], f"{name}-v-phrasing", "validation", counts)
    return rows + writer.rows(dealt["heldout"], f"{name}-h-phrasing", "phrasing", PHRASING_ROWS)


def _retention_rows(path: Path) -> list[Example]:
    """General questions, each its own group: what the base could do before training."""
    rows: list[Example] = []
    for number, question in enumerate(_read(path), start=1):
        prompt, *answers = (str(text) for text in question)
        score = {"by": "contains", "all": [answers]}
        name, group = f"retention-{number:02d}", f"retention-{number}"
        rows.append(Example(name, prompt, answers[0], SYSTEM, family="retention", tier="retention", group=group, score=score))
    return rows


class Writer:
    """Fills phrasings with values and never writes a prompt twice."""

    def __init__(self, folder: Path) -> None:
        self._values = Values(folder / "values")
        self._facts = Persona(folder / "facts.yaml")
        self._prompts: set[str] = set()
        self._printed: list[str] = []  # what the template being rendered has filled in
        self._jinja = Environment(undefined=StrictUndefined, finalize=self._note, autoescape=False, keep_trailing_newline=True)
        self._jinja.filters.update(FILTERS)
        self._template = cache(self._jinja.from_string)

    def rows(self, phrasings: list[Phrasing], name: str, tier: str, counts: int | list[int]) -> list[Example]:
        """Rows of `tier`, of each phrasing as many as `counts` says (one number: of all alike); their ids start with `name`."""
        counts = [counts] * len(phrasings) if isinstance(counts, int) else counts
        rows: list[Example] = []
        for phrasing, count in zip(phrasings, counts, strict=True):
            rng = random.Random(f"{name} {phrasing.group}")
            for _ in range(count):
                rows.append(self._row(phrasing, f"{name}-{len(rows) + 1:03d}", tier, rng))
        return rows

    def _row(self, phrasing: Phrasing, name: str, tier: str, rng: random.Random) -> Example:
        for _ in range(200):
            slots = self._draw(phrasing, tier if tier in PARTS else "heldout", rng)
            prompt, printed = self._render(phrasing.prompt, slots)
            if prompt not in self._prompts:
                break
        else:
            raise NomoatError(f"{phrasing.group}: 200 draws gave no new prompt; it has too few slots")
        self._prompts.add(prompt)
        if phrasing.fields:
            fields = {key: plain(self._jinja.compile_expression(source)(**slots)) for key, source in phrasing.fields.items()}
            completion = json.dumps(fields, ensure_ascii=False)
        else:
            completion, _ = self._render(phrasing.completion, slots)
        return Example(
            id=name,
            prompt=prompt,
            completion=completion,
            system=SYSTEM,
            family=phrasing.family,
            tier=tier,
            group=phrasing.group,
            score=self._score(phrasing, slots, completion, printed, rng),
            slots=() if "fact" in slots else tuple(dict.fromkeys(printed)),  # facts are wordings, not values: they are not masked
        )

    def _draw(self, phrasing: Phrasing, part: str, rng: random.Random) -> dict[str, Any]:
        """Different values for all slots that the phrasing's prompt names."""
        slots: dict[str, Any] = {}
        for slot in sorted(meta.find_undeclared_variables(self._jinja.parse(phrasing.prompt))):
            draw = self._facts.draw if slot.startswith("fact") else self._values.draw
            slots[slot] = draw(slot, part, rng, list(slots.values()))
        listings = [value for value in slots.values() if isinstance(value, Listing)]  # `guests` is `list` in the completion of its kind
        return {**slots, **({"list": listings[0]} if listings else {})}

    def _render(self, template: str, slots: dict[str, Any]) -> tuple[str, list[str]]:
        """The filled template, and every text that was filled in."""
        self._printed = []
        return self._template(template).render(slots), self._printed

    def _note(self, value: Any) -> Any:
        self._printed.append(str(value))
        return value

    def _score(self, phrasing: Phrasing, slots: dict[str, Any], completion: str, given: list[str], rng: random.Random) -> dict[str, Any]:
        score = dict(phrasing.score)
        if score["by"] == "sql_rows":
            score["script"] = table_script(slots["table"], completion, rng)
        if "fact" in slots:
            score["all"] = [slots[slot].accept for slot in ("fact", "fact2") if slot in slots]
        if "rules" in score:
            score["rules"] = self._rules(score["rules"], slots, given)
        return score

    def _rules(self, rules: list[dict[str, Any]], slots: dict[str, Any], given: list[str]) -> list[dict[str, Any]]:
        """The rules in the scorer's form; a value that the prompt gives and no rule mentions must be in the reply too."""
        made, mentioned = [], set()
        for rule in rules:
            [(name, value)] = rule.items()
            if isinstance(value, str):
                text, printed = self._render(value, slots)
                mentioned.update(printed)
                made.append({"rule": name, "text": text})
            else:
                made.append({"rule": name, **({} if value is True else {"number": value})})
        return made + [{"rule": "contains", "text": value} for value in dict.fromkeys(given) if value not in mentioned]
