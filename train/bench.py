"""Time a training step of ours beside transformers.Trainer and TRL, on the same rows, steps, base and adapter.

    python train/bench.py                                          # all arms, some 40 minutes on 2 cores
    python train/bench.py recipes/smollm2-135m.yaml --arms ours trainer trl_packed --turns 3

Arms take turns, each in a process of its own; more memory is needed than for one training (about 10 GB for the default).
TRL is needed for its arms only: .venv/bin/pip install -e '.[bench]'. Writes bench.json and bench.svg.
Exit codes: 0 done, 1 an arm failed or did other work than ours, 2 bad input.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from nomoat.benchmarks.training import run_bench, write_bench
from nomoat.cli import run_script
from nomoat.errors import NomoatError, RunFailed

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("ours", "trainer", "trl_default", "trl_packed", "trl_autocast", "trl_compiled", "trl_padded", "trl_sorted")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m.yaml", help="default: the default recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, help="who takes part (default: all, but trl_autocast where bfloat16 is emulated); ours always"
    )
    parser.add_argument("--turns", type=int, default=7, help="stretches that are timed (default: 7)")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps in each stretch (default: 6)")
    parser.add_argument("--warmup", type=int, default=6, help="steps before the first timed stretch (default: 6)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.json and bench.svg (default: runs/bench)")
    found = parser.parse_intermixed_args()  # a change may follow an option
    for name in ("turns", "steps", "warmup"):
        if getattr(found, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(found, name)}")
    return found


def main() -> int:
    arguments = parse_arguments()
    from nomoat.config.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from nomoat.cli import configure_logging

    configure_logging()
    from rich.console import Console

    from nomoat.benchmarks.peers import BenchSize, worthwhile
    from nomoat.benchmarks.results import headlines, table_of
    from nomoat.models.device import choose_device

    chosen = arguments.arms or worthwhile(ARMS, choose_device(recipe.hardware).kind)
    names = ["ours", *(name for name in ARMS[1:] if name in chosen)]
    if len(names) == 1:
        raise NomoatError("--arms: name at least one arm besides ours, for example --arms trainer")
    console = Console()
    size = BenchSize(arguments.turns, arguments.steps, arguments.warmup)
    with tempfile.TemporaryDirectory() as scratch:
        record = run_bench(recipe, ROOT, names, size, Path(scratch), console)
    write_bench(record, arguments.out)
    console.print(table_of(record), "", *headlines(record), f"\nwritten to {arguments.out / 'bench.json'}", sep="\n", highlight=False)
    if record["not_the_same_work"]:
        raise RunFailed("these arms did not do the same work:\n  " + "\n  ".join(record["not_the_same_work"]))
    return 0


if __name__ == "__main__":
    run_script(main)
