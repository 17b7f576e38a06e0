"""The shape of `report.json`: what is said about a run, and nothing about how it is computed or shown.

Scores lie between 0 and 1, intervals are `(low, high)` at 95 %, sizes are bytes, times seconds; null means "not measured".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# MERGED score_schema:
# The part of `report.json` that speaks of scores: rows, arms, baselines, differences. Units are those of `report_schema`.

ARMS = ("base", "few_shot", "adapter")
OPTIONAL_ARMS = ("merged",)  # only where a recipe or `make eval ARMS=` asks for them
Interval = tuple[float, float]
Verdict = Literal["better", "worse", "cannot tell"]
CompactRow = tuple[str, str, str, str, dict[str, float | None]]
"""`[id, tier, family, group, {what: value}]`. `what` is an arm (its score, null if unscored), `majority`, `nearest_row`,
`lenient_<arm>`, `unstopped_<arm>` (1, only where the arm ran into the token limit), `bits_<arm>` (bits per byte of the
reference) and `bytes` (the reference's length, the weight of `bits_<arm>`)."""


class Part(BaseModel):
    """A frozen piece of a report: an unknown key, NaN or infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FamilyScore(Part):
    """How one arm did on the rows of one family."""

    n: int
    """Rows scored; rows without a score are in `unscored` and count nowhere else."""
    groups: int
    score: float | None
    interval: Interval | None
    """Clustered over groups; null where there are too few rows or groups for one."""
    unscored: int
    unstopped: int
    """Rows whose output ran into the token limit before the end-of-turn token."""
    lenient: float | None
    """Mean of the lenient score (the answer stands anywhere in the output)."""
    bits_per_byte: float | None
    """Bits per byte of the reference completions: comparable across tokenizers, lower is better."""


class TierScore(FamilyScore):
    """How one arm did on one tier: the mean over its families."""

    families: dict[str, FamilyScore]
    note: str | None = None
    """What the interval does not speak of, said where a tier has a single family."""


class ArmScores(Part):
    """One arm; a tier it was not run on is null."""

    tiers: dict[str, TierScore | None]


class FamilyBaseline(Part):
    """What needs no training: the commonest answer, the nearest training row's answer, and mere containment."""

    majority: float | None
    nearest_row: float | None
    lenient_base: float | None
    lenient_adapter: float | None


class Baseline(FamilyBaseline):
    """Baselines of one tier (means over families)."""

    families: dict[str, FamilyBaseline]


class FamilyDifference(Part):
    """The adapter minus another arm, paired row by row."""

    difference: float
    interval: Interval | None
    p_value: float | None
    """McNemar's, which ignores that rows come in groups: shown, not used."""
    smallest_detectable: float | None
    """Smallest true difference these rows would show with 80 % power at two-sided 5 %."""
    verdict: Verdict
    n: int
    groups: int


class TierDifference(FamilyDifference):
    """Paired difference on one tier (mean over families)."""

    families: dict[str, FamilyDifference]


class Comparison(Part):
    """The adapter against the untouched base, and what to conclude."""

    primary: str
    """The tier that decides `verdict`."""
    verdict: Verdict | None
    retention_verdict: Verdict | None
    headline: str
    tiers: dict[str, TierDifference]
    few_shot: dict[str, TierDifference]
    """By tier: the adapter against the base with examples in its prompt."""
    merged: dict[str, TierDifference] = {}
    """By tier: the adapter against itself merged into the 16-bit base."""
    families_below_baseline: dict[str, list[str]]
    """By tier: families whose adapter interval does not lie above both majority and nearest row."""


SCHEMA_VERSION = 1


class Neutral(Part):
    """Bits per byte of a fixed text that has nothing to do with the task, by arm."""

    bytes: int
    bits_per_byte: dict[str, float]


class Benchmark(Part):
    """One metric of a standard benchmark, as lm-evaluation-harness scores it, for base and adapter."""

    task: str
    metric: str
    filter: str
    n: int | None
    """Documents; null where the metric is not a mean over them, and then there is no interval."""
    base: float
    adapter: float
    base_interval: Interval | None
    adapter_interval: Interval | None
    difference: float
    interval: Interval | None
    smallest_detectable: float | None
    higher_is_better: bool | None
    verdict: Verdict


class Harness(Part):
    """Standard benchmarks: which, of which version, asked how, and what came out."""

    lm_eval: str
    chat_template: bool
    limit: int | None
    """Documents taken of each task; null for all."""
    tasks: dict[str, dict[str, Any]]
    scores: list[Benchmark]


class Cost(Part):
    """What the run used, summed over every stretch of it, the failed and the killed ones included."""

    seconds: float
    seconds_by_phase: dict[str, float]
    compute_seconds: float
    usd: float | None
    """Rental: seconds times the stated rate."""
    usd_reason: str
    """Where the rate comes from, or why there is no figure."""
    usd_electricity: float | None
    usd_electricity_reason: str
    usd_as_if: float | None
    """What a rented machine of this kind would have cost; nobody paid it."""
    usd_as_if_label: str | None
    energy_wh: float | None
    energy_note: str
    peak_memory_bytes: int | None
    """Resident memory of the process."""
    peak_device_bytes: int | None
    waited_share: float | None = None
    """Of the time that its threads were ready to run, what they waited for a core, from 0 to 1; where it is not small, others had it."""
    tokens_seen: int
    tokens_trained: int
    tokens_per_second: float | None
    segments: int
    interrupted: int
    """Segments that failed or were killed; they are counted above."""
    reused_seconds: dict[str, float]
    """Seconds that results taken over from an earlier run took when they were made; not counted above."""


class GateCheck(Part):
    """One check of the trained adapter, read back from disk."""

    name: str
    passed: bool
    detail: str = ""


class Gate(Part):
    """Whether the adapter is real."""

    passed: bool
    checks: list[GateCheck]


class AdapterFacts(Part):
    """What came out, and how large it is beside the base."""

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


class Split(Part):
    """Rows of one training split."""

    rows: int
    tokens: int | None = None
    trained_tokens: int | None = None
    dropped: list[dict[str, Any]] = Field(default_factory=list)
    families: dict[str, int] = Field(default_factory=dict)


class HeldOut(Part):
    """Held-out rows: how many there are and how many were scored."""

    available: int
    scored: int
    families: dict[str, dict[str, int]] = Field(default_factory=dict)


class Leaks(Part):
    """Held-out prompts found again in the training rows, by kind of match."""

    exact: int
    masked: int
    ngram: int
    examples: list[Any] = Field(default_factory=list)


class DataFacts(Part):
    """What it was trained and scored on."""

    train: Split | None = None
    validation: Split | None = None
    heldout: HeldOut | None = None
    packing: dict[str, Any] | None = None
    decoded_sample: dict[str, str] | None = None


class LossCurve(Part):
    """`training`: (step, loss), at most 400 points, each the mean of neighbouring steps; `validation`: (step, loss, bits per byte)."""

    training: list[tuple[float, float]]
    validation: list[tuple[float, float | None, float | None]]


class Sample(Part):
    """One held-out row side by side; texts are cut to a length that can be read."""

    kind: Literal["won", "lost", "both_right", "both_wrong"]
    id: str
    tier: str
    family: str
    prompt: str
    target: str
    outputs: dict[str, str]
    scores: dict[str, float | None]


class Report(Part):
    """Everything said about one run; the terminal, the page and every comparison are views of it."""

    schema_version: Literal[1]
    run: str
    created: str | None
    status: Literal["finished", "failed"]
    recipe: dict[str, Any]
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
    provenance: dict[str, Any]
    """`environment.json` as the run wrote it."""
    rows: list[CompactRow]
    files: dict[str, str]
    """sha256 of each `eval/*.jsonl`, by its path inside the run directory."""

    @property
    def shared(self) -> bool:
        """Whether other work ran on the machine meanwhile, as the recipe says (hardware.shared): its times are longer than alone."""
        return bool((self.recipe.get("hardware") or {}).get("shared"))
