"""Standard benchmarks on base and adapter, through EleutherAI's lm-evaluation-harness (Gao et al., doi:10.5281/zenodo.10256836).

The harness asks and scores; what is ours is that both arms answer the same documents in one process and that each pair of scores is
kept, so that a difference comes with a paired interval. Tasks are its own by name, or a YAML file in its format. Its data come from
the hub; a task that cannot be loaded stops a run before it begins.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from nomoat.config.schema import Eval, is_task_file
from nomoat.errors import NomoatError
from nomoat.io import sha256_of

PACKAGE = "lm_eval"
INSTALL = "make harness"


@dataclass(frozen=True)
class BenchmarkTasks:
    """Tasks that were loaded, data and all, by the harness's names for them."""

    manager: Any
    names: tuple[str, ...]


def load_tasks(settings: Eval) -> BenchmarkTasks | None:
    """The recipe's tasks, or None where it names none.

    Raises NomoatError where the harness is not installed, does not know a task, or cannot get its data.
    """
    if not settings.harness:
        return None
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise NomoatError(f"eval.harness needs lm-evaluation-harness, which is not installed: {INSTALL}") from error
    files = [name for name in settings.harness if is_task_file(name)]
    manager = TaskManager(include_defaults=len(files) < len(settings.harness))
    return BenchmarkTasks(manager, tuple(_load(manager, wanted) for wanted in settings.harness))


def _load(manager: Any, wanted: str) -> str:
    """Load one task (or group); the name that the harness takes it by."""
    if is_task_file(wanted):
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise NomoatError(f"eval.harness: {wanted} is not there: a task is a name that the harness knows, or a YAML file of yours")
        wanted = str(path.resolve())
    elif wanted not in manager.task_index:
        near = difflib.get_close_matches(wanted, manager.task_index, n=3)
        raise NomoatError(f"eval.harness: the harness has no task {wanted!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    try:
        found = manager.load([wanted])["tasks"]
    except Exception as error:
        raise NomoatError(f"eval.harness: {wanted} cannot be loaded: {_why(error)}") from error
    unsafe = [name for name, task in found.items() if getattr(task.config, "unsafe_code", False)]
    if unsafe:
        raise NomoatError(f"eval.harness: {unsafe[0]} runs code that a model wrote, on this machine and unguarded: nomoat does not do that")
    return wanted


def _why(error: Exception) -> str:
    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if isinstance(error, OSError):
        return f"its data come from the model hub, which cannot be reached from here ({said})"
    return said


def run_tasks(tasks: BenchmarkTasks, model: Any, tokenizer: Any, settings: Eval) -> dict[str, Any]:
    """The harness's own results for one arm's model: `results`, `samples`, `configs` and `versions`."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.harness_batch_rows, device=str(model.device))
    found = simple_evaluate(
        wrapped,
        tasks=list(tasks.names),
        task_manager=tasks.manager,
        limit=settings.harness_limit,
        apply_chat_template=tokenizer.chat_template is not None,
        bootstrap_iters=0,  # its intervals are not paired; ours are computed from the samples
        log_samples=True,
    )
    assert found is not None  # None only on the other processes of a distributed run
    return dict(found)


def describe_tasks(base: dict[str, Any], settings: Eval, *, chat_template: bool) -> dict[str, Any]:
    """What harness.json says of the tasks: versions, settings, and a hash over every document, prompt and target asked."""
    tasks = {}
    for name, samples in sorted(base["samples"].items()):
        config = base["configs"][name]
        tasks[name] = {
            "version": base["versions"].get(name),
            "num_fewshot": base["n-shot"].get(name),
            "output_type": config.get("output_type"),
            "dataset": "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)),
            "documents": base["n-samples"][name],
            "higher_is_better": base["higher_is_better"].get(name, {}),
            "sha256": sha256_of([[one["doc_hash"], one["prompt_hash"], one["target_hash"]] for one in _in_order(samples)]),
        }
    return {"lm_eval": version(PACKAGE), "chat_template": chat_template, "limit": settings.harness_limit, "tasks": tasks}


def paired_lines(base: dict[str, Any], adapter: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line of harness.jsonl for each document and metric: what base and adapter got on it, and whether that is all of the metric.

    Metrics that are no number for each document, or whose total is not their mean, have one line with the harness's own totals.
    """
    for task, samples in sorted(base["samples"].items()):
        theirs = _in_order(adapter["samples"][task])
        for key, total in base["results"][task].items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(total, Real):
                continue
            pairs = list(zip(_of(_in_order(samples), metric, chosen), _of(theirs, metric, chosen), strict=True))
            totals = float(total), float(adapter["results"][task][key])
            about = {"task": task, "metric": metric, "filter": chosen}
            if not _is_mean(pairs, totals):
                yield {**about, "document": None, "base": totals[0], "adapter": totals[1]}
                continue
            for (document, mine), (_, other) in pairs:
                yield {**about, "document": document, "base": float(mine), "adapter": float(other)}


def _in_order(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda one: (one["filter"], one["doc_id"]))


def _of(samples: Sequence[dict[str, Any]], metric: str, chosen: str) -> list[tuple[str, Any]]:
    return [(one["doc_hash"], one[metric]) for one in samples if one["filter"] == chosen and metric in one]


def _is_mean(pairs: Sequence[tuple[tuple[str, Any], tuple[str, Any]]], totals: tuple[float, float]) -> bool:
    columns = [[row[arm][1] for row in pairs] for arm in (0, 1)]
    if not pairs or not all(isinstance(value, Real) for column in columns for value in column):
        return False
    return all(abs(sum(map(float, column)) / len(column) - total) < 1e-9 for column, total in zip(columns, totals, strict=True))
