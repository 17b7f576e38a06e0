"""A finished run scored on other rows, in other arms, or with somebody else's adapter; nothing is trained.

What comes out is a separate run directory, `<run>@<what>-<hash>/`, which `make compare`, `make try` and `make eval` take like any
other. Its ledger begins with what training cost, so that a score still travels with its price.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from nomoat.cli import ProgressBar
from nomoat.config.load import run_recipe
from nomoat.config.schema import Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.contamination import audit, describe_leaks
from nomoat.data.examples import Splits, load_heldout, load_user_examples
from nomoat.data.prepare import RawData, load_raw_data, tokenize_data
from nomoat.data.split import choose_heldout
from nomoat.errors import NomoatError, first_line
from nomoat.evaluation.arms import Arm, score_arm
from nomoat.evaluation.lm_eval import load_tasks
from nomoat.evaluation.models import load_run_models
from nomoat.io import read_jsonl, sha256_file, write_json, write_jsonl
from nomoat.models.adapter import adapter_facts, adapter_size, check_tensor_shapes, load_adapter, weights_of
from nomoat.models.base import load_model, load_tokenizer, open_base
from nomoat.models.device import Device
from nomoat.models.external_adapter import copy_adapter, fetch_adapter, lora_settings
from nomoat.pipeline.finetune import FineTuneRun, begin_files
from nomoat.pipeline.run_spec import RunSpec
from nomoat.reports.build import checked_report, read_data_facts, read_gate
from nomoat.reports.schema import Check, Gate
from nomoat.runs import provenance
from nomoat.runs.directory import open_run, plain_name
from nomoat.runs.ledger import Ledger
from nomoat.runs.provenance import DataOrigin, Provenance, ScoredFrom, read_provenance


@dataclass(frozen=True)
class ReplayResult:
    """How many of a run's adapter answers and scores came out the same, and how this machine differs from the run's."""

    rows: int
    same_answers: int
    same_scores: int
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every score is the same; on another machine or other versions, differences are expected and only counted."""
        return self.same_scores == self.rows or bool(self.differences)


def replay(run_dir: Path, console: Console) -> ReplayResult:
    """Load the adapter from disk, answer the run's held-out rows again, and compare with what the run wrote; nothing is changed.

    Raises NomoatError where the base is not the one that the run was made with.
    """
    recipe, before = run_recipe(run_dir), read_provenance(run_dir)
    opened = open_base(recipe)
    name, sha256 = opened.files.name, opened.files.identity.get("sha256")
    if (name, sha256) != (before.base.name, before.base.sha256):
        raise NomoatError(
            f"{run_dir}: the adapter belongs to the base {before.base.name} (sha256 {before.base.sha256}), but the recipe now gives "
            f"{name} (sha256 {sha256}): restore that base"
        )
    rows = choose_heldout(load_heldout(run_dir / "heldout.jsonl"), recipe.eval)
    precision = before.scoring_dtype or opened.scoring_precision
    models = load_run_models(run_dir, rows, opened, precision=precision, kernels=recipe.hardware.kernels)
    arm = Arm("adapter", rows, {}, True)
    with ProgressBar("scoring adapter", len(rows), console) as bar, models.using("adapter") as model:
        records = score_arm(arm, model, models.template, recipe.eval, draft=models.draft, on_rows=bar.advance)
    pairs = list(zip(read_jsonl(run_dir / "eval" / "adapter.jsonl"), records, strict=True))
    answers, scores = (sum(old[key] == new[key] for old, new in pairs) for key in ("output", "score"))
    return ReplayResult(len(pairs), answers, scores, _differences(before, opened.device))


def _differences(before: Provenance, device: Device) -> tuple[str, ...]:
    """Differences of the machine and the versions that may change the last digits of a result."""
    then = {"device": before.device.name, "threads": before.threads, **before.packages}
    now = {"device": device.name, "threads": device.threads, **provenance.versions()}
    return tuple(f"{key}: {then.get(key)} then, {value} now" for key, value in now.items() if then.get(key) != value)


MAY_CHANGE = ("eval.", "hardware.", "data.allow_leaks=")  # recipe keys that a finished training does not depend on
PAID_FOR = ("start", "fetch", "load", "prepare", "train", "gate")  # phases of the run that the adapter itself needed
LAST_CHECK = "answers differ"  # of the gate; it belongs to the rows that were answered


@dataclass(frozen=True)
class ReevalRequest:
    """Changes to a finished run: held-out rows from a file, an adapter by folder or hub id, overrides of the recipe's eval section."""

    rows: Path | None = None
    adapter: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReevalSpec:
    """The specification of a run whose training is over: its source run, and the adapter to score."""

    run: RunSpec
    source: Path
    adapter: Path
    foreign: bool
    title: str


def plan_reeval(run_dir: Path, request: ReevalRequest, root: Path) -> ReevalSpec:
    """Everything that can be refused is refused here, before a directory exists."""
    report = checked_report(run_dir)
    recipe = _changed_recipe(run_dir, request)
    adapter = fetch_adapter(request.adapter) if request.adapter else run_dir / "adapter"
    if request.adapter:
        recipe = recipe.model_copy(update={"lora": lora_settings(adapter)})
    data = _load_heldout(recipe, run_dir, request, root, report.provenance.data)
    spec = RunSpec(recipe=recipe, root=root, data=data, base=open_base(recipe), benchmarks=load_tasks(recipe.eval))
    named = ([request.rows.stem] if request.rows else []) + ([Path(request.adapter.partition("@")[0]).name] if request.adapter else [])
    title = "-".join(plain_name(name) for name in named) or "again"
    return ReevalSpec(spec, run_dir, adapter, request.adapter is not None, title)


