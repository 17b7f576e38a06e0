"""A finished run's adapter, answered again from disk: does its report still hold on this machine?

Nothing of the run is changed. The report is first checked against its own rows and files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nomoat import adapters, bases, devices, evaluation, provenance
from nomoat.conversation import Conversation
from nomoat.errors import NomoatError
from nomoat.files import read_json, read_lines
from nomoat.packed_linear import pack_linears
from nomoat.progress import Bar
from nomoat.report import read_report, verify_files
from nomoat.report_schema import Report
from nomoat.rows import load_heldout
from nomoat.trying import run_recipe


@dataclass(frozen=True)
class Again:
    """How many of a run's adapter answers came out the same, and what differs between then and now."""

    rows: int
    same_answers: int
    same_scores: int
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Every score is the same; on another machine, answers that differ are expected and only counted."""
        return self.same_scores == self.rows or bool(self.differences)


def checked_report(run_dir: Path) -> Report:
    """The run's report, its numbers recomputed from its rows and its files compared by checksum."""
    report = read_report(run_dir / "report.json")
    verify_files(report, run_dir)
    return report


def score_again(run_dir: Path, console: Console) -> Again:
    """Load base and adapter from disk, answer the run's held-out rows, and compare with what the run wrote."""
    recipe = run_recipe(run_dir)
    then = read_json(run_dir / "environment.json")
    device = devices.choose_device(recipe.hardware)
    files = bases.fetch_base(recipe.base)
    if files.name != then["base"]["name"] or files.identity.get("sha256") != then["base"].get("sha256"):
        raise NomoatError(
            f"{run_dir}: the base is not the one the run was made with ({files.name}); its adapter belongs to {then['base']['name']}"
        )
    base = bases.load_model(files, precision=then["scoring_dtype"], device=device.kind)
    rows = evaluation.choose_heldout(load_heldout(run_dir / "heldout.jsonl"), recipe.eval)
    arm, conversation = evaluation.Arm("adapter", rows, {}, True), Conversation(bases.load_tokenizer(files))
    evaluation.settle_answers(base, arm, conversation)
    model = pack_linears(adapters.load_adapter(base, run_dir / "adapter"))
    with Bar("scoring adapter", len(rows), console) as bar:
        now = evaluation.score_arm(arm, model, conversation, recipe.eval, on_rows=bar.advance)
    return _compare(list(read_lines(run_dir / "eval" / "adapter.jsonl")), now, _differences(then, device))


def _compare(then: list[dict[str, Any]], now: list[dict[str, Any]], differences: tuple[str, ...]) -> Again:
    pairs = list(zip(then, now, strict=True))
    answers = sum(old["output"] == new["output"] for old, new in pairs)
    scores = sum(old["score"] == new["score"] for old, new in pairs)
    return Again(len(pairs), answers, scores, differences)


def _differences(then: dict[str, Any], device: devices.Device) -> tuple[str, ...]:
    """What may change an answer's last digits."""
    now = {"device": device.name, "threads": device.threads, **provenance.versions()}
    before = {"device": then["device"]["name"], "threads": then["threads"], **then["packages"]}
    return tuple(f"{key}: {before.get(key)} then, {value} now" for key, value in now.items() if before.get(key) != value)
