"""Files of one commit of a hub repository, through the hub's own client and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nomoat.errors import NomoatError


def fetch(what: str, repository: str, revision: str, patterns: Sequence[str], *, otherwise: str = "") -> Path:
    """The folder with the repository's files of these names; NomoatError, which begins with `what`, where it cannot be fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise NomoatError(
            f"{what} at {revision[:12]} could not be fetched ({reason}). Check the name, the revision, the network and, for a "
            f"gated model, your login{'; ' if otherwise else ''}{otherwise}"
        ) from None
