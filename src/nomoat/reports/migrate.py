"""Reports and gate files of older schema versions, brought to the present one.

Version 1 (until November 2026) kept the numbers of the gate in English sentences and had two more sentences among its fields. They are
frozen, so the patterns below can parse them; no other sentence is parsed.
"""

from __future__ import annotations

import math
import re
from typing import Any

from nomoat.config.schema import display_name_of

_NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?|nan|inf)"
_EXCUSED = "not met, as eval.expect_no_gain allows: "
_DETAILS = {  # gate check of version 1 -> its sentence, and the fields of version 2 that its numbers are
    "complete": (r"(\d+) of (\d+) tensors saved(?: \(such as (.+)\))?", ("value", "threshold", "example")),
    "finite": (r"(\d+) tensors hold NaN or infinity(?: \(such as (.+)\))?", ("value", "example")),
    "every tensor moved": (r"(\d+) of (\d+) tensors equal their initial value(?: \(such as (.+)\))?", ("value", "total", "example")),
    "changes the logits": (rf"by up to {_NUMBER}; reloading differs by {_NUMBER}", ("value", "reload_error")),
    "lowers the loss": (rf"{_NUMBER} against {_NUMBER} nats a token on (\d+) training rows", ("value", "threshold", "total")),
    "answers differ": (r"(\d+) of (\d+) held-out answers equal the base's", ("value", "threshold")),
    "every tensor found its place": (r"(\d+) tensors", ("total",)),
}
_ADVICE = ": state one in the recipe"


def migrate(report: dict[str, Any]) -> dict[str, Any]:
    """A report of any known version as one of the present version; others are returned as they are, for the schema to refuse."""
    if report.get("schema_version") != 1:
        return report
    provenance = {key: value for key, value in report["provenance"].items() if value is not None}
    if base := provenance.get("base"):
        provenance["base"] = {"display_name": display_name_of(base["name"], base.get("file")), **base}
    scores = {arm: record["tiers"].items() for arm, record in report["arms"].items()}
    return {
        **report,
        "schema_version": 2,
        "comparison": _without(report["comparison"], "headline"),
        "arms": {arm: {"tiers": {tier: score and _without(score, "note") for tier, score in tiers}} for arm, tiers in scores.items()},
        "adapter": {**report["adapter"], "gate": migrate_gate(report["adapter"].get("gate"))},
        "cost": _cost(report["cost"]),
        "provenance": provenance,
    }


def migrate_gate(gate: dict[str, Any] | None) -> dict[str, Any] | None:
    """A gate of version 1, whose checks have a `detail` in words, with its numbers in fields; one of version 2 as it is."""
    if gate is None:
        return None
    return {**gate, "checks": [_check(check) if "detail" in check else check for check in gate["checks"]]}


def _check(check: dict[str, Any]) -> dict[str, Any]:
    detail = check["detail"]
    pattern, fields = _DETAILS.get(check["name"], ("", ()))
    match = re.fullmatch(pattern, detail.removeprefix(_EXCUSED))
    numbers = dict(zip(fields, match.groups(), strict=True)) if match else {}
    values = {field: text if field == "example" else float(text) for field, text in numbers.items() if text is not None}
    finite = {field: value for field, value in values.items() if isinstance(value, str) or math.isfinite(value)}
    return {"name": check["name"], "passed": check["passed"], **finite, "excused": detail.startswith(_EXCUSED)}


def _without(record: dict[str, Any], unwanted: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != unwanted}


def _cost(cost: dict[str, Any]) -> dict[str, Any]:
    """Reasons without the words that views put before or after them."""
    reason, advice, _ = cost["usd_reason"].partition(_ADVICE)
    label = cost["usd_as_if_label"]
    return {
        **cost,
        "usd_reason": reason,
        "rate_unknown": bool(advice),
        "usd_as_if_label": label and label.removeprefix("as if rented as "),
        "energy_note": cost["energy_note"].removeprefix("not measured: "),
    }
