"""From `revision: unpinned` to the 40 hex digits of a commit, in the recipe's own file, one line changed and every comment kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from nomoat.errors import NomoatError, first_line

UNPINNED = "unpinned"
KINDS: dict[str, Literal["model", "dataset"]] = {"base": "model", "data": "dataset"}


@dataclass(frozen=True)
class UnpinnedRevision:
    """An unpinned revision: its block, what it is a revision of, and where its text stands."""

    block: str
    repository: str
    start: int
    end: int


def find_unpinned(text: str) -> list[UnpinnedRevision]:
    """The unpinned revisions of a recipe's own text (its parents' are theirs), in the order in which they stand."""
    places = []
    for block, node in _entries(yaml.compose(text, Loader=yaml.SafeLoader)):
        entries = dict(_entries(node)) if block in KINDS else {}
        revision, hub = entries.get("revision"), entries.get("hub")
        if revision is not None and hub is not None and revision.value == UNPINNED:
            places.append(UnpinnedRevision(block, str(hub.value), revision.start_mark.index, revision.end_mark.index))
    return places


def _entries(node: Any) -> list[tuple[str, Any]]:
    return [(str(key.value), value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else []


def latest_commit(place: UnpinnedRevision) -> str:
    """The commit that `main` of the repository stands at; NomoatError if the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = HfApi().repo_info(place.repository, repo_type=KINDS[place.block]).sha
    except (HfHubHTTPError, OSError) as error:
        said = first_line(error)
        raise NomoatError(
            f"{place.block}.hub: {place.repository} could not be looked up ({said}). Check the name, the network and, for a gated "
            "repository, your login"
        ) from None
    return str(found)


def pin_text(text: str, commits: dict[UnpinnedRevision, str]) -> str:
    """The text with each place's revision replaced."""
    for place in sorted(commits, key=lambda one: one.start, reverse=True):
        text = text[: place.start] + commits[place] + text[place.end :]
    return text
