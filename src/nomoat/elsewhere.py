"""A finished run scored on other rows, in other arms, or with somebody else's adapter in place of its own; nothing is trained.

What comes out is a run directory of its own, `<run>@<what>-<hash>/`, which `make compare`, `make try` and `make eval` take like any
other. Its ledger begins with what training cost, so that a score still travels with its price.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nomoat import adapters, bases, devices, foreign, gate, harness, leaks, meters, runs
from nomoat.conversation import Conversation
from nomoat.errors import NomoatError
from nomoat.files import read_json, read_lines, sha256_file, write_atomically, write_json, write_lines
from nomoat.jobs import Job
from nomoat.ledger import Ledger
from nomoat.preparing import Loaded, load_rows, prepare
from nomoat.recipe import Recipe
from nomoat.recipe_file import load_recipe
from nomoat.rescoring import checked_report
from nomoat.rows import RowSet, load_heldout, load_user_rows
from nomoat.session import Work

MAY_CHANGE = ("eval.", "hardware.", "data.allow_leaks=")  # of the recipe: what a finished training does not depend on
PAID_FOR = ("start", "fetch", "load", "prepare", "train", "gate")  # phases of the run that the adapter itself needed
LAST_CHECK = "answers differ"  # of the gate; it belongs to the rows that were answered


@dataclass(frozen=True)
class Wanted:
    """What is to be other than in the run: held-out rows from a file, changes to the recipe's eval section, an adapter."""

    rows: Path | None = None
    adapter: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A job whose training is over: where it was done, and the adapter to score."""

    job: Job
    source: Path
    adapter: Path
    foreign: bool
    title: str


def plan(run_dir: Path, wanted: Wanted, root: Path) -> Planned:
    """Everything that can be refused is refused here, before a directory exists."""
    report = checked_report(run_dir)
    recipe = _recipe(run_dir, wanted)
    folder = foreign.fetch_adapter(wanted.adapter) if wanted.adapter else run_dir / "adapter"
    if wanted.adapter:
        recipe = recipe.model_copy(update={"lora": foreign.lora_of(folder)})
    loaded = _loaded(recipe, run_dir, wanted, root, report.provenance.get("data") or {})
    device = devices.choose_device(recipe.hardware)
    began = time.monotonic()
    files = bases.fetch_base(recipe.base)
    took = time.monotonic() - began
    job = Job(recipe, root, device, loaded, files, devices.training_precision(recipe, device), took, None, harness.load_tasks(recipe.eval))
    stated = [Path(str(name).partition("@")[0]).name.removesuffix(".jsonl") for name in (wanted.rows, wanted.adapter) if name]
    title = "-".join(runs.plain_name(name) for name in stated) or "again"
    return Planned(job, run_dir, folder, wanted.adapter is not None, title)


def _recipe(run_dir: Path, wanted: Wanted) -> Recipe:
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter: only a finished run can be scored again")
    strange = [change for change in wanted.overrides if not change.startswith(MAY_CHANGE)]
    if strange:
        raise NomoatError(f"{strange[0]}: the run is trained; what can still be changed begins with {', '.join(MAY_CHANGE)}")
    recipe = load_recipe(run_dir / "recipe.yaml", wanted.overrides, folder=Path())
    if wanted.rows is None:
        return recipe
    own = recipe.eval.model_copy(update={"primary": "phrasing", "tiers": ("phrasing",)})  # the tier of a user's held-out rows
    return recipe.model_copy(update={"eval": own})


def _loaded(recipe: Recipe, run_dir: Path, wanted: Wanted, root: Path, trained_on: dict[str, Any]) -> Loaded:
    """The run's training rows beside the rows to answer; NomoatError where they are not the run's any more, or where rows leaked."""
    loaded = load_rows(recipe, root)
    if loaded.rows.train_sha256 != trained_on.get("train_sha256"):
        raise NomoatError(
            f"{recipe.data.source} no longer holds the rows that {run_dir.name} was trained on: restore them, they tell what leaked"
        )
    if wanted.rows is None:
        return replace(loaded, rows=replace(loaded.rows, heldout=load_heldout(run_dir / "heldout.jsonl")))
    heldout = tuple(replace(row, tier="phrasing") for row in load_user_rows(wanted.rows, recipe.data))
    rows: RowSet = replace(loaded.rows, heldout=heldout, name=f"{loaded.rows.name}, answered: {wanted.rows.name}")
    found = leaks.audit(rows.train, rows.validation, heldout, user_data=True)
    if not found.clean and recipe.data.allow_leaks is None:
        raise NomoatError(
            f"{wanted.rows} has rows that {run_dir.name} was trained on {leaks.told(found)}\n"
            "Remove them, or state why it is acceptable: SET='data.allow_leaks=\"reason\"'"
        )
    return Loaded(rows, loaded.examples, found)


def score(planned: Planned, runs_dir: Path, console: Console) -> tuple[gate.Gate, Path]:
    """Answer the rows in every arm and write the report; returns the checks of the adapter, and the page."""
    job = planned.job
    environment = {**job.environment(), "scored_from": _origin(planned)}
    identity = {
        "adapter": sha256_file(adapters.weights_of(planned.adapter)),
        "eval": job.recipe.eval.model_dump(mode="json"),
        "heldout": job.rows.heldout_sha256,
        "base": job.files.name,
        "source": planned.source.name,
    }
    with runs.open_run(runs_dir, f"{planned.source.name}@{planned.title}", identity=identity, environment=environment) as run:
        if run.note:
            console.print(run.note, highlight=False)
        _take_over(planned, run.path)
        ledger = Ledger(run.path / "ledger.jsonl", hardware=meters.hardware(environment["device"]), run_id=run.run_id)
        work = Work(job, run, ledger, console)
        work.conversation = Conversation(bases.load_tokenizer(job.files))
        run.record(rendering_sha256=work.conversation.fingerprint)
        with ledger.segment("prepare"):
            work.prepared = prepare(job.recipe, job.loaded, work.conversation)
            packing = read_json(planned.source / "rows.json").get("packing")
            write_json(run.path / "rows.json", {**work.prepared.record, "packing": packing})
        found = work.score_arms(_gate(planned, run.path, ledger))
        return found, work.write_report()


def _origin(planned: Planned) -> dict[str, Any]:
    """Where the adapter comes from: the run, or whoever published it."""
    then = read_json(planned.source / "environment.json")
    kept = {key: then.get(key) for key in ("created", "commit", "dirty", "adapter_initial_sha256", "learning_rate")}
    trained: dict[str, Any] = {"run": planned.source.name} if planned.foreign else {"run": planned.source.name, **kept}
    return {**trained, "adapter_sha256": sha256_file(adapters.weights_of(planned.adapter)), "foreign": planned.foreign}


def _take_over(planned: Planned, target: Path) -> None:
    """The files of a run whose training is done, in a new directory; a foreign adapter brings only itself."""
    job = planned.job
    write_atomically(target / "recipe.yaml", yaml.safe_dump(job.recipe.as_dict(), sort_keys=False, allow_unicode=True))
    write_lines(target / "heldout.jsonl", [row.record() for row in job.rows.heldout])
    if planned.foreign:
        foreign.copy_adapter(planned.adapter, target / "adapter", job.files)
        return
    shutil.copytree(planned.adapter, target / "adapter", dirs_exist_ok=True)
    for name in ("metrics.jsonl", "adapter.json"):
        with suppress(FileNotFoundError):
            shutil.copyfile(planned.source / name, target / name)
    if not (target / "ledger.jsonl").exists():
        paid = [line for line in read_lines(planned.source / "ledger.jsonl") if line["phase"] in PAID_FOR]
        write_lines(target / "ledger.jsonl", paid)


def _gate(planned: Planned, target: Path, ledger: Ledger) -> gate.Gate:
    """The run's own checks, or for a foreign adapter that all of it was loaded."""
    if not planned.foreign:
        known: Sequence[dict[str, Any]] = read_json(planned.source / "gate.json")["checks"]
        return gate.Gate(tuple(gate.Check(**check) for check in known if check["name"] != LAST_CHECK))
    job = planned.job
    with ledger.segment("gate"):
        base = bases.load_model(job.files, precision=job.precision, device=job.device.kind)
        try:
            adapted = adapters.load_adapter(base, target / "adapter")
        except (RuntimeError, ValueError) as error:
            raise NomoatError(f"the adapter does not fit this base: {str(error).strip().splitlines()[0][:200]}") from error
        check = foreign.check_places(adapted, target / "adapter")
        write_json(target / "adapter.json", foreign.foreign_facts(target / "adapter", adapted, job.recipe.lora, job.files))
    return gate.Gate((check,))
