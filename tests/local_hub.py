"""A model hub of our own, for the real client: repositories are folders below one root, each with a single commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
GATED = ".gated"  # a repository with this file has its terms accepted by nobody


class _Hub(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, root: Path) -> None:
        self.root = root
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe(self.root / parts[2] / parts[3], parts[5] if len(parts) > 5 else COMMIT, tree=parts[4:5] == ["tree"])
        elif parts[2:3] == ["resolve"]:
            self._file(self.root / parts[0] / parts[1], "/".join(parts[4:]))
        else:
            self._say(404, b"{}", {})

    def _describe(self, repository: Path, revision: str, *, tree: bool) -> None:
        if not repository.is_dir():
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in (COMMIT, "main"):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            files = [path for path in sorted(repository.iterdir()) if path.name != GATED]
            about: Any = {"id": "/".join(repository.parts[-2:]), "sha": COMMIT, "siblings": [{"rfilename": path.name} for path in files]}
            if tree:
                about = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT} for path in files]
            self._say(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: Path, name: str) -> None:
        if (repository / GATED).exists():
            self._refuse(403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list.")
        elif not (repository / name).is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            body = (repository / name).read_bytes()
            self._say(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._say(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the repositories `root/owner/name/` until the block ends; yields the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, root=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
