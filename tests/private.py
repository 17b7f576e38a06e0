"""Private strings that no file of a run may hold, and the search for them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)


def find_private_strings(run_dir: Path, needles: Iterable[str] | None = None) -> list[str]:
    """Every file of a run that holds a private string, or has it in its name, as "file: string"; see `private_strings`."""
    wanted = list(needles) if needles is not None else private_strings()
    found = []
    for file in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        content, name = file.read_bytes(), str(file.relative_to(run_dir))
        found += [f"{name}: {needle}" for needle in wanted if needle.encode() in content or needle in name]
    return found


def private_strings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The paths of home, caches, the working directory and the temporary folder, and secrets of the environment."""
    paths = [str(Path.home()), str(Path.cwd()), tempfile.gettempdir()]
    paths += [value for key, value in environment.items() if key.endswith(("_HOME", "_CACHE")) and value.startswith("/")]
    secrets = [value for key, value in environment.items() if SECRET_NAMES.search(key) and len(value) >= 8]
    return sorted({text for text in paths + secrets if len(text) > 3})
