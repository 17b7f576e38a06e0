"""`make bench`: the work made from a recipe, all arms taking turns on it, and the record of what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from nomoat import bench_record, matrix_peak, provenance
from nomoat.bench_arms import WORDS
from nomoat.bench_turns import Turn, take_turns
from nomoat.bench_work import BenchWork, Size, fixed_steps
from nomoat.conversation import Conversation
from nomoat.files import write_json
from nomoat.progress import Bar
from nomoat.recipe import Recipe, learning_rate_for

VALIDATION_ROWS = 64  # or a few more, evenly spread: whether two arms learnt the same shows in fewer than training looks at
SLOWER = 0.1  # of the recipe's learning rate: at the full one, rounding alone drives arms apart within fifty steps


def make_work(recipe: Recipe, root: Path, size: Size, scratch: Path) -> BenchWork:
    """The recipe's first steps as lists of rows; NomoatError for a recipe or a base that cannot be used."""
    from nomoat import bases, devices
    from nomoat.preparing import load_rows, prepare

    loaded = load_rows(recipe, root)
    device = devices.choose_device(recipe.hardware)
    files = bases.fetch_base(recipe.base)
    conversation = Conversation(bases.load_tokenizer(files))
    prepared = prepare(recipe, loaded, conversation)
    return BenchWork(
        recipe=recipe,
        files=files,
        precision=devices.training_precision(recipe, device),
        device=device.kind,
        device_name=device.name,
        threads=device.threads,
        learning_rate=SLOWER * learning_rate_for(recipe, 0),
        pad_id=conversation.pad_id,
        steps=fixed_steps(recipe, prepared.train, size),
        validation=prepared.validation[:: max(1, len(prepared.validation) // VALIDATION_ROWS)],
        size=size,
        recipe_tokens=round(recipe.train.epochs * sum(row.length for row in prepared.train)),
        scratch=scratch,
    )


def run(recipe: Recipe, root: Path, names: list[str], size: Size, scratch: Path, console: Console) -> dict[str, Any]:
    """Measure; the record of `bench_record.build_record` with where it was made."""
    work = make_work(recipe, root, size, scratch)
    console.print(
        f"bench    {len(work.steps)} steps of about {work.tokens / len(work.steps):.0f} tokens, {work.precision} on {work.device_name}, "
        f"{work.threads} threads, {len(names)} arms in turn",
        highlight=False,
    )
    shapes, head = matrix_peak.linear_shapes(work)
    tokens = max(sum(row.length for row in step) for step in work.steps)
    peaks: list[float] = []
    with Bar("turns", (1 + size.turns) * len(names), console) as bar:

        def told(name: str, turn: Turn) -> None:
            bar.advance(1, f"{WORDS[name]}: {turn.tokens_per_second:.0f} tok/s")

        def between() -> None:
            peaks.append(matrix_peak.best_rate(shapes, tokens, work.precision, work.device))

        courses = take_turns(names, work, between=between, told=told)
    flops = {
        which: sum(
            matrix_peak.step_flops(work.steps[number], shapes, head, recipe.lora.rank, shared=which == "computed") for number in size.timed
        )
        for which in ("rows", "computed")
    }
    record = bench_record.build_record(courses, work, peaks, flops)
    return {**record, **provenance.code_state(root), "packages": {**provenance.versions(), **_trl()}, **provenance.machine()}


def _trl() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"trl": version("trl")}
    except PackageNotFoundError:
        return {}


def write(record: dict[str, Any], folder: Path) -> None:
    """bench.json and bench.svg; an earlier pair is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", record)
    bench_record.draw(record, folder / "bench.svg")
