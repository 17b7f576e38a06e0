"""How much memory, time and money a recipe needs, from its base's configuration and rows: the weights are not downloaded.

    python train/plan.py recipes/smollm2-135m.yaml
    python train/plan.py recipes/smollm2-135m.yaml precision=nf4 lora.rank=8
    python train/plan.py recipes/smollm2-135m.yaml --measure
    make plan RECIPE=recipes/smollm2-135m.yaml SET="precision=nf4" MEASURE=1

Memory is estimated for the peak of each phase of a run by tracing the phases on tensors without data. With --measure the base is loaded
and its largest optimiser step is run twice; estimates and measurements are shown together. Nothing is written. A revision may be
unpinned.
Exit codes: 0 done, 2 bad input, or a recipe that does not fit into the device's memory.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from nomoat.cli import ROOT, configure_logging, recipe_parser, run_script


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__)
    parser.add_argument("--measure", action="store_true", help="download and load the base, run its largest step and show both")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    from nomoat.config.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)  # before the imports that take seconds
    configure_logging()
    from rich.console import Console

    from nomoat.planning.measure import measure
    from nomoat.planning.plan import check_fit, make_plan, print_plan

    plan = make_plan(recipe, ROOT)
    if arguments.measure:
        check_fit(plan)  # before it is tried
        plan = replace(plan, measured=measure(plan.spec, plan.work))
    print_plan(plan, Console())
    check_fit(plan)


if __name__ == "__main__":
    run_script(main)
