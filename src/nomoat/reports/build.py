"""The report of a run: built from its directory alone, written as one JSON file, and checked whenever it is read.

    report = build_report(run_dir)
    write_report(report, run_dir / "report.json")
    report = read_report(run_dir / "report.json")    # every score is computed again from the rows inside
    verify_files(report, run_dir)                    # eval/*.jsonl are the files it was made from

The checks find accidents and partial edits: a changed score, a line lost from a file, reports mixed up between runs. They do not stop a
forger, who can write a whole consistent report; only running the recipe again does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from nomoat.config.load import parse_yaml
from nomoat.config.schema import Recipe
from nomoat.errors import NomoatError
from nomoat.io import SURROGATE, Model, canonical_json, escape_surrogates, read_json, read_jsonl, sha256_file, validated, write_atomically
from nomoat.reports.format import shortened
from nomoat.reports.metrics import Aggregates, aggregate, benchmark_scores
from nomoat.reports.migrate import migrate, migrate_gate
from nomoat.reports.schema import (
    ARMS,
    OPTIONAL_ARMS,
    AdapterFacts,
    CompactRow,
    DataFacts,
    Gate,
    Harness,
    Leaks,
    LossCurve,
    Neutral,
    Report,
    Sample,
)
from nomoat.runs.costs import Cost, total_cost
from nomoat.runs.provenance import Provenance, read_provenance

TOLERANCE = 1e-6  # relative and absolute, of a number computed again
MAX_CURVE_POINTS = 400
BITS_DIGITS = 6  # of bits per byte in the compact rows
SAMPLES_OF_A_KIND = 5
MAX_SAMPLE_CHARACTERS = 2000


def build_report(run_dir: Path) -> Report:
    """The report of a run, from the files in its directory; what is missing becomes null.

    Raises NomoatError when a file has a shape this version does not know.
    """
    recipe_file = run_dir / "recipe.yaml"
    if not recipe_file.exists():
        raise NomoatError(f"{recipe_file} is missing: {run_dir} is not a run directory, or its run has not started")
    stated = validated(Recipe, parse_yaml(recipe_file.read_text(encoding="utf-8"), str(recipe_file)), str(recipe_file))
    recipe = Recipe.model_validate(stated.as_dict())  # local paths in their portable form, as reading the report gives them
    provenance = read_provenance(run_dir)
    rows = compact_rows(run_dir)
    computed = aggregate(rows, primary=recipe.eval.primary)
    adapter = _optional(AdapterFacts, run_dir / "adapter.json") or AdapterFacts()
    gate = read_gate(run_dir)
    data, leaks = read_data_facts(run_dir)
    return Report(
        schema_version=2,
        run=run_dir.resolve().name,
        created=provenance.created,
        status=_status(gate),
        recipe=recipe,
        **vars(computed),  # arms, baselines and comparison
        neutral=_optional(Neutral, run_dir / "eval" / "neutral.json"),
        harness=read_harness(run_dir),
        cost=run_cost(run_dir, provenance),
        adapter=adapter.model_copy(update={"gate": gate}),
        data=data,
        leaks=leaks,
        learning_curve=read_curves(run_dir),
        samples=choose_samples(run_dir),
        provenance=provenance,
        rows=rows,
        files=file_hashes(run_dir),
    )


def write_report(report: Report, path: Path) -> None:
    """Write report.json, atomically: indented, with one held-out row, sample or curve point per line."""
    write_atomically(path, escape_surrogates(_layout(report.model_dump(mode="json"))) + "\n")


def read_report(path: Path) -> Report:
    """Read a report of any known schema version and compute everything that follows from its rows again.

    Raises NomoatError for a file that is missing, torn or of an unknown version, and for any number that its own rows do not give, naming
    the field and both values.
    """
    if not path.exists():
        raise NomoatError(f"{path} is missing: the run is not finished, or this is not a run directory")
    try:
        content = read_json(path)
    except ValueError as error:
        raise NomoatError(f"{path} is not readable JSON ({error}): write it again from the run with `make eval`") from error
    report = validated(Report, migrate(content) if isinstance(content, dict) else content, str(path))
    computed = aggregate(report.rows, primary=report.comparison.primary)
    for field in fields(Aggregates):
        _compare(getattr(report, field.name), getattr(computed, field.name), field.name, path)
    _compare(report.status, _status(report.adapter.gate), "status", path)
    _compare(report.cost.seconds, sum(report.cost.seconds_by_phase.values()), "cost.seconds", path)
    return report


def checked_report(run_dir: Path) -> Report:
    """The run's report, its numbers computed again from its rows and its files compared by checksum."""
    report = read_report(run_dir / "report.json")
    verify_files(report, run_dir)
    return report


