"""What will a recipe cost? Memory, time and money, from the base's configuration and the rows: its weights are not downloaded.

    python train/plan.py recipes/smollm2-135m.yaml
    python train/plan.py recipes/smollm2-135m.yaml precision=nf4 lora.rank=8
    python train/plan.py recipes/smollm2-135m.yaml --measure
    make plan RECIPE=recipes/smollm2-135m.yaml SET="precision=nf4" MEASURE=1

Memory is that of the phases of a run at their peaks: the work itself is carried out on tensors without data. With --measure the base is
loaded and its fullest optimiser step run three times, and what that took stands beside the estimate. Nothing is written.
Exit codes: 0 done, 2 bad input, or a recipe that does not fit into the device's memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script
from nomoat.planning.measure import measure
from nomoat.planning.plan import check_fit, make_plan, with_speed

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe, such as recipes/smollm2-135m.yaml; its revision may be unpinned")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe, such as precision=nf4")
    parser.add_argument("--measure", action="store_true", help="download and load the base, run its fullest step, show both")
    return parser.parse_intermixed_args()  # a change may follow an option


def main() -> None:
    arguments = parse_arguments()
    from nomoat.config.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is told before anything heavy is imported

    from nomoat.cli import configure_logging

    configure_logging()
    from rich.console import Console

    from nomoat.planning.plan import print_plan

    console = Console()
    plan = make_plan(recipe, ROOT)
    measured = None
    if arguments.measure:
        check_fit(plan)  # before it is tried
        measured = measure(plan)
        plan = with_speed(plan, measured.tokens_per_second)
    print_plan(plan, console, measured)
    check_fit(plan)


if __name__ == "__main__":
    run_script(main)
