"""Phrasings into rows: how the shipped set is made from the hand-written files in its folder.

A family's file holds phrasings under kinds (an operation, a queue); a phrasing is a template of a prompt, with the
completion and the scoring that belong to it. `{{ person }}` draws a person, `{{ person2 }}` a second one.
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

Place = tuple[str, str, list[int]]  # tier, part whose values are drawn, rows for each phrasing

PHRASINGS = 110  # a trained family: many phrasings with few rows each, because a small model learns a wording rather than a task
HELDOUT_PHRASINGS, VALIDATION_PHRASINGS = 10, 4  # of them; the other 96 are for training
# Training rows of each phrasing in the family's file, and of each in the folder `more`. Rows go where validation shows the work is;
# no two are alike, so that one epoch is enough.
TRAIN_ROWS = {"edit": (20, 8), "persona": (6, 0), "route": (5, 4), "shape": (10, 6), "sql": (7, 4)}
TRAIN_ROWS_ELSE = (9, 6)
PHRASING_ROWS = 3  # a held-out phrasing; also of the family that is held out whole
VALUES_ROWS = 24  # a family, each of another training phrasing
VALIDATION_VALUES_ROWS = 10
VALIDATION_PHRASING_ROWS = (3, 3, 3, 2)
VALIDATION_ONLY_PHRASING_ROWS = (6, 5, 5, 5)  # where there are no slots, so no rows with unseen values
HELDOUT_FAMILY = "csv_line"
WITHOUT_SLOTS = "persona"
SYSTEM = "Office desk."  # of every row, retention included; a template's own default may be ten times as long, in every row


@dataclass(frozen=True)
class Phrasing:
    """One way to ask for something; every row made from it is of group `group`."""

    family: str
    kind: str
    group: str
    prompt: str
    completion: str
    fields: dict[str, str]  # for json_fields: key -> expression
    score: dict[str, Any]


def load_phrasings(path: Path) -> list[Phrasing]:
    """The phrasings of a family's file, in its order; what one does not say it takes from its kind, whose rules hold too."""
    content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return _phrasings(path.stem, content, {kind: shared["phrasings"] for kind, shared in content["kinds"].items()}, "")


def load_more(path: Path) -> list[Phrasing]:
    """Phrasings for training alone, from the folder `more` beside the families: kind -> phrasings, all else as in the family's file."""
    written = path.parent.parent / "more" / path.name
    if not written.is_file():
        return []
    content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return _phrasings(path.stem, content, parse_yaml(written.read_text(encoding="utf-8"), str(written)), "more-")


def _phrasings(family: str, content: dict[str, Any], of_kind: dict[str, list[Any]], mark: str) -> list[Phrasing]:
    found: list[Phrasing] = []
    for kind, phrasings in of_kind.items():
        shared = content["kinds"][kind]
        for number, own in enumerate(phrasings, start=1):
            said = {**shared, **(own if isinstance(own, dict) else {"prompt": own})}
            rules = [*shared.get("rules", ()), *(own.get("rules", ()) if isinstance(own, dict) else ())]
            score = {**content["score"], **({"rules": rules} if rules else {})}
            group = f"{family}-{kind}-{mark}{number}"
            found.append(Phrasing(family, kind, group, said["prompt"], said.get("completion", ""), said.get("fields", {}), score))
    return found


def deal(phrasings: list[Phrasing], heldout: int, validation: int) -> dict[str, list[Phrasing]]:
    """Divide phrasings by a seeded shuffle, every kind in proportion, so that the parts are exchangeable.

    Within a kind the shuffled phrasings get evenly spaced places with a random start; the lowest places of all are held out.
    """
    rng = random.Random(f"deal {phrasings[0].family}")
    placed: list[tuple[float, str, Phrasing]] = []
    for kind in dict.fromkeys(phrasing.kind for phrasing in phrasings):
        members = [phrasing for phrasing in phrasings if phrasing.kind == kind]
        rng.shuffle(members)
        start = rng.random()
        placed += [((place + start) / len(members), phrasing.group, phrasing) for place, phrasing in enumerate(members)]
    order = [phrasing for _, _, phrasing in sorted(placed, key=lambda item: item[:2])]
    train = sorted(order[heldout + validation :], key=lambda phrasing: phrasings.index(phrasing))
    return {"heldout": order[:heldout], "validation": order[heldout : heldout + validation], "train": train}


def build_set(folder: Path) -> Splits:
    """All rows of the set in `folder`, the same on every machine; nothing is read but the hand-written files."""
    writer = Writer(folder)
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "heldout": []}
    for path in sorted((folder / "families").glob("*.yaml")):
        made = _family_held_out(writer, path) if path.stem == HELDOUT_FAMILY else _family(writer, path)
        for part, rows in made.items():
            parts[part] += rows
    parts["heldout"] += retention_rows(folder / "retention.yaml")
    return Splits(folder.name, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["heldout"]))


