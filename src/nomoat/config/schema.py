"""The Recipe: everything a run was asked to do, frozen and checked. Defaults live here and nowhere else.

The YAML side (files, `extends`, overrides, error messages) is `recipe_file.py`; nothing past it sees a dict.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

# MERGED sources:
# Where a run's model and rows come from: the `base` and `data` blocks of a recipe.

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|unpinned)$")]
HubId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
Wheel = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
BASE_SOURCES = ("wheel", "wheels", "hub", "path")  # alternatives of `base`: choosing one starts the block anew
DATA_SOURCES = ("rows", "hub", "path")  # alternatives of `data`, likewise


class Section(BaseModel):
    """A block of a recipe: unknown keys are errors, true is not 1, NaN is not a number, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WheelPiece(Section):
    """One part of a file that is spread over several wheels."""

    wheel: Wheel
    sha256: Sha256 | None = None  # of the wheel
    file: str  # inside it


class LicenseTerms(Section):
    """Terms of its own that a base comes under; a run refuses to begin until `base.accept_license` names them."""

    name: str = Field(min_length=2)
    terms: str = Field(min_length=8)  # where they can be read
    notice: str = Field(min_length=8)  # what has to be passed on with whatever is made of the base


class Base(Section):
    """The model to start from: exactly one of `wheel`, `wheels`, `hub` or `path`."""

    wheel: Wheel | None = None
    wheel_sha256: Sha256 | None = None
    wheels: Annotated[tuple[WheelPiece, ...], Field(strict=False, min_length=1)] | None = (
        None  # one GGUF in pieces, in the order to join them
    )
    gguf: str | None = None
    sha256: Sha256 | None = None  # of the whole GGUF
    hub: HubId | None = None
    revision: Revision | None = None
    path: str | None = None
    license: LicenseTerms | None = None
    accept_license: str | None = None
    note: str | None = None
    display_name: str | None = Field(default=None, min_length=2, max_length=60)  # in tables and pages; by default made from the source

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


Tier = Literal["values", "phrasing", "family", "retention"]
ArmName = Literal["base", "few_shot", "adapter", "merged"]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
# A choice between types is told apart first, so that a mistake in it is told once; `<...>` marks these names in error places.
Word, Number = Tag("<word>"), Tag("<number>")
LARGE_MODEL = 4_000_000_000  # parameters; from here LoRA's best learning rate is lower (Thinking Machines' sweep, 2025)


class Lora(Section):
    """The adapter. alpha / rank scales the update; `targets` are module names, or all linear layers but the head.

    `method: full` trains every parameter of the base instead: the other keys say nothing then.
    """

    method: Literal["lora", "rslora", "dora", "pissa", "full"] = "lora"
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[
        Annotated[Literal["all-linear"], Word] | Annotated[Names, Tag("<names>")],
        Discriminator(lambda value: "<word>" if isinstance(value, str) else "<names>"),
    ] = "all-linear"
    start: str | None = None  # a finished run (or an adapter's folder) whose weights it begins with; otherwise fresh ones

    @model_validator(mode="after")
    def _fresh_pissa(self) -> Lora:
        if self.start is not None and self.method == "pissa":
            raise ValueError("start does not go with method pissa, whose weights begin as a part of the base")
        return self


class Train(Section):
    """How long and how fast. Tokens are non-padding tokens."""

    epochs: float = Field(default=1.0, gt=0, le=100)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: Annotated[
        Annotated[Literal["auto"], Word] | Annotated[float, Number, Field(gt=0, lt=1)],
        Discriminator(lambda value: "<word>" if isinstance(value, str) else "<number>"),
    ] = "auto"
    loraplus_lr_ratio: float = Field(default=1.0, gt=0, le=64)  # LoRA+: learning rate of B over that of A
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_tokens: int = Field(default=2048, ge=16)  # per optimiser step
    pack_tokens: int = Field(default=512, ge=16)  # per forward pass; attention costs its square
    max_row_tokens: int = Field(default=512, ge=8)  # a longer row is dropped, counted and named
    validation_points: int = Field(default=5, ge=2, le=100)  # first and last included
    checkpoints: int = Field(default=8, ge=1)  # how many are written on the way; two are kept
    report_to: Annotated[tuple[str, ...], Field(strict=False)] = ()  # trackers of transformers' Trainer, such as [tensorboard]
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.max_row_tokens > self.pack_tokens:
            raise ValueError(f"max_row_tokens {self.max_row_tokens} does not fit into pack_tokens {self.pack_tokens}: raise pack_tokens")
        if self.pack_tokens > self.batch_tokens:
            raise ValueError(
                f"pack_tokens {self.pack_tokens} is more than batch_tokens {self.batch_tokens}: one step holds at least one pack"
            )
        return self