def verify_files(report: Report, run_dir: Path) -> None:
    """Check that `eval/*.jsonl` are the files the report was made from, byte for byte, and give its rows."""
    hashes = file_hashes(run_dir)
    for name in sorted(hashes.keys() | report.files.keys()):
        if name not in hashes:
            raise NomoatError(f"{run_dir / name} is missing; the report was made from it: restore it, or score the run again")
        if hashes[name] != report.files.get(name):
            raise NomoatError(f"{run_dir / name} is not the file the report was made from (its sha256 differs): score the run again")
    if compact_rows(run_dir) != report.rows:
        raise NomoatError(f"{run_dir / 'report.json'}: rows: they are not those of eval/*.jsonl: score the run again")
    _compare(report.harness, read_harness(run_dir), "harness", run_dir / "report.json")


def _status(gate: Gate | None) -> Literal["finished", "failed"]:
    return "finished" if gate is not None and gate.passed else "failed"


def _compare(written: Any, computed: Any, place: str, path: Path) -> None:
    """Raise NomoatError at the first number or name where the report differs from what its rows give."""
    written, computed = (dict(value) if isinstance(value, BaseModel) else value for value in (written, computed))
    if isinstance(written, dict) and isinstance(computed, dict):
        for key in sorted(written.keys() | computed.keys()):
            _compare(written.get(key), computed.get(key), f"{place}.{key}", path)
    elif isinstance(written, list | tuple) and isinstance(computed, list | tuple) and len(written) == len(computed):
        for index, (left, right) in enumerate(zip(written, computed, strict=True)):
            _compare(left, right, f"{place}[{index}]", path)
    elif not _same(written, computed):
        raise NomoatError(
            f"{path}: {place}: the report says {written!r}, its rows give {computed!r}: "
            "it was edited, or made by another version; build it again from the run directory"
        )


