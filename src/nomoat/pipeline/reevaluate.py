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

from nomoat.config.load import run_recipe
from nomoat.config.schema import Recipe
from nomoat.console import ProgressBar
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.contamination import audit, describe_leaks
from nomoat.data.examples import Splits, load_heldout, load_user_examples
from nomoat.data.prepare import RawData, load_raw_data, tokenize_data
from nomoat.data.split import choose_heldout
from nomoat.errors import NomoatError
from nomoat.evaluation.arms import Arm, enable_packed_prefill, score_arm
from nomoat.evaluation.lm_eval import load_tasks
from nomoat.io import read_json, read_jsonl, sha256_file, write_atomically, write_json, write_jsonl
from nomoat.kernels.linear import prepack_linears
from nomoat.models.adapter import check_tensor_shapes, load_adapter, weights_of
from nomoat.models.base import fetch_base, load_model, load_tokenizer
from nomoat.models.device import Device, choose_device, training_precision
from nomoat.models.external_adapter import copy_adapter, external_adapter_facts, fetch_adapter, lora_settings
from nomoat.pipeline.finetune import FineTuneRun
from nomoat.pipeline.run_spec import RunSpec
from nomoat.reports.build import checked_report
from nomoat.runs import meters, provenance
from nomoat.runs.directory import open_run, plain_name
from nomoat.runs.ledger import Ledger
from nomoat.training.adapter_checks import Check, Gate

# MERGED rescoring:
# A finished run's adapter, answered again from disk: does its report still hold on this machine?
#
# Nothing of the run is changed. The report is first checked against its own rows and files.


@dataclass(frozen=True)
class ReplayResult:
    """How many of a run's adapter answers came out the same, and what differs between then and now."""

    rows: int
    same_answers: int
    same_scores: int
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Every score is the same; on another machine, answers that differ are expected and only counted."""
        return self.same_scores == self.rows or bool(self.differences)


def replay(run_dir: Path, console: Console) -> ReplayResult:
    """Load base and adapter from disk, answer the run's held-out rows, and compare with what the run wrote."""
    recipe = run_recipe(run_dir)
    then = read_json(run_dir / "environment.json")
    device = choose_device(recipe.hardware)
    files = fetch_base(recipe.base)
    if files.name != then["base"]["name"] or files.identity.get("sha256") != then["base"].get("sha256"):
        raise NomoatError(
            f"{run_dir}: the base is not the one the run was made with ({files.name}); its adapter belongs to {then['base']['name']}"
        )
    base = load_model(files, precision=then["scoring_dtype"], device=device.kind)
    rows = choose_heldout(load_heldout(run_dir / "heldout.jsonl"), recipe.eval)
    arm, conversation = Arm("adapter", rows, {}, True), ChatTemplate(load_tokenizer(files))
    enable_packed_prefill(base, arm, conversation)
    model = prepack_linears(load_adapter(base, run_dir / "adapter"))
    with ProgressBar("scoring adapter", len(rows), console) as bar:
        now = score_arm(arm, model, conversation, recipe.eval, on_rows=bar.advance)
    return _compare_answers(list(read_jsonl(run_dir / "eval" / "adapter.jsonl")), now, _differences(then, device))


def _compare_answers(then: list[dict[str, Any]], now: list[dict[str, Any]], differences: tuple[str, ...]) -> ReplayResult:
    pairs = list(zip(then, now, strict=True))
    answers = sum(old["output"] == new["output"] for old, new in pairs)
    scores = sum(old["score"] == new["score"] for old, new in pairs)
    return ReplayResult(len(pairs), answers, scores, differences)


def _differences(then: dict[str, Any], device: Device) -> tuple[str, ...]:
    """What may change an answer's last digits."""
    now = {"device": device.name, "threads": device.threads, **provenance.versions()}
    before = {"device": then["device"]["name"], "threads": then["threads"], **then["packages"]}
    return tuple(f"{key}: {before.get(key)} then, {value} now" for key, value in now.items() if before.get(key) != value)


