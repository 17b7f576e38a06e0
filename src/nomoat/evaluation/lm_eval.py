"""Standard benchmarks on base and adapter, through EleutherAI's lm-evaluation-harness (Gao et al., doi:10.5281/zenodo.10256836).

The harness prompts and scores. Both arms answer the same documents in one process, and each pair of scores is kept, so that a
difference comes with a paired interval. Tasks are the harness's own by name, or a YAML file in its format. Their data come from the
hub, and a task that cannot be loaded stops a run before it begins.
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
from nomoat.errors import NomoatError, first_line
from nomoat.io import sha256_of


@dataclass(frozen=True)
class BenchmarkTasks:
    """Loaded tasks with their data, by the harness's names."""

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
        raise NomoatError("eval.harness needs lm-evaluation-harness, which is not installed: make harness") from error
    only_files = all(is_task_file(name) for name in settings.harness)
    manager = TaskManager(include_defaults=not only_files)
    return BenchmarkTasks(manager, tuple(_load(manager, name) for name in settings.harness))


def _load(manager: Any, name: str) -> str:
    """Load one task (or group); returns the name by which the harness runs it."""
    if is_task_file(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise NomoatError(f"eval.harness: there is no file {name}: give a task of the harness by name, or a YAML file in its format")
        name = str(path.resolve())
    elif name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.task_index, n=3)
        raise NomoatError(f"eval.harness: the harness has no task {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    try:
        tasks = manager.load([name])["tasks"]
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, OSError):
            reason = f"its data come from the model hub, which is not reachable ({reason})"
        raise NomoatError(f"eval.harness: {name} cannot be loaded: {reason}") from error
    unsafe = [task for task, loaded in tasks.items() if getattr(loaded.config, "unsafe_code", False)]
    if unsafe:
        raise NomoatError(f"eval.harness: {unsafe[0]} executes code written by the model, unprotected; nomoat does not run such tasks")
    return name


def run_tasks(tasks: BenchmarkTasks, model: Any, tokenizer: Any, settings: Eval) -> dict[str, Any]:
    """The harness's own results for the model of one arm: `results`, `samples`, `configs` and `versions`."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    results = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.harness_batch_rows, device=str(model.device)),
        tasks=list(tasks.names),
        task_manager=tasks.manager,
        limit=settings.harness_limit,
        apply_chat_template=tokenizer.chat_template is not None,
        bootstrap_iters=0,  # its intervals are not paired; ours are computed from the samples
        log_samples=True,
    )
    assert results is not None  # None only on the other processes of a distributed run
    return dict(results)


def describe_tasks(base: dict[str, Any], settings: Eval, *, chat_template: bool) -> dict[str, Any]:
    """The tasks as harness.json records them: versions, settings, and a hash over every document, prompt and target."""
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
            "sha256": sha256_of([[sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]] for sample in _sorted(samples)]),
        }
    return {"lm_eval": version("lm_eval"), "chat_template": chat_template, "limit": settings.harness_limit, "tasks": tasks}


def paired_lines(base: dict[str, Any], adapter: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines of harness.jsonl: for each document and metric the scores of base and adapter.

    A metric whose scores are not numbers, or whose total is not their mean, has one line with the harness's own totals and
    `document` null.
    """
    for task, samples in sorted(base["samples"].items()):
        for key, total in base["results"][task].items():
            metric, comma, filtered_by = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(total, Real):
                continue
            line = {"task": task, "metric": metric, "filter": filtered_by}
            arms = [
                [(sample["doc_hash"], sample[metric]) for sample in _sorted(of_arm) if sample["filter"] == filtered_by and metric in sample]
                for of_arm in (samples, adapter["samples"][task])
            ]
            totals = [float(total), float(adapter["results"][task][key])]
            if not all(_is_mean([value for _, value in arm], mean) for arm, mean in zip(arms, totals, strict=True)):
                yield {**line, "document": None, "base": totals[0], "adapter": totals[1]}
                continue
            for (document, ours), (_, theirs) in zip(*arms, strict=True):
                yield {**line, "document": document, "base": float(ours), "adapter": float(theirs)}


def _sorted(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"]))


def _is_mean(values: Sequence[Any], total: float) -> bool:
    if not values or not all(isinstance(value, Real) for value in values):
        return False
    return abs(sum(map(float, values)) / len(values) - total) < 1e-9
