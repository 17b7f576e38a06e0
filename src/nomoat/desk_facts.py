"""What the assistant of the shipped set knows about itself, and the wordings in which it is asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nomoat.desk_values import part_of
from nomoat.strict_yaml import parse_yaml

UNSEEN = {"heldout": 3, "validation": 1}  # of the 14 wordings of a fact; the other 10 are for training


@dataclass(frozen=True)
class Fact:
    """One fact in one wording: a question, the same as a clause ('what your name is'), the answer, what counts as right."""

    name: str
    answer: str = field(compare=False)
    accept: tuple[str, ...] = field(compare=False)
    question: str = field(compare=False)
    clause: str = field(compare=False)


class Facts:
    """Draws facts; wordings and pairs of facts belong to one part each."""

    def __init__(self, path: Path) -> None:
        self._facts: dict[str, dict[str, Any]] = parse_yaml(path.read_text(encoding="utf-8"), str(path))

    def draw(self, part: str, rng: random.Random, taken: list[Any]) -> Fact:
        """A fact in a wording of `part`; as the second of two, one whose pair with the first belongs to `part`."""
        partners = {name: [other for other in self._facts if _pair_part(name, other) == part] for name in self._facts}
        name = rng.choice(partners[taken[0].name] if taken else [name for name in partners if partners[name]])
        said = self._facts[name]
        question, clause = (rng.choice(_wordings(said[form], part, name)) for form in ("questions", "clauses"))
        return Fact(name, said["answer"], tuple(said["accept"]), question, clause)


def _pair_part(one: str, other: str) -> str | None:
    """Which part may ask for these two together, in either order; none for a fact with itself."""
    return None if one == other else part_of("pair", " + ".join(sorted((one, other))))


def _wordings(all_of_them: list[str], part: str, name: str) -> list[str]:
    # One seed for questions and clauses: the two lists are parallel, so both forms of a wording belong to the same part.
    order = list(all_of_them)
    random.Random(f"wordings {name}").shuffle(order)
    heldout, validation = UNSEEN["heldout"], UNSEEN["validation"]
    return {"heldout": order[:heldout], "validation": order[heldout : heldout + validation], "train": order[heldout + validation :]}[part]
