"""Build a shipped set from its hand-written files, or check that the files in the repository are what they build.

    python data/prepare.py --set desk            # writes data/desk/{train,validation,heldout}.jsonl
    python data/prepare.py --set desk --check    # writes nothing; exit 1 and a summary unless equal byte for byte

A set with train/test contamination (see data/leaks.py) is not written.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from nomoat.cli import run_script, script_parser
from nomoat.data.contamination import audit
from nomoat.data.desk_build import build_set
from nomoat.data.examples import Example, Splits
from nomoat.errors import NomoatError, RunFailed, did_you_mean
from nomoat.io import canonical_json, write_atomically

DATA = Path(__file__).resolve().parent
SHOWN = 6  # differing lines per file


def main() -> None:
    """Build in memory, audit, then write or compare."""
    arguments = parse_arguments()
    folder = find_set(arguments.set)
    rows = build_set(folder)
    refuse_leaks(rows)
    files = {folder / f"{part}.jsonl": as_text(getattr(rows, part)) for part in ("train", "validation", "heldout")}
    if arguments.check:
        check(files)
    else:
        for path, text in files.items():
            write_atomically(path, text)
    for path, text in files.items():
        print(f"{path.relative_to(DATA.parent)}: {text.count(chr(10)):,} rows, {'as built' if arguments.check else 'written'}")


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--set", default="desk", metavar="NAME", help="the set to build: a folder in data/ (default: desk)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the existing files")
    return parser.parse_args()


def find_set(name: str) -> Path:
    """The folder of a set that can be built."""
    known = sorted(path.parent.name for path in DATA.glob("*/families"))
    if name not in known:
        raise NomoatError(f"--set {name}: no such set{did_you_mean(name, known)}")
    return DATA / name


def refuse_leaks(rows: Splits) -> None:
    """RunFailed if held-out rows repeat training rows."""
    report = audit(rows.train, rows.validation, rows.heldout, user_data=False)
    if not report.clean:
        lines = [f"  {leak.kind}: {leak.row_id} repeats {leak.seen_id}: {leak.text}" for leak in report.examples]
        raise RunFailed(
            "contamination: held-out rows of the built set repeat training rows:\n"
            + "\n".join(lines)
            + "\nreword one phrasing of each pair"
        )


def as_text(rows: tuple[Example, ...]) -> str:
    return "".join(canonical_json(row.record()) + "\n" for row in rows)


def check(files: dict[Path, str]) -> None:
    """RunFailed with the first differing lines of every file that is not as built."""
    problems: list[str] = []
    for path, built in files.items():
        existing = path.read_text(encoding="utf-8") if path.exists() else ""
        if existing != built:
            lines = list(difflib.unified_diff(existing.splitlines(), built.splitlines(), "in the repository", "as built", n=0, lineterm=""))
            problems.append(f"{path.relative_to(DATA.parent)} is not what its generator builds ({len(lines)} differing lines):")
            problems += [f"  {line[:160]}" for line in lines[:SHOWN]]
    if problems:
        raise RunFailed("\n".join([*problems, "build it again with: python data/prepare.py"]))


if __name__ == "__main__":
    run_script(main)
