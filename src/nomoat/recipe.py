"""The Recipe: everything a run was asked to do, frozen and checked. Defaults live here and nowhere else.

The YAML side (files, `extends`, overrides, error messages) is `recipe_file.py`; nothing past it sees a dict.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from nomoat.sources import Base, Data, Section

Tier = Literal["values", "phrasing", "family", "retention"]
Arm = Literal["base", "few_shot", "adapter", "merged"]
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
    arms: Annotated[tuple[Arm, ...], Field(strict=False)] = ("base", "few_shot", "adapter")
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
