"""Check for train/test contamination: exit 1 and examples if held-out rows repeat training rows.

    python data/leaks.py desk                        # a shipped set, by name
    python data/leaks.py recipes/mine.yaml           # a recipe's rows, local or from the hub
    python data/leaks.py train.jsonl heldout.jsonl   # your own files (.jsonl, .csv or .parquet)
    python data/leaks.py recipes/mine.yaml desk      # any training rows against any held-out rows

Three checks: does a held-out prompt equal a training prompt (ignoring case, punctuation and spaces); does it after masking the values
in it (shipped sets, whose rows list the values filled in); do the two share 13 consecutive words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import ROOT, run_script, script_parser
from nomoat.config.load import load_recipe
from nomoat.data.contamination import audit
from nomoat.data.examples import Splits, load_shipped_set, load_user_examples
from nomoat.data.prepare import load_splits
from nomoat.errors import NomoatError, RunFailed

CHECKS = {"exact": "same prompt", "masked": "same prompt, values masked", "ngram": "13 words in a row"}
FILES = (".jsonl", ".csv", ".parquet")
SHOWN = 120  # characters of a shared text


def main() -> None:
    """Load, audit, print; contamination is a failure."""
    sources = [load_source(name) for name in parse_arguments().data]
    (train, train_shipped), (heldout, heldout_shipped) = sources[0], sources[-1]
    masked = train_shipped and heldout_shipped  # only shipped rows list the values to mask
    report = audit(train.train, train.validation, heldout.heldout, user_data=not masked)
    seen = f"{len(train.train):,} training and {len(train.validation):,} validation rows"
    print(f"{len(heldout.heldout):,} held-out rows of {heldout.name} against {seen} of {train.name}")
    for kind, check in CHECKS.items():
        if masked or kind != "masked":
            print(f"  {check:<28}{getattr(report, kind):>6,}")
    if not report.clean:
        examples = [f"  {CHECKS[leak.kind]}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:SHOWN]}" for leak in report.examples]
        raise RunFailed("contamination: held-out rows repeat training rows:\n" + "\n".join(examples))


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument(
        "data", nargs="+", metavar="TRAIN [HELDOUT]", help="a shipped set, a recipe or a file of rows; one for both, or two"
    )
    arguments = parser.parse_args()
    if len(arguments.data) > 2:
        raise NomoatError(f"give one set or two (training rows first); saw {len(arguments.data)} names")
    if len(arguments.data) == 1 and Path(arguments.data[0]).suffix in FILES:
        raise NomoatError(f"{arguments.data[0]} is one file: give the training rows and the held-out rows, in this order")
    return arguments


def load_source(name: str) -> tuple[Splits, bool]:
    """The rows that an argument names, and whether they are a shipped set. All rows of a file are both training and held-out rows."""
    if Path(name).suffix in (".yaml", ".yml"):
        return load_splits(load_recipe(Path(name)).data, ROOT)
    if Path(name).suffix in FILES:
        rows = tuple(load_user_examples(Path(name)))
        return Splits(name, rows, (), rows), False
    return load_shipped_set(name, ROOT), True


if __name__ == "__main__":
    run_script(main)
