"""Replace `revision: unpinned` in a recipe's text by the 40 hex digits of a commit; everything else, comments included, is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from nomoat.errors import NomoatError, first_line

UNPINNED = "unpinned"
KINDS: dict[str, Literal["model", "dataset"]] = {"base": "model", "data": "dataset"}


@dataclass(frozen=True)
class UnpinnedRevision:
    """An unpinned revision: its block (base or data), its repository, and the position of its value in the text."""

    block: str
    repository: str
    start: int
    end: int


def find_unpinned(text: str) -> list[UnpinnedRevision]:
    """The unpinned revisions in the text of a recipe (not in its parents), in their order."""
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
    """The latest commit of the repository's main branch; NomoatError if it cannot be looked up."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().repo_info(place.repository, repo_type=KINDS[place.block]).sha)
    except (HfHubHTTPError, OSError) as error:
        raise NomoatError(
            f"{place.block}.hub: {place.repository} could not be looked up ({first_line(error)}). Check the name, the network and, for a "
            "gated repository, your login"
        ) from None


def pin_text(text: str, commits: dict[UnpinnedRevision, str]) -> str:
    """The text with the commit in place of each unpinned revision."""
    for place in sorted(commits, key=lambda place: place.start, reverse=True):  # from the end, so that earlier positions stay right
        text = text[: place.start] + commits[place] + text[place.end :]
    return text