class Eval(Section):
    """What is scored and how long an answer may be. Bounded by default; the report says n of how many."""

    tiers: Annotated[tuple[Tier, ...], Field(strict=False, min_length=1)] = ("values", "phrasing", "family", "retention")
    arms: Annotated[tuple[ArmName, ...], Field(strict=False)] = ("base", "few_shot", "adapter")
    primary: Tier = "phrasing"
    max_rows: int = Field(default=500, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)
    batch_rows: int = Field(default=64, ge=1)
    harness: Annotated[tuple[str, ...], Field(strict=False)] = ()  # tasks of lm-evaluation-harness: its names, or YAML files
    harness_limit: int | None = Field(default=None, ge=1)  # documents of each task, the first ones
    harness_batch_rows: int = Field(default=8, ge=1)
    expect_no_gain: bool = False  # memo experiments: an adapter that gains nothing is then a finding, not a failure

    @model_validator(mode="after")
    def _consistent(self) -> Eval:
        if self.primary not in self.tiers:
            raise ValueError(f"primary tier '{self.primary}' is not among the scored tiers ({', '.join(self.tiers)})")
        if not {"base", "adapter"} <= set(self.arms):
            raise ValueError("arms must hold base and adapter: a score without its baseline is refused")
        return self


class RentalRate(Section):
    """What this machine costs to rent, where that figure is from, and when it was read."""

    usd_per_hour: float = Field(gt=0)
    source: str = Field(min_length=3)
    date: datetime.date = Field(strict=False)


class ElectricityRate(Section):
    """What this machine draws and what electricity costs: an estimate, and labelled so."""

    watts: float = Field(gt=0)
    usd_per_kwh: float = Field(gt=0)


class AsIfRented(Section):
    """A cloud instance whose price is shown beside, only on a CPU of the same architecture with no more cores."""

    instance: str
    usd_per_hour: float = Field(gt=0)
    architecture: str
    vcpu: int = Field(ge=1)
    source: str = Field(min_length=3)
    date: datetime.date = Field(strict=False)


def _kind_of_rate(value: Any) -> str:
    if isinstance(value, ElectricityRate) or (isinstance(value, dict) and {"watts", "usd_per_kwh"} & value.keys()):
        return "<electricity>"
    return "<rental>" if isinstance(value, dict | RentalRate) else "<word>"


class Hardware(Section):
    """Where it runs and what an hour of it costs."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    kernels: Literal["auto", "plain"] = "auto"  # plain: peft's layers, torch's attention and loss, scoring without drafting
    shared: bool = False  # other work runs on the machine meanwhile: times are told, and said to be too long to compare
    rate: Annotated[
        Annotated[Literal["auto"], Word] | Annotated[RentalRate, Tag("<rental>")] | Annotated[ElectricityRate, Tag("<electricity>")],
        Discriminator(_kind_of_rate),
    ] = "auto"
    as_if_rented: AsIfRented | None = None


class Recipe(Section):
    """One run, as asked for. `name` comes from the file's name."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    base: Base
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = "auto"
    data: Data = Data()
    lora: Lora = Lora()
    train: Train = Train()
    eval: Eval = Eval()
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _full_trains_weights(self) -> Recipe:
        if self.lora.method != "full":
            return self
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"lora.method full trains the base's own weights, which needs precision auto, float32 or bfloat16 (seen: "
                f"{self.precision}); for an adapter on such a base use lora.method lora"
            )
        if self.lora.dropout or self.train.loraplus_lr_ratio != 1:
            raise ValueError("lora.method full has no adapter: lora.dropout must be 0 and train.loraplus_lr_ratio 1")
        return self

    @model_validator(mode="after")
    def _pissa_in_full(self) -> Recipe:
        if self.lora.method == "pissa" and self.precision not in ("auto", "float32"):
            raise ValueError(
                f"lora.method pissa takes the base's own weights apart, which needs precision auto or float32: in {self.precision} "
                "what is left of them would be rounded, and the saved adapter would belong to another base"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, defaults included; keys left at null are kept so that every choice is visible."""
        return self.model_dump(mode="json")


def learning_rate_for(recipe: Recipe, parameters: int) -> float:
    """The stated learning rate, or the usual one for the method and a base of that many parameters."""
    stated = recipe.train.learning_rate
    return _usual_learning_rate(recipe, parameters) if stated == "auto" else float(stated)


def _usual_learning_rate(recipe: Recipe, parameters: int) -> float:
    """LoRA's best is some ten times that of full fine-tuning (Thinking Machines' sweep, 2025)."""
    lora = 1e-3 if parameters < LARGE_MODEL else 3e-4
    return lora / 10 if recipe.lora.method == "full" else lora


def learning_rate_warning(recipe: Recipe, parameters: int) -> str | None:
    """A sentence when a stated learning rate lies outside a tenth to three times the default."""
    stated = recipe.train.learning_rate
    if stated == "auto":
        return None
    usual = _usual_learning_rate(recipe, parameters)
    if usual / 10 <= float(stated) <= 3 * usual:
        return None
    method = "full fine-tuning of" if recipe.lora.method == "full" else "LoRA on"
    return f"train.learning_rate {stated:g} is far from the usual {usual:g} for {method} {parameters / 1e6:.0f}M parameters"


QUANTISED = ("int8", "nf4")
