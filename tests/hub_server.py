"""A hub of our own on the loopback interface, which speaks the protocol of the real one to its real client.

It answers the calls that the client makes to open a model: what a revision is (``/api/models/ID/revision/REV``), the
tree of a commit, and files by HEAD and GET, large ones by a redirect to another host, as the hub redirects to its
store. ETags, commits, linked sizes, ranges and the headers of errors are as the hub sends them. Every request is
noted. Files can be cut short on the way.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".model")
"""Endings of what the hub keeps in its store."""


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    token: str | None


@dataclass
class Repository:
    """A model: its commits and what its branches are."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Mapping[str, bytes], *refs: str) -> str:
        """Add a commit, to which these branches point from now on."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs.update(dict.fromkeys(refs or ("main",), name))
        return name


class Hub:
    """The server; ``with Hub() as hub`` has it running at ``hub.url``.

    `allowed` are the tokens whose accounts have accepted every licence, `known` those of any account.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.known, self.allowed = {"hf_known", "hf_allowed"}, {"hf_allowed"}
        self.cut: dict[str, int] = {}
        """File -> bytes of it after which the connection breaks, the first time that it is asked for."""
        self.status = 200
        """What everything is answered with, where it is no success; 0 for no answer, -1 for one that comes too late."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, name: str, source: Path | Mapping[str, bytes], **options: bool) -> str:
        """Make a repository of a folder's files, or of names and bytes; returns its commit."""
        files = dict(source) if isinstance(source, Mapping) else read(source)
        self.repositories[name] = Repository(**options)
        return self.repositories[name].commit(files)

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, in order, once each."""
        return list(dict.fromkeys(one.path.rpartition("/")[2] for one in self.asked if one.method == "FILE"))


def read(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append(Asked(self.command, path, token))
        if self.hub.status < 1:
            self.close_connection = True
            return time.sleep(-2 * self.hub.status)
        if self.hub.status != 200:
            return self._send(self.hub.status, b'{"error": "out of order"}', body)
        if path.startswith("/store/"):
            _, _, repo, commit, file = path.split("/", 4)
            return self._file(self.hub.repositories[repo.replace("--", "/")].commits[commit][file], file, {}, body)
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            name, call, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", "/".join(parts[3:])
        else:
            name, _, rest = path[1:].partition("/resolve/")
            call = "resolve"
        repository = self.hub.repositories.get(name)
        if token is not None and token not in self.hub.known:
            return self._error(401, "", "Invalid credentials in Authorization header", body)
        if repository is None or (repository.private and token not in self.hub.allowed):
            return self._error(401 if token is None else 404, "RepoNotFound", "Repository not found", body)
        revision, _, file = rest.partition("/") if call == "resolve" else (rest or "main", "", "")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}", body)
        files = repository.commits[commit]
        if call == "tree":
            listed = [_listed(path, held) for path, held in sorted(files.items())]
            return self._send(200, json.dumps(listed).encode(), body)
        if call != "resolve":
            siblings = [{"rfilename": path} for path in sorted(files)]
            about = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
            return self._send(200, json.dumps({**about, "private": repository.private, "downloads": 0}).encode(), body)
        if repository.gated and token not in self.hub.allowed:
            restricted = f"Access to model {name} is restricted."
            return self._error(401 if token is None else 403, "GatedRepo", restricted, body)
        if file not in files:
            return self._error(404, "EntryNotFound", "Entry not found", body, {"X-Repo-Commit": commit})
        held, about = files[file], {"X-Repo-Commit": commit, "ETag": f'"{_blob(files[file])}"'}
        if not file.endswith(LARGE):
            return self._file(held, file, about, body)
        linked = {"X-Linked-ETag": f'"{hashlib.sha256(held).hexdigest()}"', "X-Linked-Size": str(len(held))}
        place = f"http://localhost:{self.hub.port}/store/{name.replace('/', '--')}/{commit}/{file}"
        return self._send(302, b"", body, {**about, **linked, "Location": place})

    def _file(self, held: bytes, file: str, headers: Mapping[str, str], body: bool) -> None:
        if body:
            self.hub.asked.append(Asked("FILE", file, self.headers.get("Authorization")))
        start, ranged = 0, self.headers.get("Range")
        if ranged:
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
        part, status = held[start:], 206 if ranged else 200
        whole = {"Content-Range": f"bytes {start}-{len(held) - 1}/{len(held)}"} if ranged else {}
        if body and file in self.hub.cut:
            self._head(status, len(part), {**headers, **whole})
            self.wfile.write(held[start : self.hub.cut.pop(file)])
            self.close_connection = True
            return
        self._send(status, part, body, {**headers, **whole})

    def _error(self, status: int, code: str, said: str, body: bool, headers: Mapping[str, str] | None = None) -> None:
        about = {"X-Error-Message": said, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, json.dumps({"error": said}).encode(), body, about)

    def _send(self, status: int, held: bytes, body: bool, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(held), headers or {})
        if body:
            self.wfile.write(held)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _blob(held: bytes) -> str:
    """What git calls it."""
    return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()


def _listed(path: str, held: bytes) -> dict[str, Any]:
    """A line of a tree."""
    about: dict[str, Any] = {"type": "file", "oid": _blob(held), "size": len(held), "path": path}
    if path.endswith(LARGE):
        about["lfs"] = {"oid": hashlib.sha256(held).hexdigest(), "size": len(held), "pointerSize": 134}
    return about
