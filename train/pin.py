"""Pin a recipe: replace `revision: unpinned` by the latest commit of the repository, in the recipe's file.

    python train/pin.py recipes/mine.yaml
    make pin RECIPE=recipes/mine.yaml

Only those words change. A recipe with an unpinned revision can be planned but not trained, because nobody could repeat the run.
Exit codes: 0 done (or nothing to pin), 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script, script_parser


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe, such as recipes/mine.yaml")
    return parser.parse_args()


def main() -> None:
    path = parse_arguments().recipe
    from nomoat.config.load import load_recipe
    from nomoat.config.pin import find_unpinned, latest_commit, pin_text
    from nomoat.io import write_atomically

    load_recipe(path)  # reports other mistakes before the hub is asked
    text = path.read_text(encoding="utf-8")
    commits = {place: latest_commit(place) for place in find_unpinned(text)}
    if commits:
        write_atomically(path, pin_text(text, commits))
    for place, commit in commits.items():
        print(f"{path}: {place.block}.revision of {place.repository} is now {commit}")
    if not commits:
        print(f"{path}: nothing to pin (revisions of a parent recipe are pinned in its own file)")


if __name__ == "__main__":
    run_script(main)
