"""A server with the part of the Hugging Face hub's interface that reads datasets, for one repository in a local folder."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NAME = "owner/corpus"
COMMIT = "c0ffee" * 6 + "beef"
DATE = "2026-01-01T00:00:00.000Z"


@contextmanager
def hub(folder):
    """Serve the files of a folder as the dataset `NAME`; yields the endpoint and the requests for contents of files."""
    served = []

    class Handler(_Hub):
        root, requests = folder, served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            files = [{"rfilename": str(each)} for each in self._files()]
            known = {"id": NAME, "sha": COMMIT, "lastModified": DATE, "createdAt": DATE, "tags": [], "private": False}
            self._json({**known, "siblings": files, "disabled": False, "downloads": 0, "likes": 0, "gated": False})
        elif path.startswith(f"{api}/tree/"):
            inside = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self._json(self._tree(inside, "recursive=True" in self.path or "recursive=true" in self.path))
        elif path.startswith(resolve):
            self._content(path.removeprefix(resolve).partition("/")[2])
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 (the name that the server looks for)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = (
            json.loads(body)["paths"]
            if body.startswith("{")
            else [part[6:] for part in unquote(body).split("&") if part.startswith("paths=")]
        )
        self._json([self._entry(self.root / name) for name in asked if (self.root / name).exists()])

    def _files(self):
        return sorted(path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())

    def _tree(self, inside, recursive):
        base = self.root / inside
        found = base.rglob("*") if recursive else base.iterdir()
        return [self._entry(path) for path in sorted(found)]

    def _entry(self, path):
        name = str(path.relative_to(self.root))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {
            "type": "file",
            "path": name,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }

    def _content(self, name):
        if not (self.root / name).is_file():
            self._missing("EntryNotFound")
            return
        content = (self.root / name).read_bytes()
        status, size = 200, len(content)
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1]
            status, headers["Content-Range"] = 206, f"bytes {first}-{int(first) + len(content) - 1}/{size}"
        if self.command == "GET":
            self.requests.append((name, len(content), size))
        self._send(status, content, headers)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "not there"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