def _same(written: Any, computed: Any) -> bool:
    if isinstance(written, float) and isinstance(computed, int | float):
        return math.isclose(written, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(written == computed)


def _layout(value: Any, indent: str = "") -> str:
    """JSON with dicts over several lines and each item of a list on one, so that a diff of two reports can be read."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        body = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_layout(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + canonical_json(item) for item in value) + f"\n{indent}]"
    return canonical_json(value)


def _optional(model: type[Model], path: Path) -> Model | None:
    return validated(model, read_json(path), str(path)) if path.exists() else None  # a run that failed early gets a report too


def compact_rows(run_dir: Path) -> list[CompactRow]:
    """One record per held-out row, in the order of the base arm's file, with the scores of every arm and baseline."""
    rows: dict[str, CompactRow] = {}

    def values_of(line: dict[str, Any]) -> dict[str, float | None]:
        row = CompactRow(line["id"], line["tier"], line["family"], line["group"], {})
        first = rows.setdefault(row.id, row)
        if first[:4] != row[:4]:
            raise NomoatError(f"eval: row {row.id!r} has tier, family and group {first[1:4]} in one file and {row[1:4]} in another")
        return first.values

    for arm in (*ARMS, *OPTIONAL_ARMS):
        for line in read_jsonl(run_dir / "eval" / f"{arm}.jsonl"):
            values_of(line).update(_arm_values(line, arm))
    for line in read_jsonl(run_dir / "eval" / "baselines.jsonl"):
        values_of(line).update({name: float(line[name]) for name in ("majority", "nearest_row") if line[name] is not None})
    return list(rows.values())


def _arm_values(line: dict[str, Any], arm: str) -> Iterator[tuple[str, float | None]]:
    yield arm, None if line["score"] is None else float(line["score"])
    if line["lenient"] is not None:
        yield f"lenient_{arm}", float(line["lenient"])
    if not line["stopped"]:
        yield f"unstopped_{arm}", 1.0
    if line["bits_per_byte"] is not None:
        yield f"bits_{arm}", round(float(line["bits_per_byte"]), BITS_DIGITS)
        yield "bytes", float(line["target_bytes"])


def file_hashes(run_dir: Path) -> dict[str, str]:
    """sha256 of each `eval/*.jsonl`, by its path inside the run directory."""
    return {f"eval/{path.name}": sha256_file(path) for path in sorted((run_dir / "eval").glob("*.jsonl"))}


def read_harness(run_dir: Path) -> Harness | None:
    """Standard benchmarks: how they were run, from eval/harness.json, and every score, computed from eval/harness.jsonl."""
    path = run_dir / "eval" / "harness.json"
    if not path.exists():
        return None
    settings = read_json(path)
    scores = benchmark_scores(list(read_jsonl(run_dir / "eval" / "harness.jsonl")), settings["tasks"])
    return validated(Harness, {**settings, "scores": scores}, str(path))


def read_gate(run_dir: Path) -> Gate | None:
    """The checks in gate.json, of any version."""
    path = run_dir / "gate.json"
    return validated(Gate, migrate_gate(read_json(path)), str(path)) if path.exists() else None


def read_data_facts(run_dir: Path) -> tuple[DataFacts, Leaks | None]:
    """Row counts, dropped rows, packing and leaks from rows.json."""
    path = run_dir / "rows.json"
    content = read_json(path) if path.exists() else {}
    leaks = content.pop("leaks", None)
    return validated(DataFacts, content, str(path)), validated(Leaks, leaks, f"{path}: leaks") if leaks is not None else None


def read_curves(run_dir: Path) -> LossCurve:
    """Losses by step; of a step that was repeated after a resume only the last loss counts."""
    training: dict[float, float] = {}
    validation: dict[float, tuple[float, float | None, float | None]] = {}
    for line in read_jsonl(run_dir / "metrics.jsonl"):
        step = float(line["step"])
        if line.get("loss") is not None:
            training[step] = float(line["loss"])
        if line.get("validation_loss") is not None:
            validation[step] = (step, line["validation_loss"], line.get("validation_bits_per_byte"))
    return LossCurve(training=_thinned(sorted(training.items())), validation=[validation[step] for step in sorted(validation)])


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS points, each the mean of equally many neighbours: every k-th point alone would be noisy."""
    width = math.ceil(len(points) / MAX_CURVE_POINTS) or 1
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [(sum(step for step, _ in part) / len(part), round(sum(loss for _, loss in part) / len(part), 6)) for part in parts]


def run_cost(run_dir: Path, provenance: Provenance) -> Cost:
    """Sums over the whole ledger, priced at the rate that the run recorded."""
    return total_cost(read_jsonl(run_dir / "ledger.jsonl"), provenance.rate, provenance.as_if_rented)


def choose_samples(run_dir: Path) -> list[Sample]:
    """Twenty rows to look at: up to five of each kind (won, lost, both wrong, both right), and more of one where another has fewer.

    The choice depends only on the hash of row ids and alternates between tiers and families, so that no one picks the flattering ones.
    """
    lines = {arm: {line["id"]: line for line in read_jsonl(run_dir / "eval" / f"{arm}.jsonl")} for arm in ARMS}
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("won", "lost", "both_wrong", "both_right")}
    for row_id, adapter in lines["adapter"].items():
        base = lines["base"].get(row_id)
        if base and base["score"] is not None and adapter["score"] is not None:
            kinds[_kind(base["score"], adapter["score"])].append(adapter)
    mixed = {kind: _round_robin(rows) for kind, rows in kinds.items()}
    chosen = {kind: ids[:SAMPLES_OF_A_KIND] for kind, ids in mixed.items()}
    for kind, ids in mixed.items():
        missing = SAMPLES_OF_A_KIND * len(kinds) - sum(map(len, chosen.values()))
        chosen[kind] = ids[: SAMPLES_OF_A_KIND + max(missing, 0)]
    return [
        _sample(kind, {arm: rows[row_id] for arm, rows in lines.items() if row_id in rows}) for kind in chosen for row_id in chosen[kind]
    ]


def _kind(base: float, adapter: float) -> str:
    if adapter != base:
        return "won" if adapter > base else "lost"
    return "both_right" if adapter >= 0.5 else "both_wrong"


def _round_robin(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Row ids in an order that visits every (tier, family) once before any of them twice, by hash otherwise."""
    visits: Counter[tuple[str, str]] = Counter()
    ranked = []
    for line in sorted(lines, key=lambda line: hashlib.sha256(line["id"].encode("utf-8", "surrogatepass")).digest()):
        visits[line["tier"], line["family"]] += 1
        ranked.append((visits[line["tier"], line["family"]], line["id"]))
    return [row_id for _, row_id in sorted(ranked, key=lambda pair: pair[0])]


def _sample(kind: str, lines: dict[str, dict[str, Any]]) -> Sample:
    line = lines["adapter"]
    return Sample.model_validate(
        {
            "kind": kind,
            **{key: line[key] for key in ("id", "tier", "family")},
            **{key: sample_text(line[key]) for key in ("prompt", "target")},
            "outputs": {arm: sample_text(answer["output"]) for arm, answer in lines.items()},
            "scores": {arm: answer["score"] for arm, answer in lines.items()},
        }
    )


def sample_text(text: str) -> str:
    """At most MAX_SAMPLE_CHARACTERS of a text, lone surrogates as U+FFFD."""
    return SURROGATE.sub("\ufffd", shortened(text, MAX_SAMPLE_CHARACTERS))
