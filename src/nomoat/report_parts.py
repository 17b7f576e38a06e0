"""One function for each file of a run directory: what the report takes from it.

Every file may be missing, since a run that failed early still gets a report; a file that is there must have the known shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nomoat import prices, spending
from nomoat.benchmarks import benchmarks
from nomoat.errors import NomoatError
from nomoat.files import read_json, read_lines, sha256_file
from nomoat.report_schema import AdapterFacts, Cost, DataFacts, Gate, Harness, Leaks, LearningCurve, Neutral
from nomoat.score_schema import ARMS, ASKED_ARMS, CompactRow

MAX_CURVE_POINTS = 400
_DIGITS = 6  # of bits per byte in the compact rows
Found = TypeVar("Found", bound=BaseModel)


def optional_json(path: Path) -> Any:
    """The JSON value of a file of the run, or None where the run did not get that far."""
    return read_json(path) if path.exists() else None


def checked(model: type[Found], value: Any, where: str) -> Found:
    """`value` as `model`; a wrong shape is a NomoatError that names the file and the field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        seen = f"{first['msg']}; saw {repr(first['input'])[:60]}"
        raise NomoatError(f"{where}: {place}: {seen}; it was edited, or written by another version of nomoat") from error


def compact_rows(run_dir: Path) -> list[CompactRow]:
    """One record a held-out row, in the order of the base arm's file, with what every arm and baseline got on it."""
    rows: dict[str, CompactRow] = {}
    for arm in (*ARMS, *ASKED_ARMS):
        for line in read_lines(run_dir / "eval" / f"{arm}.jsonl"):
            _values_of(rows, line).update(_measured(line, arm))
    for line in read_lines(run_dir / "eval" / "baselines.jsonl"):
        found = {name: float(line[name]) for name in ("majority", "nearest_row") if line[name] is not None}
        _values_of(rows, line).update(found)
    return list(rows.values())


def _values_of(rows: dict[str, CompactRow], line: dict[str, Any]) -> dict[str, float | None]:
    place = (line["id"], line["tier"], line["family"], line["group"])
    row = rows.setdefault(line["id"], (*place, {}))
    if row[:4] != place:
        raise NomoatError(f"eval: row {line['id']!r} has tier, family and group {row[1:4]} in one file and {place[1:]} in another")
    return row[4]


def _measured(line: dict[str, Any], arm: str) -> Iterator[tuple[str, float | None]]:
    yield arm, None if line["score"] is None else float(line["score"])
    if line["lenient"] is not None:
        yield f"lenient_{arm}", float(line["lenient"])
    if not line["stopped"]:
        yield f"unstopped_{arm}", 1.0
    if line["bits_per_byte"] is not None:
        yield f"bits_{arm}", round(float(line["bits_per_byte"]), _DIGITS)
        yield "bytes", float(line["target_bytes"])


def file_hashes(run_dir: Path) -> dict[str, str]:
    """sha256 of each `eval/*.jsonl`, by its path inside the run directory."""
    return {f"eval/{path.name}": sha256_file(path) for path in sorted((run_dir / "eval").glob("*.jsonl"))}


def neutral_text(run_dir: Path) -> Neutral | None:
    """Bits per byte of the fixed neutral text, by arm."""
    path = run_dir / "eval" / "neutral.json"
    return checked(Neutral, read_json(path), str(path)) if path.exists() else None


def harness_facts(run_dir: Path) -> Harness | None:
    """Standard benchmarks, every figure computed from eval/harness.jsonl."""
    path = run_dir / "eval" / "harness.json"
    if not path.exists():
        return None
    known = read_json(path)
    scores = benchmarks(list(read_lines(run_dir / "eval" / "harness.jsonl")), known["tasks"])
    return checked(Harness, {**known, "scores": scores}, str(path))


def adapter_facts(run_dir: Path) -> AdapterFacts:
    """Sizes from adapter.json and the checks from gate.json."""
    gate = optional_json(run_dir / "gate.json")
    facts = optional_json(run_dir / "adapter.json") or {}
    found = checked(Gate, gate, str(run_dir / "gate.json")) if gate is not None else None
    return checked(AdapterFacts, {**facts, "gate": found}, str(run_dir / "adapter.json"))


def data_facts(run_dir: Path) -> tuple[DataFacts, Leaks | None]:
    """Row counts, dropped rows, packing and leaks from rows.json."""
    path = run_dir / "rows.json"
    found = dict(optional_json(path) or {})
    leaks = found.pop("leaks", None)
    return checked(DataFacts, found, str(path)), checked(Leaks, leaks, f"{path}: leaks") if leaks is not None else None


def learning_curve(run_dir: Path) -> LearningCurve:
    """Losses by step; a step that was repeated after a resume counts once, as it was done last."""
    training: dict[float, float] = {}
    validation: dict[float, tuple[float, float | None, float | None]] = {}
    for line in read_lines(run_dir / "metrics.jsonl"):
        step = float(line["step"])
        if line.get("loss") is not None:
            training[step] = float(line["loss"])
        if line.get("validation_loss") is not None:
            validation[step] = (step, line["validation_loss"], line.get("validation_bits_per_byte"))
    return LearningCurve(training=_thinned(sorted(training.items())), validation=[validation[step] for step in sorted(validation)])


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS points, each the mean of as many neighbours: taking every k-th would keep its noise."""
    width = -(-len(points) // MAX_CURVE_POINTS) or 1
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [(sum(step for step, _ in part) / len(part), round(sum(loss for _, loss in part) / len(part), 6)) for part in parts]


def run_cost(run_dir: Path, environment: dict[str, Any]) -> Cost:
    """Sums over the whole ledger, priced at the rate that the run recorded."""
    spent = spending.totals(read_lines(run_dir / "ledger.jsonl"))
    try:
        rate, as_if = prices.read_rate(environment.get("rate")), prices.read_as_if(environment.get("as_if_rented"))
    except ValidationError as error:
        raise NomoatError(f"{run_dir / 'environment.json'}: rate: not one this version of nomoat knows ({error})") from error
    # energy stands in both, and the priced one may hold an estimate from stated watts
    known = {**vars(spent), **vars(spending.cost(spent, rate, as_if)), "peak_memory_bytes": spent.peak_resident_bytes}
    return Cost.model_validate({name: value for name, value in known.items() if name in Cost.model_fields})
