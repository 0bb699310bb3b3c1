"""An S3 server in this process for tests of remote files."""

import pytest

BUCKET = "corpus"
KEYS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """A bucket."""

    def __init__(self, filesystem):
        self._fs = filesystem

    def put(self, name, content):
        """Write an object; returns its URL."""
        self._fs.pipe(f"{BUCKET}/{name}", content)
        return f"s3://{BUCKET}/{name}"

    def upload(self, folder, name):
        """Copy a folder; returns its URL."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def remove(self, name):
        """Delete an object."""
        self._fs.rm(f"{BUCKET}/{name}")

    def empty(self, name):
        """Delete all objects of a folder."""
        self._fs.rm(f"{BUCKET}/{name}", recursive=True)


@pytest.fixture(scope="session")
def endpoint():
    """URL of a server; the tests are skipped where the packages of the extra `dev` are missing."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint, monkeypatch):
    """An empty bucket, which this process and those that it starts can use."""
    from s3fs import S3FileSystem

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    S3FileSystem.clear_instance_cache()
    filesystem = S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)
    filesystem.mkdir(BUCKET)
    yield Store(filesystem)
    filesystem.rm(BUCKET, recursive=True)
    S3FileSystem.clear_instance_cache()