MAY_CHANGE = ("eval.", "hardware.", "data.allow_leaks=")  # of the recipe: what a finished training does not depend on
PAID_FOR = ("start", "fetch", "load", "prepare", "train", "gate")  # phases of the run that the adapter itself needed
LAST_CHECK = "answers differ"  # of the gate; it belongs to the rows that were answered


@dataclass(frozen=True)
class ReevalRequest:
    """What is to be other than in the run: held-out rows from a file, changes to the recipe's eval section, an adapter."""

    rows: Path | None = None
    adapter: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReevalSpec:
    """A job whose training is over: where it was done, and the adapter to score."""

    job: RunSpec
    source: Path
    adapter: Path
    foreign: bool
    title: str


def plan_reeval(run_dir: Path, wanted: ReevalRequest, root: Path) -> ReevalSpec:
    """Everything that can be refused is refused here, before a directory exists."""
    report = checked_report(run_dir)
    recipe = _changed_recipe(run_dir, wanted)
    folder = fetch_adapter(wanted.adapter) if wanted.adapter else run_dir / "adapter"
    if wanted.adapter:
        recipe = recipe.model_copy(update={"lora": lora_settings(folder)})
    loaded = _load_heldout(recipe, run_dir, wanted, root, report.provenance.get("data") or {})
    device = choose_device(recipe.hardware)
    began = time.monotonic()
    files = fetch_base(recipe.base)
    took = time.monotonic() - began
    job = RunSpec(recipe, root, device, loaded, files, training_precision(recipe, device), took, None, load_tasks(recipe.eval))
    stated = [Path(str(name).partition("@")[0]).name.removesuffix(".jsonl") for name in (wanted.rows, wanted.adapter) if name]
    title = "-".join(plain_name(name) for name in stated) or "again"
    return ReevalSpec(job, run_dir, folder, wanted.adapter is not None, title)


def _changed_recipe(run_dir: Path, wanted: ReevalRequest) -> Recipe:
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter: only a finished run can be scored again")
    strange = [change for change in wanted.overrides if not change.startswith(MAY_CHANGE)]
    if strange:
        raise NomoatError(f"{strange[0]}: the run is trained; what can still be changed begins with {', '.join(MAY_CHANGE)}")
    recipe = run_recipe(run_dir, wanted.overrides)
    if wanted.rows is None:
        return recipe
    own = recipe.eval.model_copy(update={"primary": "phrasing", "tiers": ("phrasing",)})  # the tier of a user's held-out rows
    return recipe.model_copy(update={"eval": own})


def _load_heldout(recipe: Recipe, run_dir: Path, wanted: ReevalRequest, root: Path, trained_on: dict[str, Any]) -> RawData:
    """The run's training rows beside the rows to answer; NomoatError where they are not the run's any more, or where rows leaked."""
    loaded = load_raw_data(recipe, root)
    if loaded.rows.train_sha256 != trained_on.get("train_sha256"):
        raise NomoatError(
            f"{recipe.data.source} no longer holds the rows that {run_dir.name} was trained on: restore them, they tell what leaked"
        )
    if wanted.rows is None:
        return replace(loaded, rows=replace(loaded.rows, heldout=load_heldout(run_dir / "heldout.jsonl")))
    heldout = tuple(replace(row, tier="phrasing") for row in load_user_examples(wanted.rows, recipe.data))
    rows: Splits = replace(loaded.rows, heldout=heldout, name=f"{loaded.rows.name}, answered: {wanted.rows.name}")
    found = audit(rows.train, rows.validation, heldout, user_data=True)
    if not found.clean and recipe.data.allow_leaks is None:
        raise NomoatError(
            f"{wanted.rows} has rows that {run_dir.name} was trained on {describe_leaks(found)}\n"
            "Remove them, or state why it is acceptable: SET='data.allow_leaks=\"reason\"'"
        )
    return RawData(rows, loaded.examples, found)