def _changed_recipe(run_dir: Path, request: ReevalRequest) -> Recipe:
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter: only a finished run can be scored again")
    refused = [change for change in request.overrides if not change.startswith(MAY_CHANGE)]
    if refused:
        raise NomoatError(f"{refused[0]}: the run is trained; what can still be changed begins with {', '.join(MAY_CHANGE)}")
    recipe = run_recipe(run_dir, request.overrides)
    if request.rows is None:
        return recipe
    settings = recipe.eval.model_copy(update={"primary": "phrasing", "tiers": ("phrasing",)})  # the tier of a user's held-out rows
    return recipe.model_copy(update={"eval": settings})


def _load_heldout(recipe: Recipe, run_dir: Path, request: ReevalRequest, root: Path, trained_on: DataOrigin) -> RawData:
    """The run's training rows with the rows to answer; NomoatError where the training rows have changed, or contain rows to answer."""
    data = load_raw_data(recipe, root)
    if data.rows.train_sha256 != trained_on.train_sha256:
        raise NomoatError(
            f"{recipe.data.source}: training data changed since {run_dir.name} was trained; restore it, the contamination check needs it"
        )
    if request.rows is None:
        return replace(data, rows=replace(data.rows, heldout=load_heldout(run_dir / "heldout.jsonl")))
    heldout = tuple(replace(row, tier="phrasing") for row in load_user_examples(request.rows, recipe.data))
    rows: Splits = replace(data.rows, heldout=heldout, name=f"{data.rows.name}, answered: {request.rows.name}")
    leaks = audit(rows.train, rows.validation, heldout, user_data=True)
    if not leaks.clean and recipe.data.allow_leaks is None:
        raise NomoatError(
            f"{request.rows} has rows that {run_dir.name} was trained on {describe_leaks(leaks)}\n"
            "Remove them, or state why it is acceptable: SET='data.allow_leaks=\"reason\"'"
        )
    return RawData(rows, data.examples, leaks)


def reevaluate(spec: ReevalSpec, runs_dir: Path, console: Console) -> tuple[Gate, Path]:
    """Answer the rows in every arm and write the report; returns the checks of the adapter, and the run directory."""
    run = spec.run
    provenance = run.provenance.model_copy(update={"scored_from": _origin(spec)})
    identity = {
        "adapter": sha256_file(weights_of(spec.adapter)),
        "eval": run.recipe.eval.model_dump(mode="json"),
        "heldout": run.rows.heldout_sha256,
        "base": run.base.files.name,
        "source": spec.source.name,
        **run.plain_kernels,
    }
    name = f"{spec.source.name}@{spec.title}"
    with open_run(runs_dir, name, identity=identity, environment=provenance.record()) as directory:
        _copy_training_files(spec, directory.path)
        ledger = begin_files(run, directory, console)
        scoring = FineTuneRun(run, directory, ledger, console, ChatTemplate(load_tokenizer(run.base.files)))
        with ledger.segment("prepare"):
            tokenized = tokenize_data(run.recipe, run.data, scoring.template)
            scoring.write_rows_file(tokenized, read_data_facts(spec.source)[0].packing)
        gate = scoring.score(_known_checks(spec, directory.path, ledger), tokenized)
        scoring.write_report()
        return gate, directory.path


def _origin(spec: ReevalSpec) -> ScoredFrom:
    """Where the adapter comes from: the run that trained it, or somebody else."""
    then = read_provenance(spec.source)
    trained = {} if spec.foreign else then.model_dump(include={"created", "commit", "dirty", "adapter_initial_sha256", "learning_rate"})
    return ScoredFrom(run=spec.source.name, adapter_sha256=sha256_file(weights_of(spec.adapter)), foreign=spec.foreign, **trained)


def _copy_training_files(spec: ReevalSpec, target: Path) -> None:
    """The files of a run whose training is done, in a new directory; a foreign adapter brings only itself."""
    if spec.foreign:
        copy_adapter(spec.adapter, target / "adapter", spec.run.base.files)
        return
    shutil.copytree(spec.adapter, target / "adapter", dirs_exist_ok=True)
    for name in ("metrics.jsonl", "adapter.json"):
        with suppress(FileNotFoundError):
            shutil.copyfile(spec.source / name, target / name)
    if not (target / "ledger.jsonl").exists():
        write_jsonl(target / "ledger.jsonl", [line for line in read_jsonl(spec.source / "ledger.jsonl") if line["phase"] in PAID_FOR])


def _known_checks(spec: ReevalSpec, target: Path, ledger: Ledger) -> Gate:
    """The run's own checks; for a foreign adapter, that all of it was loaded."""
    if not spec.foreign:
        known = read_gate(spec.source)
        return Gate.of(check for check in (known.checks if known else ()) if check.name != LAST_CHECK)
    run = spec.run
    with ledger.segment("gate"):
        base = load_model(run.base.files, precision=run.base.precision, device=run.base.device.kind)
        try:
            adapted = load_adapter(base, target / "adapter", kernels=run.kernels)
        except (RuntimeError, ValueError) as error:
            raise NomoatError(f"the adapter does not fit this base: {first_line(error)}") from error
        total = check_tensor_shapes(adapted, target / "adapter")
        facts = adapter_facts(adapter_size(adapted), run.recipe.lora, target / "adapter", run.base.files)
        write_json(target / "adapter.json", facts.model_dump(mode="json", exclude={"gate"}))
    return Gate.of([Check(name="every tensor found its place", passed=True, total=total)])