def _family(writer: Writer, path: Path) -> dict[str, list[Example]]:
    """Rows of a trained family: known phrasings with unseen values, then unseen phrasings, for both held-out parts."""
    name, written = path.stem, load_phrasings(path)
    if len(written) != PHRASINGS:
        raise NomoatError(f"{path.name}: a trained family has {PHRASINGS} phrasings, this one has {len(written)}")
    phrasings = deal(written, HELDOUT_PHRASINGS, VALIDATION_PHRASINGS)
    known, with_slots = phrasings["train"], name != WITHOUT_SLOTS
    more, (of_known, of_more) = load_more(path), TRAIN_ROWS.get(name, TRAIN_ROWS_ELSE)
    train = writer.rows([*known, *more], f"{name}-t", ("train", "train", [of_known] * len(known) + [of_more] * len(more)))
    validation: list[Example] = []
    heldout: list[Example] = []
    if with_slots:
        checked = random.Random(f"checked {name}").sample(known, VALIDATION_VALUES_ROWS)
        validation = writer.rows(checked, f"{name}-v-values", ("validation", "validation", [1] * len(checked)))
        asked = random.Random(f"known {name}").sample(known, VALUES_ROWS)
        heldout = writer.rows(asked, f"{name}-h-values", ("values", "heldout", [1] * len(asked)))
    counts = VALIDATION_PHRASING_ROWS if with_slots else VALIDATION_ONLY_PHRASING_ROWS
    validation += writer.rows(phrasings["validation"], f"{name}-v-phrasing", ("validation", "validation", list(counts)))
    unseen = phrasings["heldout"]
    heldout += writer.rows(unseen, f"{name}-h-phrasing", ("phrasing", "heldout", [PHRASING_ROWS] * len(unseen)))
    return {"train": train, "validation": validation, "heldout": heldout}


def _family_held_out(writer: Writer, path: Path) -> dict[str, list[Example]]:
    phrasings = load_phrasings(path)
    return {"heldout": writer.rows(phrasings, f"{path.stem}-h-family", ("family", "heldout", [PHRASING_ROWS] * len(phrasings)))}


def retention_rows(path: Path) -> list[Example]:
    """General questions, each its own group: what the base could do before."""
    questions = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return [
        Example(
            f"retention-{n:02d}",
            said[0],
            said[1],
            SYSTEM,
            "retention",
            "retention",
            f"retention-{n}",
            {"by": "contains", "all": [said[1:]]},
        )
        for n, said in enumerate(([str(text) for text in question] for question in questions), start=1)
    ]


class Writer:
    """Fills phrasings with values; remembers every prompt, so that none is written twice."""

    def __init__(self, folder: Path) -> None:
        self._values = Values(folder / "values")
        self._facts = Persona(folder / "facts.yaml")
        self._prompts: set[str] = set()
        self._printed: list[str] = []
        self._templates: dict[str, Template] = {}
        self._jinja = Environment(undefined=StrictUndefined, finalize=self._note, autoescape=False, keep_trailing_newline=True)
        self._jinja.filters.update(FILTERS)

    def rows(self, phrasings: list[Phrasing], name: str, place: Place) -> list[Example]:
        """Rows of one tier: `name` starts their ids, `place` says whose values and how many rows a phrasing gets."""
        tier, part, counts = place
        made: list[Example] = []
        for phrasing, count in zip(phrasings, counts, strict=True):
            rng = random.Random(f"{name} {phrasing.group}")
            made += [self._row(phrasing, f"{name}-{len(made) + extra:03d}", tier, part, rng) for extra in range(1, count + 1)]
        return made

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
        # facts are wordings, not values: they are divided, but nothing of them is masked
        masked = () if "fact" in slots else tuple(dict.fromkeys(printed))
        return Example(name, prompt, completion, SYSTEM, phrasing.family, tier, phrasing.group, score, masked)

    def _draw(self, phrasing: Phrasing, part: str, rng: random.Random) -> dict[str, Any]:
        """Values for all slots that the phrasing's prompt names, each different from the others."""
        slots: dict[str, Any] = {}
        for slot in sorted(meta.find_undeclared_variables(self._jinja.parse(phrasing.prompt))):
            if slot.startswith("fact"):
                slots[slot] = self._facts.draw(part, rng, [*slots.values()])
            else:
                slots[slot] = self._values.draw(slot, part, rng, [*slots.values()])
        listings = [value for value in slots.values() if isinstance(value, Listing)]  # `guests` is `list` to its kind's completion
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
        fields = {key: self._jinja.compile_expression(source)(**slots) for key, source in phrasing.fields.items()}
        return json.dumps({key: plain(value) for key, value in fields.items()}, ensure_ascii=False)

    def _score(self, phrasing: Phrasing, slots: dict[str, Any], completion: str, rng: random.Random) -> dict[str, Any]:
        score = dict(phrasing.score)
        if score["by"] == "sql_rows":
            score["script"] = table_script(slots["table"], completion, rng)
        if "fact" in slots:
            score["all"] = [list(slots[slot].accept) for slot in ("fact", "fact2") if slot in slots]
        return score

    def _rules(self, rules: list[dict[str, Any]], slots: dict[str, Any], given: list[str]) -> list[dict[str, Any]]:
        """The rules as the scorer reads them; what the prompt gives and no rule speaks of must stand in the reply too."""
        made, spoken_of = [], set()
        for rule in rules:
            [(name, value)] = rule.items()
            if isinstance(value, str):
                text, printed = self._render(value, slots)
                spoken_of.update(printed)
                made.append({"rule": name, "text": text})
            else:
                made.append({"rule": name, **({} if value is True else {"number": value})})
        return made + [{"rule": "contains", "text": value} for value in dict.fromkeys(given) if value not in spoken_of]
