"""Where a run's model and rows come from: the `base` and `data` blocks of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|unpinned)$")]
HubId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
Wheel = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
BASE_SOURCES = ("wheel", "wheels", "hub", "path")  # alternatives of `base`: choosing one starts the block anew
DATA_SOURCES = ("rows", "hub", "path")  # alternatives of `data`, likewise


class Section(BaseModel):
    """A block of a recipe: unknown keys are errors, true is not 1, NaN is not a number, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Piece(Section):
    """One part of a file that is spread over several wheels."""

    wheel: Wheel
    sha256: Sha256 | None = None  # of the wheel
    file: str  # inside it


class Terms(Section):
    """Terms of its own that a base comes under; a run refuses to begin until `base.accept_license` names them."""

    name: str = Field(min_length=2)
    terms: str = Field(min_length=8)  # where they can be read
    notice: str = Field(min_length=8)  # what has to be passed on with whatever is made of the base


class Base(Section):
    """The model to start from: exactly one of `wheel`, `wheels`, `hub` or `path`."""

    wheel: Wheel | None = None
    wheel_sha256: Sha256 | None = None
    wheels: Annotated[tuple[Piece, ...], Field(strict=False, min_length=1)] | None = None  # one GGUF in pieces, in the order to join them
    gguf: str | None = None
    sha256: Sha256 | None = None  # of the whole GGUF
    hub: HubId | None = None
    revision: Revision | None = None
    path: str | None = None
    license: Terms | None = None
    accept_license: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Base:
        sources = [name for name in BASE_SOURCES if getattr(self, name) is not None]
        if len(sources) != 1:
            seen = " and ".join(sources) or "none of them"
            raise ValueError(f"give exactly one of wheel, wheels, hub or path (seen: {seen})")
        needs = {"wheel": ("gguf", "sha256"), "wheels": ("gguf", "sha256"), "hub": ("revision",), "path": ()}[sources[0]]
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"a {sources[0]} base also needs {' and '.join(missing)}" + _advice(missing))
        belongs = {*needs, *(["wheel_sha256"] if self.wheel is not None else [])}
        stray = [key for key in ("wheel_sha256", "gguf", "sha256", "revision") if getattr(self, key) is not None and key not in belongs]
        if stray:
            raise ValueError(f"{' and '.join(stray)} do not belong to a {sources[0]} base")
        if self.accept_license is not None and self.license is None:
            raise ValueError(f"accept_license: this base states no terms of its own to accept (seen: {self.accept_license})")
        return self


def _advice(missing: list[str], what: str = "model") -> str:
    if "revision" in missing:
        return f": the 40 hex digits of a commit of the {what}'s repository (so that the run can be repeated)"
    return ""


class Tree(Section):
    """The columns of a table of messages that answer each other, a message a row; the names are those of OpenAssistant's sets."""

    id: str = "message_id"
    parent: str = "parent_id"
    text: str = "text"
    role: str = "role"
    rank: str = "rank"  # of an answer among its siblings, 0 for the best


class Columns(Section):
    """How a table's columns become rows: a column's name, or a text with columns in braces; or chat turns; or a tree of messages."""

    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    family: str | None = None
    group: str | None = None
    id: str | None = None
    messages: str | None = None
    tree: Tree | None = None

    @model_validator(mode="after")
    def _whole(self) -> Columns:
        pair = [name for name in ("prompt", "completion") if getattr(self, name) is not None]
        ways = [name for name, told in (("prompt", pair), ("messages", self.messages), ("tree", self.tree)) if told]
        if not ways or (ways == ["prompt"] and len(pair) < 2):
            raise ValueError("give prompt and completion, or messages (a column of chat turns), or tree")
        if len(ways) > 1:
            raise ValueError(f"{ways[-1]} holds prompt and completion already; leave out {' and '.join(pair or ways[:1])}")
        stray = [name for name in ("system", "family", "group", "id") if self.tree is not None and getattr(self, name) is not None]
        if stray:
            raise ValueError(f"{' and '.join(stray)} do not go with tree")
        return self


class Data(Section):
    """The rows: a shipped set by name, a file of the user's own, or a set of the hub."""

    rows: str | None = None  # desk, unless hub or path takes its place
    hub: HubId | None = None  # a data set's owner/name
    path: str | None = None  # a folder laid out like a data set of the hub, such as a downloaded one
    revision: Revision | None = None
    subset: str | None = None  # of a hub set that has several
    split: str | None = None  # of a hub set, by default train: validation and held-out rows are taken from it
    where: dict[str, str | int | bool] | None = None  # only records with these values, such as {lang: en}
    columns: Columns | None = None
    score: dict[str, Any] | None = None  # for rows that state none, such as {by: number}
    fraction: float = Field(default=1.0, gt=0, le=1)  # of the training rows, chosen by stable hash, families kept equal
    families: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None  # train on these only; held-out rows stay
    noise: float = Field(default=0.0, ge=0, le=1)  # share of the training answers replaced by another row's of the family: an experiment
    drop_leaks: bool = False  # held-out rows that repeat training rows are left out and counted
    allow_leaks: str | None = None  # a reason; it is written into the report
    validation: float = Field(default=0.1, gt=0, lt=0.5)  # of a user's own rows; a shipped set is split already
    heldout: float = Field(default=0.1, gt=0, lt=0.5)

    @model_validator(mode="before")
    @classmethod
    def _desk_unless_stated(cls, value: Any) -> Any:
        if isinstance(value, dict) and all(value.get(name) is None for name in DATA_SOURCES):
            return {**value, "rows": "desk"}
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = [name for name in DATA_SOURCES if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"give one of {', '.join(DATA_SOURCES)} (seen: {' and '.join(sources)})")
        if self.hub is not None and self.revision is None:
            raise ValueError("a hub set also needs revision" + _advice(["revision"], "data set"))
        if self.rows is None and self.columns is None:
            raise ValueError("a hub set also needs columns, such as columns: {prompt: question, completion: answer}")
        allowed = {"rows": (), "path": ("subset", "split"), "hub": ("subset", "split", "revision")}[sources[0]]
        stray = [name for name in ("subset", "split", "revision") if getattr(self, name) is not None and name not in allowed]
        if stray:
            raise ValueError(f"{' and '.join(stray)}: for a set of the hub, not for {sources[0]}")
        return self

    @property
    def source(self) -> str:
        """What the rows come from, as a message names it."""
        return str(self.rows or self.hub or self.path)
