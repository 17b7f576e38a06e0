"""The part of `report.json` that speaks of scores: rows, arms, baselines, differences. Units are those of `report_schema`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

ARMS = ("base", "few_shot", "adapter")
ASKED_ARMS = ("merged",)  # only where a recipe or `make eval ARMS=` asks for them
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


class Arm(Part):
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
