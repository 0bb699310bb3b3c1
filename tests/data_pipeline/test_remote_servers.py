"""Stores that fail while they are listed, and web servers that say little about their files or cannot send parts of them."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import make_texts, write_jsonl
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from object_store import endpoint, store  # noqa: F401 (fixtures)

from data_pipeline.errors import DataError
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.readers.remote import version_of
from data_pipeline.tasks import join, task
from data_pipeline.tasks.task import cut_into_tasks, require_unmodified

pytestmark = pytest.mark.slow
NAMES = ("a/x.jsonl", "b/x.jsonl", "b/c/y.jsonl", "b/c/d/x.jsonl", ".hidden/x.jsonl", "b/.x.jsonl", "top.jsonl")
PATTERNS = ("", "/*", "/*/*.jsonl", "/b*/*", "/*/c/*", "/**/x.jsonl", "/b/**", "/*/c/**/x.jsonl", "/**/c/*", "/.h*/*")


class Server(ThreadingHTTPServer):
    """A web server of files in memory.

    Attributes:
        files: content by path.
        headers: sent with each answer.
        ranges: "sent", "refused" in a header, or "ignored".
        requests: method and path of those that were answered.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.headers, self.ranges, self.requests = {}, {}, "sent", []

    def put(self, name, content):
        """Write a file; returns its URL."""
        self.files[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        content, code = self.server.files.get(self.path), 200
        if content is None:
            code, content = 404, b""
        elif self.server.ranges == "sent" and (asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            code, content = 206, content[int(asked[1]) : int(asked[2] or len(content)) + 1]
        self.send_response_only(code)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if self.server.ranges == "refused":
            self.send_header("Accept-Ranges", "none")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def tree(tmp_path):
    for name in NAMES:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text('{"text": "some text"}\n')
    return tmp_path / "tree"


@pytest.fixture
def memory(tree, monkeypatch):
    """A copy in a store that is listed folder by folder, as `find` and `walk` of fsspec do unless a library has its own."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "find", AbstractFileSystem.find)
    MemoryFileSystem().put(f"{tree}/", "/data", recursive=True)
    return "memory://data"


def found(value, root):
    return [str(path).removeprefix(str(root)) for path in resolve_input(value).files]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_files_are_found_as_in_a_local_folder(store, tree, memory, pattern):  # noqa: F811
    local = found(f"{tree}{pattern}", tree)
    assert local
    assert found(f"{memory}{pattern}", memory) == local
    url = store.upload(tree, "data")
    store.put("data/b/", b"")  # how consoles mark a folder
    store.put("data/b//x.jsonl", b"")
    assert [name for name in found(f"{url}{pattern}", url) if name != "/b//x.jsonl"] == local


def fail_at(folder, error):
    """A method that lists, and fails at one folder."""

    def failing(real):
        def listed(fs, path, *args, **kwargs):
            if path.strip("/") == folder:
                raise error
            return real(fs, path, *args, **kwargs)

        return listed

    return failing


@pytest.mark.parametrize("pattern", ["/*/*.jsonl", "/b*/*", "/*/c/*"])
def test_a_pattern_fails_where_a_bucket_cannot_be_listed(store, tree, pattern, monkeypatch):  # noqa: F811
    from s3fs import S3FileSystem

    url = store.upload(tree, "data")
    failing = fail_at("corpus/data/b", OSError(16, "Please reduce your request rate. (SlowDown)"))
    monkeypatch.setattr(S3FileSystem, "_lsdir", failing(S3FileSystem._lsdir))
    with pytest.raises(DataError, match=r"--input s3://corpus/data/.*SlowDown"):
        resolve_input(f"{url}{pattern}")
    assert found(f"{url}/a*/*", url) == ["/a/x.jsonl"]  # where it need not be listed


@pytest.mark.parametrize("pattern", ["", "/*/*.jsonl", "/**/x.jsonl"])
def test_an_input_fails_where_a_folder_cannot_be_listed(memory, pattern, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "ls", fail_at("data/b", PermissionError("no"))(MemoryFileSystem.ls))
    with pytest.raises(DataError, match="permission denied"):
        resolve_input(f"{memory}{pattern}")
    assert found(f"{memory}/a/**", memory) == ["/a/x.jsonl"]


@pytest.mark.parametrize("url", ["s3://", "https://", "gs:///", "hf://", "memory:////"])
def test_a_url_of_nothing_is_refused(prepare, tmp_path, url):
    result = prepare("--input", url, "--output", tmp_path / "data")
    assert result.code == 2 and f"{url}: names no bucket or host" in result.err


def edited(content):
    """The same size, and the same beginning and end."""
    middle = content.index(b"lattice", len(content) // 2)
    return content[:middle] + b"LATTICE" + content[middle + 7 :]


LATER = {"Last-Modified": "Fri, 02 Jan 2026 00:00:00 GMT"}
TELLING = [{"ETag": '"1"'}, {"Content-MD5": "1"}, {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}]


@pytest.fixture
def content(tmp_path):
    return write_jsonl(tmp_path / "r.jsonl", make_texts(1500)).read_bytes()


def output_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".idx")}


@pytest.mark.parametrize("headers", TELLING, ids=lambda headers: next(iter(headers)))
def test_what_a_server_says_of_a_version_is_used(prepare, server, content, tmp_path, headers):
    server.headers = headers
    url, output = server.put("r.jsonl", content), tmp_path / "data"
    words = ("--input", url, "--output", output)
    assert prepare(*words, "--stage", "tokens").code == 0
    server.put("r.jsonl", edited(content))
    server.headers = LATER if "Last-Modified" in headers else dict.fromkeys(headers, '"2"')
    again = prepare(*words)
    assert again.code == 0, again.err
    assert prepare("--input", url, "--output", tmp_path / "fresh").code == 0
    assert output_bytes(output) == output_bytes(tmp_path / "fresh")


def test_without_a_version_documents_are_read_again_in_the_next_run(prepare, server, content, tmp_path, monkeypatch):
    url, output = server.put("r.jsonl", content), tmp_path / "data"
    words = ("--input", url, "--output", output, "--workers", 2)

    def stop(*args):
        raise DataError("stopped before the output was there")

    with monkeypatch.context() as patch:
        patch.setattr(join, "join", stop)
        assert "stopped" in prepare(*words).err
    assert list((tmp_path / "data.work" / "tokens").iterdir())
    task._this_run.cache_clear()  # as in another process
    server.put("r.jsonl", edited(content))
    again = prepare(*words)
    assert again.code == 0, again.err
    assert prepare("--input", url, "--output", tmp_path / "fresh").code == 0
    assert output_bytes(output) == output_bytes(tmp_path / "fresh")


@pytest.mark.parametrize("stage", ["start", "tokens", "join"])
def test_stages_refuse_files_without_a_version(prepare, server, content, tmp_path, stage):
    url = server.put("r.jsonl", content)
    result = prepare("--input", url, "--output", tmp_path / "data", "--stage", stage)
    assert result.code == 2 and f"{url}: the server tells neither an ETag nor when" in result.err


def test_a_size_that_differs_is_a_change(server):
    url = server.put("r.jsonl", b'{"text": "some text"}\n')
    cut = cut_into_tasks([resolve_input(url)])[0]
    require_unmodified(cut)
    server.put("r.jsonl", b'{"text": "some text, and more"}\n')
    with pytest.raises(DataError, match=f"{url} was modified"):
        require_unmodified(cut)


def test_an_empty_version_is_none():
    assert version_of({"ETag": "", "LastModified": "2026"}) == "2026"
    assert version_of({"ETag": ""}) == version_of({}) == ""


def test_rejected_lines_do_not_open_the_file_anew(prepare, server, texts, tmp_path):
    server.headers = TELLING[0]
    lines = [json.dumps({"text": text}) for text in texts]
    bad = 40
    url = server.put("r.jsonl", "\n".join([*lines, *['{"text": '] * bad, ""]).encode())
    result = prepare("--input", url, "--output", tmp_path / "data", "--max-rejected", 0.5)
    assert result.code == 0, result.err
    methods = [method for method, _ in server.requests]
    assert methods.count("GET") >= bad  # each line is read again
    assert methods.count("HEAD") < bad / 2


def test_an_empty_file_is_read_as_empty(prepare, server, content, tmp_path):
    server.headers = TELLING[0]
    urls = server.put("empty.jsonl", b""), server.put("r.jsonl", content)
    words = [word for url in urls for word in ("--input", url)]
    result = prepare(*words, "--output", tmp_path / "data", "--accept-broken-files")
    assert result.code == 0, result.err


@pytest.mark.parametrize("ranges", ["refused", "ignored"])
def test_a_server_without_ranges_is_told(prepare, server, content, tmp_path, ranges):
    server.ranges = ranges
    url = server.put("r.jsonl", content)
    result = prepare("--input", url, "--output", tmp_path / "data")
    assert result.code == 2 and "the server does not send parts of files (ranges); download the file" in result.err
