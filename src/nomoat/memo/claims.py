"""What the memo claims, and when we say that a claim holds: fixed before the runs that are judged by it.

The memo: "We Have No Moat, And Neither Does OpenAI", published by SemiAnalysis on 2023-05-04. `claims_sha256` goes into every run; a
report made under another table is refused, so that no threshold moves after its result was seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nomoat.io import sha256_of

# Comparisons between methods are made on half of the default's rows (`lora`): there the score has room on both sides, and the same hours
# give twice as many runs.
MARGIN = 0.10  # d: a score lower by less than this is as good
TIER = "phrasing"  # the score that is judged: unseen phrasings, mean over families
NEW_FAMILIES = ("calendar", "route")  # B, what is learnt later (M9, M11); A is every other family
HOUR = 3600.0


@dataclass(frozen=True)
class Claim:
    """One claim: its words, our rule, the thresholds in it, the runs it needs, and what the rule leaves out."""

    id: str
    quote: str
    rule: str
    limits: dict[str, float] = field(default_factory=dict)
    runs: tuple[str, ...] = ()  # roles: `default`, the default recipe, and the recipes below recipes/memo/, all of them variants of `lora`
    leaves_out: str = ""
    out_of_reach: str = ""  # why, for a claim that no run of ours can decide
    looked_at: dict[str, float] | None = None  # the limits that stood when the runs were made, where they were changed afterwards


CLAIMS = (
    Claim(
        "M1",
        "finetune a personalized AI on your laptop in an evening",
        "from first command to verdict the default recipe takes at most 4 h, and its adapter is better than the base, bare and few-shot",
        {"seconds": 4 * HOUR},
        ("default",),
        "the base was pretrained and instruction-tuned by others; writing the training rows took people time",
    ),
    Claim(
        "M2",
        "one person, an evening, and a beefy laptop",
        "M1 holds, and the run's peak memory is at most 16 GB",
        {"seconds": 4 * HOUR, "bytes": 16e9},
        ("default",),
        "as M1; the memory is that of one process, not of the operating system beside it",
    ),
    Claim(
        "M3",
        "personalize a language model in a few hours on consumer hardware",
        "the default recipe takes at most 4 h on a consumer GPU",
        {"seconds": 4 * HOUR},
        ("default",),
        "as M1",
    ),
    Claim(
        "M4",
        "LoRA updates are very cheap to produce (~$100)",
        "the rental price of everything in the default recipe's ledger is at most 100 USD, and its adapter is better than the base",
        {"usd": 100.0},
        ("default",),
        "the tries before the recipe was found; the people",
    ),
    Claim(
        "M5",
        "Training times under a day are the norm",
        "the default recipe takes under 24 h, and its adapter is better than the base",
        {"seconds": 24 * HOUR},
        ("default",),
        "a norm is said of many recipes; this is one, of a small base",
    ),
    Claim(
        "M6",
        "within hours on a single RTX 4090",
        "the default recipe takes at most 4 h on an RTX 4090",
        {"seconds": 4 * HOUR},
        ("default",),
        "as M1",
    ),
    Claim(
        "M7",
        "reduces the size of the update matrices by a factor of up to several thousand",
        "base parameters over trained parameters is at least 1,000 at the smallest rank whose score is less than d below that of rank 16",
        {"ratio": 1000.0, "margin": MARGIN},
        ("lora", "rank1", "rank4", "rank64"),
        "a larger base has a larger ratio at the same rank",
    ),
    Claim(
        "M8",
        "fine-tuning at a fraction of the cost and time",
        "LoRA's score is less than d below full fine-tuning's, at half of its time or less and half of its money or less",
        {"margin": MARGIN, "ratio": 0.5},
        ("lora", "full"),
        "each method in its fastest precision that trains stably and at the best of three learning rates chosen on validation rows; "
        "finding these is in neither's time",
    ),
    Claim(
        "M9",
        "it's stackable",
        "after B is trained on top of A, A's families lose less than d and B's are less than d below B trained alone",
        {"margin": MARGIN},
        ("a", "b", "b_on_a"),
        "two steps of a stack; one pair of tasks",
    ),
    Claim(
        "M10",
        "While the individual fine tunings are low rank, their sum need not be",
        "in at least 90 % of the modules the sum's rank (singular values above 1e-3 of the largest) is higher than either summand's",
        {"share": 0.9},
        ("a", "b"),
        "rank says nothing of whether the sum is any good",
    ),
    Claim(
        "M11",
        "cheaply kept up to date, without ever having to pay the cost of a full run",
        "adding B's families costs at most half of training on the union, and the score over all families is less than d below the union's",
        {"margin": MARGIN, "ratio": 0.5},
        ("lora", "b_on_a"),
        "the full run is ours, of an adapter, not the pretraining that the memo means",
    ),
    Claim(
        "M12",
        "Data quality scales better than data size",
        "clean rows score higher than as many tokens of rows a quarter of which have another row's answer",
        {"gain": 0.0},
        ("lora", "noisy25"),
        "wrong answers are one kind of low quality; 50 % is shown, not judged",
    ),
    Claim(
        "M13",
        "training on small, highly curated datasets",
        "half of the rows (`lora`) score less than d below all that the default recipe takes",
        {"margin": MARGIN},
        ("default", "lora"),
        "both sets are curated; what curation costs in people's time",
    ),
    Claim(
        "M14",
        "low rank updates can be distributed easily and separately from the original weights",
        "the adapter file is at most a tenth of the base in 16 bits, and read back from its folder alone it gives the same logits",
        {"share": 0.1},
        ("default",),
        "who receives it needs the very same base weights",
    ),
    Claim(
        "M15",
        "doing things with $100 and 13B params that we struggle with at $10M and 540B",
        "none",
        out_of_reach="nobody outside has the 540B model, and a 13B model does not fit what we train on",
    ),
    Claim(
        "M16",
        "largely indistinguishable from ChatGPT",
        "none",
        out_of_reach="the ChatGPT of 2023 can no longer be asked, and a base of 135M parameters is not in its class",
    ),
    Claim(
        "M17",
        "the cumulative effect of all of these fine-tunings overcomes starting off at a size disadvantage",
        "the adapted 135M base scores higher than the 270M base with examples in its prompt",
        {"gain": 0.0},
        ("lora", "gemma"),
        "one fine-tuning and not many; two bases of different makers; the adapted 270M base is shown, not judged",
    ),
    Claim(
        "M18",
        "their total spend of a few hundred dollars",
        "all runs behind this verdict together, failed ones included, cost at most 300 USD at their rental rates",
        {"usd": 300.0},
        ("default",),
        "development before the runs; the people",
    ),
)


def claims_sha256() -> str:
    """What a run records of this table: any word or number of it changed gives another.

    A threshold changed after a look at the results keeps the hash only where `looked_at` owns up to the one before; both are judged then.
    """
    return sha256_of([_as_it_stood(claim) for claim in CLAIMS])


def _as_it_stood(claim: Claim) -> dict[str, Any]:
    told = asdict(claim)
    before = told.pop("looked_at")
    return told if before is None else {**told, "limits": before}
