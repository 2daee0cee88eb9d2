"""A hub of a few routes on loopback: what `huggingface_hub` asks for when a data set is made and written to."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

FORBIDDEN = {"X-Error-Message": "You don't have the rights"}


@dataclass
class Hub:
    """What the hub holds, and what it was asked. `refuse`: path part -> status to answer with."""

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo]["files"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _handle(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))
        status = next((code for part, code in self.hub.refuse.items() if part in path), 0)
        if status:
            self._answer({"error": "no"}, status, FORBIDDEN)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.startswith("/api/datasets/"):
            user, name, *rest = path.removeprefix("/api/datasets/").split("/")
            self._dataset(f"{user}/{name}", rest, body)
        else:
            self._answer({"error": "unknown route"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
        there = repo in self.hub.repos
        self.hub.repos.setdefault(
            repo, {"private": asked.get("private", asked.get("visibility") == "private"), "files": {}}
        )
        self._answer({"url": f"{self.hub.url}/datasets/{repo}", "name": repo}, 409 if there else 200)

    def _validate(self, content: str) -> None:
        head = yaml.safe_load(content.split("---\n")[1])
        wrong = [] if isinstance(head.get("tags"), list) else [{"message": "no tags"}]
        self._answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def _dataset(self, repo: str, rest: list[str], body: bytes) -> None:
        if repo not in self.hub.repos:
            self._answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            found = self.hub.repos[repo]
            files = [{"rfilename": name} for name in found["files"]]
            self._answer(
                {"id": repo, "sha": "0" * 40, "private": found["private"], "siblings": files, "tags": []}
            )
        elif rest[0] == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            self._answer({"files": files})
        else:
            self._commit(repo, [json.loads(line) for line in body.splitlines()])

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.hub.files(repo)[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.hub.files(repo)[line["value"]["path"]]
        oid = "1" * 40
        url = f"{self.hub.url}/datasets/{repo}/commit/{oid}"
        self._answer({"commitUrl": url, "commitOid": oid, "hookOutput": ""})

    def _answer(
        self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def start() -> tuple[Hub, ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
