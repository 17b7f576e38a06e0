"""The report of a run: built from its directory alone, written as one JSON file, and checked whenever it is read.

    report = build_report(run_dir)
    write_report(report, run_dir / "report.json")
    report = read_report(run_dir / "report.json")    # every score is computed again from the rows inside
    verify_files(report, run_dir)                    # eval/*.jsonl are the files it was made from

The checks find accidents and partial edits: a changed score, a line lost from a file, reports mixed up between runs.
They do not stop a forger, who can write a whole consistent report. Only running the recipe again answers that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nomoat.aggregates import Aggregates, aggregate
from nomoat.errors import NomoatError
from nomoat.files import canonical_json, escape_surrogates, read_json, write_atomically
from nomoat.report_parts import (
    adapter_facts,
    checked,
    compact_rows,
    data_facts,
    file_hashes,
    harness_facts,
    learning_curve,
    neutral_text,
    optional_json,
    run_cost,
)
from nomoat.report_schema import SCHEMA_VERSION, Harness, Report
from nomoat.samples import side_by_side
from nomoat.score_schema import Arm
from nomoat.strict_yaml import parse_yaml
from nomoat.wording import failure_reason

TOLERANCE = 1e-6
NOTE = "note"  # the one field that is words about the rows; a version that words it in another way can still read the report


def build_report(run_dir: Path) -> Report:
    """Everything that can be said about a run, from the files in its directory; what is missing becomes null.

    Raises NomoatError when a file has a shape this version does not know.
    """
    recipe = parse_yaml(_text(run_dir / "recipe.yaml"), str(run_dir / "recipe.yaml"))
    environment = optional_json(run_dir / "environment.json") or {}
    rows = compact_rows(run_dir)
    adapter = adapter_facts(run_dir)
    found = aggregate(rows, primary=recipe.get("eval", {}).get("primary", "phrasing"), gate=adapter.gate)
    data, leaks = data_facts(run_dir)
    content = {
        "schema_version": SCHEMA_VERSION,
        "run": run_dir.resolve().name,
        "created": environment.get("created"),
        "status": "failed" if failure_reason(adapter.gate) else "finished",
        "recipe": recipe,
        "arms": found.arms,
        "baselines": found.baselines,
        "comparison": found.comparison,
        "neutral": neutral_text(run_dir),
        "harness": harness_facts(run_dir),
        "cost": run_cost(run_dir, environment),
        "adapter": adapter,
        "data": data,
        "leaks": leaks,
        "learning_curve": learning_curve(run_dir),
        "samples": side_by_side(run_dir),
        "provenance": environment,
        "rows": rows,
        "files": file_hashes(run_dir),
    }
    return checked(Report, content, str(run_dir))


def write_report(report: Report, path: Path) -> None:
    """Write report.json, atomically: indented, with one held-out row, sample or curve point a line."""
    write_atomically(path, escape_surrogates(_layout(report.model_dump(mode="json"))) + "\n")


def read_report(path: Path) -> Report:
    """Read a report and compute all that follows from its rows again.

    Raises NomoatError for a file that is missing, torn or of another schema, and for any number that its own rows do
    not give, naming the field and both values. A tier's note is not checked but written anew.
    """
    report = checked(Report, _json(path), str(path))
    found = aggregate(report.rows, primary=report.comparison.primary, gate=report.adapter.gate)
    for name in Aggregates.__dataclass_fields__:
        written, computed = getattr(report, name), getattr(found, name)
        _compare(_plain(written), _plain(computed), name, path)
    _compare(report.status, "failed" if failure_reason(report.adapter.gate) else "finished", "status", path)
    _compare(report.cost.seconds, sum(report.cost.seconds_by_phase.values()), "cost.seconds", path)
    return report.model_copy(update={"arms": {name: _noted(arm, found.arms[name]) for name, arm in report.arms.items()}})


def _noted(arm: Arm, found: Arm) -> Arm:
    """The arm as written, with the notes that its rows give."""
    notes = {name: tier.note for name, tier in found.tiers.items() if tier}
    tiers = {name: tier and tier.model_copy(update={NOTE: notes[name]}) for name, tier in arm.tiers.items()}
    return arm.model_copy(update={"tiers": tiers})


def verify_files(report: Report, run_dir: Path) -> None:
    """Check that `eval/*.jsonl` are the files the report was made from, byte for byte, and give its rows."""
    found = file_hashes(run_dir)
    for name in sorted(found.keys() | report.files.keys()):
        if name not in found:
            raise NomoatError(f"{run_dir / name} is missing; the report was made from it: restore it, or score the run again")
        if found[name] != report.files.get(name):
            raise NomoatError(f"{run_dir / name} is not the file the report was made from (its sha256 differs): score the run again")
    if compact_rows(run_dir) != report.rows:
        raise NomoatError(f"{run_dir / 'report.json'}: rows: they are not those of eval/*.jsonl: score the run again")
    _compare(_harness(report.harness), _harness(harness_facts(run_dir)), "harness", run_dir / "report.json")


def _harness(found: Harness | None) -> Any:
    return None if found is None else found.model_dump(mode="json")


def _text(path: Path) -> str:
    if not path.exists():
        raise NomoatError(f"{path} is missing: {path.parent} is not a run directory, or its run has not started")
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> Any:
    if not path.exists():
        raise NomoatError(f"{path} is missing: the run is not finished, or this is not a run directory")
    try:
        return read_json(path)
    except ValueError as error:
        raise NomoatError(f"{path} is not readable JSON ({error}): write it again from the run with `make eval`") from error


def _compare(written: Any, computed: Any, place: str, path: Path) -> None:
    """Raise at the first leaf where what stands in the report is not what its rows give."""
    if isinstance(written, dict) and isinstance(computed, dict):
        for key in sorted(written.keys() | computed.keys()):
            if key != NOTE:
                _compare(written.get(key), computed.get(key), f"{place}.{key}", path)
    elif isinstance(written, list) and isinstance(computed, list) and len(written) == len(computed):
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


def _plain(value: Any) -> Any:
    """Models, and dicts of models, as plain JSON values."""
    return {key: item.model_dump(mode="json") for key, item in value.items()} if isinstance(value, dict) else value.model_dump(mode="json")


def _layout(value: Any, indent: str = "") -> str:
    """JSON with dicts over several lines and each item of a list on one, so that a diff of two reports can be read."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        body = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_layout(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + canonical_json(item) for item in value) + f"\n{indent}]"
    return canonical_json(value)
