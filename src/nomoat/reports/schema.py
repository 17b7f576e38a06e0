"""The shape of `report.json`: numbers and names, none of the sentences that views make of them.

Scores lie between 0 and 1, intervals are `(low, high)` at 95 %, sizes are bytes, times seconds; null means "not measured". A report of an
older schema version is brought to this one when it is read (migrate.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_serializer

from nomoat.config.schema import Recipe
from nomoat.io import Record
from nomoat.runs.costs import Cost
from nomoat.runs.provenance import Provenance
from nomoat.stats.intervals import Interval
from nomoat.stats.paired import Verdict

TIERS = ("values", "phrasing", "family", "retention")  # from the easiest question to the hardest
ARMS = ("base", "few_shot", "adapter")
OPTIONAL_ARMS = ("merged",)  # only where a recipe or `make eval ARMS=` asks for them


class CompactRow(NamedTuple):
    """One held-out row, `[id, tier, family, group, {key: value}]` in JSON.

    A key is an arm (its score, null if unscored), `majority`, `nearest_row`, `lenient_<arm>`, `unstopped_<arm>` (1, only where the answer
    was cut off), `bits_<arm>` (bits per byte of the reference) and `bytes` (the reference's length, the weight of `bits_<arm>`).
    """

    id: str
    tier: str
    family: str
    group: str
    values: dict[str, float | None]


class FamilyScore(Record):
    """Scores of one arm on the rows of one family."""

    n: int  # rows scored; rows without a score are in `unscored` and count nowhere else
    groups: int
    score: float | None
    interval: Interval | None  # clustered over groups; null where there are too few rows or groups for one
    unscored: int
    unstopped: int  # rows whose output ran into the token limit before the end-of-turn token
    lenient: float | None  # mean of the lenient score (the answer appears anywhere in the output)
    bits_per_byte: float | None  # bits per byte of the reference completions: comparable across tokenizers, lower is better


class TierScore(FamilyScore):
    """Scores of one arm on one tier: the mean over its families."""

    families: dict[str, FamilyScore]


class ArmScores(Record):
    """One arm; a tier it was not run on is null."""

    tiers: dict[str, TierScore | None]


class FamilyBaseline(Record):
    """Baselines that need no training: the majority answer, the nearest training row's answer, and mere containment."""

    majority: float | None
    nearest_row: float | None
    lenient_base: float | None
    lenient_adapter: float | None


class Baseline(FamilyBaseline):
    """Baselines of one tier (means over families)."""

    families: dict[str, FamilyBaseline]


class FamilyDifference(Record):
    """The adapter minus another arm, paired row by row."""

    difference: float
    interval: Interval | None
    p_value: float | None  # McNemar's, which ignores that rows come in groups: shown, not used
    smallest_detectable: float | None  # smallest true difference these rows would show with 80 % power at two-sided 5 %
    verdict: Verdict
    n: int
    groups: int


class TierDifference(FamilyDifference):
    """Paired difference on one tier (mean over families)."""

    families: dict[str, FamilyDifference]


class Comparison(Record):
    """The adapter against the untouched base, and the verdicts."""

    primary: str  # the tier that decides `verdict`
    verdict: Verdict | None
    retention_verdict: Verdict | None
    tiers: dict[str, TierDifference]
    few_shot: dict[str, TierDifference]  # by tier: the adapter against the base with examples in its prompt
    merged: dict[str, TierDifference] = Field(default_factory=dict)  # by tier: the adapter against itself merged into the 16-bit base
    families_below_baseline: dict[str, list[str]]  # by tier: families whose adapter interval does not lie above both baselines


class Neutral(Record):
    """Bits per byte of a fixed text that has nothing to do with the task, by arm."""

    bytes: int
    bits_per_byte: dict[str, float]


class Benchmark(Record):
    """One metric of a standard benchmark, as lm-evaluation-harness scores it, for base and adapter."""

    task: str
    metric: str
    filter: str
    n: int | None  # documents; null where the metric is not a mean over them, and then there is no interval
    base: float
    adapter: float
    base_interval: Interval | None
    adapter_interval: Interval | None
    difference: float
    interval: Interval | None
    smallest_detectable: float | None
    higher_is_better: bool | None
    verdict: Verdict


class Harness(Record):
    """Standard benchmarks: tasks, versions, prompting and scores."""

    lm_eval: str
    chat_template: bool
    limit: int | None  # documents taken of each task; null for all
    tasks: dict[str, dict[str, Any]]
    scores: list[Benchmark]


class Check(Record):
    """One check of the trained adapter, read back from disk.

    `value` was measured and is compared with `threshold`; the meaning of both depends on `name` (format.check_words).
    """

    name: str
    passed: bool
    value: float | None = None
    threshold: float | None = None
    total: int | None = None  # tensors or rows that were checked
    reload_error: float | None = None  # largest difference between the logits of the adapter in memory and of the one read back
    example: str | None = None  # the first tensor that failed
    excused: bool = False  # not met, as `eval.expect_no_gain` allows


class Gate(Record):
    """Whether the adapter is real: all checks have to pass."""

    passed: bool
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> Gate:
        """The gate of these checks."""
        checks = tuple(checks)
        return cls(passed=all(check.passed for check in checks), checks=checks)

    def check(self, name: str) -> Check | None:
        """The check of that name, if it was made."""
        return next((check for check in self.checks if check.name == name), None)


class AdapterFacts(Record):
    """The adapter's size and settings, with the base's size for comparison."""

    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    parameters: int | None = None
    base_parameters: int | None = None
    bytes: int | None = None
    base_bytes_16bit: int | None = None
    base_bytes_download: int | None = None
    sha256: str | None = None
    gate: Gate | None = None


class Split(Record):
    """Rows of one split."""

    rows: int
    tokens: int | None = None
    trained_tokens: int | None = None
    dropped: list[dict[str, Any]] = Field(default_factory=list)
    families: dict[str, int] = Field(default_factory=dict)


class HeldOut(Record):
    """Held-out rows: how many there are and how many were scored."""

    available: int
    scored: int
    families: dict[str, dict[str, int]] = Field(default_factory=dict)


class Leaks(Record):
    """Held-out prompts found again in the training rows, by kind of match."""

    exact: int
    masked: int
    ngram: int
    examples: list[Any] = Field(default_factory=list)


class Packing(Record):
    """Whether rows were packed, and why."""

    packed: bool
    reason: str = ""


class DataFacts(Record):
    """The rows of training and scoring."""

    train: Split | None = None
    validation: Split | None = None
    heldout: HeldOut | None = None
    packing: Packing | None = None
    decoded_sample: dict[str, str] | None = None


class LossCurve(Record):
    """`training`: (step, loss), at most 400 points, each the mean of neighbouring steps; `validation`: (step, loss, bits per byte)."""

    training: list[tuple[float, float]]
    validation: list[tuple[float, float | None, float | None]]


class Sample(Record):
    """One held-out row side by side; texts are cut to a length that can be read."""

    kind: Literal["won", "lost", "both_right", "both_wrong"]
    id: str
    tier: str
    family: str
    prompt: str
    target: str
    outputs: dict[str, str]
    scores: dict[str, float | None]


class Report(Record):
    """The record of one run; the terminal, the page and every comparison are views of it."""

    schema_version: Literal[2]
    run: str
    created: str | None
    status: Literal["finished", "failed"]
    recipe: Recipe
    arms: dict[str, ArmScores]
    baselines: dict[str, Baseline]
    comparison: Comparison
    neutral: Neutral | None
    harness: Harness | None = None
    cost: Cost
    adapter: AdapterFacts
    data: DataFacts
    leaks: Leaks | None
    learning_curve: LossCurve
    samples: list[Sample]
    provenance: Provenance  # `environment.json` as the run wrote it
    rows: list[CompactRow]
    files: dict[str, str]  # sha256 of each `eval/*.jsonl`, by its path inside the run directory

    @field_serializer("recipe")
    def _portable_recipe(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.as_dict()

    @property
    def base_name(self) -> str:
        """The base as tables and pages call it."""
        return self.provenance.base.display_name or self.provenance.base.name

    @property
    def seed(self) -> int:
        """The seed of training."""
        return self.provenance.seed or 0

    @property
    def shared(self) -> bool:
        """Whether other work ran on the machine meanwhile, as the recipe states (hardware.shared): times are longer than alone."""
        return self.recipe.hardware.shared
