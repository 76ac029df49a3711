"""A hub on loopback: one repository served from a folder, with faults that can be switched on."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "c" * 40


class Hub:
    """What the server answers.

    Attributes:
        files: name to bytes, of the one repository ``name`` at ``revision`` and at its commit.
        refuse: (status, error code) for every request, or None.
        renamed: an old name that leads to ``name``.
        drop_after: bytes of the first answer after which the connection is cut; later ones go on.
        wrong_size: a file that claims to be longer than it is.
    """

    def __init__(self, folder: Path, name: str = "org/name") -> None:
        self.name, self.revision = name, "main"
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.refuse: tuple[int, str] | None = None
        self.renamed: str | None = None
        self.drop_after: int | None = None
        self.wrong_size: str | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Answers for ``hub``, which a subclass sets."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def answer(self, *, with_body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.refuse is not None:
            status, code = self.hub.refuse
            return self.say(status, b"{}", {"X-Error-Code": code} if code else {}, with_body=with_body)
        if self.hub.renamed is not None and self.hub.renamed in path:
            return self.say(
                307, b"", {"Location": self.hub.url + path.replace(self.hub.renamed, self.hub.name)}, with_body=with_body
            )
        if path.startswith("/api/models/"):
            return self.describe(path.removeprefix("/api/models/"), with_body=with_body)
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name != self.hub.name:
            return self.missing("RepoNotFound", with_body=with_body)
        if revision not in (self.hub.revision, COMMIT):
            return self.missing("RevisionNotFound", with_body=with_body)
        if file not in self.hub.files:
            return self.missing("EntryNotFound", with_body=with_body)
        return self.send_file(file, with_body=with_body)

    def missing(self, code: str, *, with_body: bool) -> None:
        self.say(404, b"{}", {"X-Error-Code": code}, with_body=with_body)

    def describe(self, rest: str, *, with_body: bool) -> None:
        name, tree, revision = rest.partition("/tree/")
        if not tree:
            name, _, revision = rest.partition("/revision/")
        if name != self.hub.name:
            return self.missing("RepoNotFound", with_body=with_body)
        if revision and revision not in (self.hub.revision, COMMIT):
            return self.missing("RevisionNotFound", with_body=with_body)
        if tree:
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in self.hub.files.items()
            ]
            return self.say(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, with_body=with_body)
        siblings = [{"rfilename": file} for file in self.hub.files]
        body = json.dumps(
            {"id": self.hub.name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )
        self.say(200, body.encode(), {"Content-Type": "application/json"}, with_body=with_body)

    def send_file(self, file: str, *, with_body: bool) -> None:
        content = self.hub.files[file]
        size = len(content) + (7 if file == self.hub.wrong_size else 0)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = 0
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.send_response(206 if asked else 200)
        for key, value in {**headers, "Content-Length": str(size - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        body = content[start:]
        if self.hub.drop_after is not None and file.endswith(".safetensors"):
            body, self.hub.drop_after = body[: self.hub.drop_after], None
            self.wfile.write(body)
            return self.hang_up()
        self.wfile.write(body)
        if size > len(content):
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def handler(hub: Hub) -> type[Handler]:
    return type("HandlerOfHub", (Handler,), {"hub": hub})


@contextmanager
def serving(hub: Hub):
    """The hub at a port of its own while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