def reevaluate(planned: ReevalSpec, runs_dir: Path, console: Console) -> tuple[Gate, Path]:
    """Answer the rows in every arm and write the report; returns the checks of the adapter, and the page."""
    job = planned.job
    environment = {**job.environment(), "scored_from": _origin(planned)}
    identity = {
        "adapter": sha256_file(weights_of(planned.adapter)),
        "eval": job.recipe.as_dict()["eval"],
        "heldout": job.rows.heldout_sha256,
        "base": job.files.name,
        "source": planned.source.name,
    }
    with open_run(runs_dir, f"{planned.source.name}@{planned.title}", identity=identity, environment=environment) as run:
        if run.note:
            console.print(run.note, highlight=False)
        _copy_training_files(planned, run.path)
        ledger = Ledger(run.path / "ledger.jsonl", hardware=meters.hardware(environment["device"]), run_id=run.run_id)
        work = FineTuneRun(job, run, ledger, console)
        work.conversation = ChatTemplate(load_tokenizer(job.files))
        run.record(rendering_sha256=work.conversation.fingerprint)
        with ledger.segment("prepare"):
            work.prepared = tokenize_data(job.recipe, job.loaded, work.conversation)
            packing = read_json(planned.source / "rows.json").get("packing")
            write_json(run.path / "rows.json", {**work.prepared.record, "packing": packing})
        found = work.score_arms(_known_checks(planned, run.path, ledger))
        return found, work.write_report()


def _origin(planned: ReevalSpec) -> dict[str, Any]:
    """Where the adapter comes from: the run, or whoever published it."""
    then = read_json(planned.source / "environment.json")
    kept = {key: then.get(key) for key in ("created", "commit", "dirty", "adapter_initial_sha256", "learning_rate")}
    trained: dict[str, Any] = {"run": planned.source.name} if planned.foreign else {"run": planned.source.name, **kept}
    return {**trained, "adapter_sha256": sha256_file(weights_of(planned.adapter)), "foreign": planned.foreign}


def _copy_training_files(planned: ReevalSpec, target: Path) -> None:
    """The files of a run whose training is done, in a new directory; a foreign adapter brings only itself."""
    job = planned.job
    write_atomically(target / "recipe.yaml", yaml.safe_dump(job.recipe.as_dict(), sort_keys=False, allow_unicode=True))
    write_jsonl(target / "heldout.jsonl", [row.record() for row in job.rows.heldout])
    if planned.foreign:
        copy_adapter(planned.adapter, target / "adapter", job.files)
        return
    shutil.copytree(planned.adapter, target / "adapter", dirs_exist_ok=True)
    for name in ("metrics.jsonl", "adapter.json"):
        with suppress(FileNotFoundError):
            shutil.copyfile(planned.source / name, target / name)
    if not (target / "ledger.jsonl").exists():
        paid = [line for line in read_jsonl(planned.source / "ledger.jsonl") if line["phase"] in PAID_FOR]
        write_jsonl(target / "ledger.jsonl", paid)


def _known_checks(planned: ReevalSpec, target: Path, ledger: Ledger) -> Gate:
    """The run's own checks, or for a foreign adapter that all of it was loaded."""
    if not planned.foreign:
        known: Sequence[dict[str, Any]] = read_json(planned.source / "gate.json")["checks"]
        return Gate(tuple(Check(**check) for check in known if check["name"] != LAST_CHECK))
    job = planned.job
    with ledger.segment("gate"):
        base = load_model(job.files, precision=job.precision, device=job.device.kind)
        try:
            adapted = load_adapter(base, target / "adapter")
        except (RuntimeError, ValueError) as error:
            raise NomoatError(f"the adapter does not fit this base: {str(error).strip().splitlines()[0][:200]}") from error
        check = Check("every tensor found its place", True, f"{check_tensor_shapes(adapted, target / 'adapter')} tensors")
        write_json(target / "adapter.json", external_adapter_facts(target / "adapter", adapted, job.recipe.lora, job.files))
    return Gate((check,))
