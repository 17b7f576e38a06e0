"""Builds the rows of the shipped set from the hand-written files in its folder.

A family's file lists phrasings by kind (an operation, a queue). A phrasing is a template of a prompt with its completion and scorer;
`{{ person }}` draws a person, `{{ person2 }}` another one.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, meta

from nomoat.config.load import parse_yaml
from nomoat.data.desk_fields import FILTERS, Persona, plain, table_script
from nomoat.data.desk_slots import Listing, Values
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


@dataclass(frozen=True)
class Phrasing:
    """One wording of a task; every row made from it has the group `group`."""

    family: str
    kind: str
    group: str
    prompt: str
    completion: str
    fields: dict[str, str]  # for json_fields: key -> expression
    score: dict[str, Any]


def load_phrasings(path: Path, more: Path | None = None) -> list[Phrasing]:
    """The phrasings of a family's file, or those of the file `more` (kind -> phrasings, for training only), in their order.

    A phrasing inherits what it does not state from its kind in the family's file; rules add up.
    """
    content = _read(path)
    of_kind = {kind: shared["phrasings"] for kind, shared in content["kinds"].items()} if more is None else _read(more)
    phrasings: list[Phrasing] = []
    for kind, listed in of_kind.items():
        shared = content["kinds"][kind]
        for number, item in enumerate(listed, start=1):
            own = item if isinstance(item, dict) else {"prompt": item}
            merged = {**shared, **own}
            rules = [*shared.get("rules", ()), *own.get("rules", ())]
            phrasings.append(
                Phrasing(
                    family=path.stem,
                    kind=kind,
                    group=f"{path.stem}-{kind}-{'' if more is None else 'more-'}{number}",
                    prompt=merged["prompt"],
                    completion=merged.get("completion", ""),
                    fields=merged.get("fields", {}),
                    score={**content["score"], **({"rules": rules} if rules else {})},
                )
            )
    return phrasings


def _read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def deal(phrasings: list[Phrasing], heldout: int, validation: int) -> dict[str, list[Phrasing]]:
    """Divide phrasings by a seeded shuffle, every kind in proportion, so that the parts are exchangeable.

    Within a kind, shuffled phrasings get evenly spaced places with a random start; the lowest places overall are held out.
    """
    rng = random.Random(f"deal {phrasings[0].family}")
    placed: list[tuple[float, str, Phrasing]] = []
    for kind in dict.fromkeys(phrasing.kind for phrasing in phrasings):
        members = [phrasing for phrasing in phrasings if phrasing.kind == kind]
        rng.shuffle(members)
        start = rng.random()
        placed += [((place + start) / len(members), phrasing.group, phrasing) for place, phrasing in enumerate(members)]
    order = [phrasing for _, _, phrasing in sorted(placed, key=lambda item: item[:2])]
    train = sorted(order[heldout + validation :], key=phrasings.index)
    return {"heldout": order[:heldout], "validation": order[heldout : heldout + validation], "train": train}


def build_set(folder: Path) -> Splits:
    """All rows of the set in `folder`, made from its hand-written files only and the same on every machine."""
    writer = Writer(folder)
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "heldout": []}
    for path in sorted((folder / "families").glob("*.yaml")):
        build = _family_held_out if path.stem == HELDOUT_FAMILY else _family
        for part, rows in build(writer, path).items():
            parts[part] += rows
    parts["heldout"] += retention_rows(folder / "retention.yaml")
    return Splits(folder.name, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["heldout"]))


def _family(writer: Writer, path: Path) -> dict[str, list[Example]]:
    """Rows of a trained family; validation and held-out rows are known phrasings with unseen values, then unseen phrasings."""
    name, phrasings = path.stem, load_phrasings(path)
    if len(phrasings) != PHRASINGS:
        raise NomoatError(f"{path.name}: a trained family has {PHRASINGS} phrasings, this one has {len(phrasings)}")
    dealt = deal(phrasings, HELDOUT_PHRASINGS, VALIDATION_PHRASINGS)
    known, with_slots = dealt["train"], name != WITHOUT_SLOTS
    more = path.parent.parent / "more" / path.name
    added = load_phrasings(path, more) if more.is_file() else []
    of_known, of_added = TRAIN_ROWS.get(name, TRAIN_ROWS_ELSE)
    counts = [of_known] * len(known) + [of_added] * len(added)
    train = writer.rows([*known, *added], f"{name}-t", tier="train", part="train", counts=counts)
    validation: list[Example] = []
    heldout: list[Example] = []
    if with_slots:
        checked = random.Random(f"checked {name}").sample(known, VALIDATION_VALUES_ROWS)
        validation = writer.rows(checked, f"{name}-v-values", tier="validation", part="validation", counts=[1] * len(checked))
        asked = random.Random(f"known {name}").sample(known, VALUES_ROWS)
        heldout = writer.rows(asked, f"{name}-h-values", tier="values", part="heldout", counts=[1] * len(asked))
    counts = list(VALIDATION_PHRASING_ROWS if with_slots else VALIDATION_ONLY_PHRASING_ROWS)
    validation += writer.rows(dealt["validation"], f"{name}-v-phrasing", tier="validation", part="validation", counts=counts)
    counts = [PHRASING_ROWS] * HELDOUT_PHRASINGS
    heldout += writer.rows(dealt["heldout"], f"{name}-h-phrasing", tier="phrasing", part="heldout", counts=counts)
    return {"train": train, "validation": validation, "heldout": heldout}


def _family_held_out(writer: Writer, path: Path) -> dict[str, list[Example]]:
    phrasings = load_phrasings(path)
    counts = [PHRASING_ROWS] * len(phrasings)
    return {"heldout": writer.rows(phrasings, f"{path.stem}-h-family", tier="family", part="heldout", counts=counts)}


def retention_rows(path: Path) -> list[Example]:
    """General questions, each its own group: what the base could do before training."""
    questions = [[str(text) for text in question] for question in _read(path)]
    return [
        Example(
            id=f"retention-{number:02d}",
            prompt=prompt,
            completion=answers[0],
            system=SYSTEM,
            family="retention",
            tier="retention",
            group=f"retention-{number}",
            score={"by": "contains", "all": [answers]},
        )
        for number, (prompt, *answers) in enumerate(questions, start=1)
    ]


class Writer:
    """Fills phrasings with values and never writes a prompt twice."""

    def __init__(self, folder: Path) -> None:
        self._values = Values(folder / "values")
        self._facts = Persona(folder / "facts.yaml")
        self._prompts: set[str] = set()
        self._printed: list[str] = []  # what the template being rendered has filled in
        self._templates: dict[str, Template] = {}
        self._jinja = Environment(undefined=StrictUndefined, finalize=self._note, autoescape=False, keep_trailing_newline=True)
        self._jinja.filters.update(FILTERS)

    def rows(self, phrasings: list[Phrasing], name: str, *, tier: str, part: str, counts: list[int]) -> list[Example]:
        """Rows of `tier` with the values of `part`: of each phrasing so many as `counts` says; their ids start with `name`."""
        rows: list[Example] = []
        for phrasing, count in zip(phrasings, counts, strict=True):
            rng = random.Random(f"{name} {phrasing.group}")
            for _ in range(count):
                rows.append(self._row(phrasing, f"{name}-{len(rows) + 1:03d}", tier, part, rng))
        return rows

    def _row(self, phrasing: Phrasing, name: str, tier: str, part: str, rng: random.Random) -> Example:
        for _ in range(200):
            slots = self._draw(phrasing, part, rng)
            prompt, printed = self._render(phrasing.prompt, slots)
            if prompt not in self._prompts:
                break
        else:
            raise NomoatError(f"{phrasing.group}: 200 draws gave no new prompt; it has too few slots")
        self._prompts.add(prompt)
        completion = self._completion(phrasing, slots)
        score = self._score(phrasing, slots, completion, rng)
        if "rules" in score:
            score["rules"] = self._rules(score["rules"], slots, printed)
        return Example(
            id=name,
            prompt=prompt,
            completion=completion,
            system=SYSTEM,
            family=phrasing.family,
            tier=tier,
            group=phrasing.group,
            score=score,
            slots=() if "fact" in slots else tuple(dict.fromkeys(printed)),  # facts are wordings, not values: they are not masked
        )

    def _draw(self, phrasing: Phrasing, part: str, rng: random.Random) -> dict[str, Any]:
        """Different values for all slots that the phrasing's prompt names."""
        slots: dict[str, Any] = {}
        for slot in sorted(meta.find_undeclared_variables(self._jinja.parse(phrasing.prompt))):
            taken = [*slots.values()]
            is_fact = slot.startswith("fact")
            slots[slot] = self._facts.draw(part, rng, taken) if is_fact else self._values.draw(slot, part, rng, taken)
        listings = [value for value in slots.values() if isinstance(value, Listing)]  # `guests` is `list` in the completion of its kind
        return {**slots, **({"list": listings[0]} if listings else {})}

    def _render(self, template: str, slots: dict[str, Any]) -> tuple[str, list[str]]:
        """The filled template, and every text that was filled in."""
        if template not in self._templates:
            self._templates[template] = self._jinja.from_string(template)
        self._printed = []
        text = self._templates[template].render(slots)
        return text, self._printed

    def _note(self, value: Any) -> Any:
        self._printed.append(str(value))
        return value

    def _completion(self, phrasing: Phrasing, slots: dict[str, Any]) -> str:
        if not phrasing.fields:
            return self._render(phrasing.completion, slots)[0]
        fields = {key: plain(self._jinja.compile_expression(source)(**slots)) for key, source in phrasing.fields.items()}
        return json.dumps(fields, ensure_ascii=False)

    def _score(self, phrasing: Phrasing, slots: dict[str, Any], completion: str, rng: random.Random) -> dict[str, Any]:
        score = dict(phrasing.score)
        if score["by"] == "sql_rows":
            score["script"] = table_script(slots["table"], completion, rng)
        if "fact" in slots:
            score["all"] = [list(slots[slot].accept) for slot in ("fact", "fact2") if slot in slots]
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
