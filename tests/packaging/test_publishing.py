"""`make publish`, against an index of this machine: everything that is complete, or nothing."""

import os
import subprocess
import sys
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SDK = "proto", "client"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheels and sdists of the SDK, and a wheel of another version."""
    folder = tmp_path_factory.mktemp("dist")
    for project in SDK:
        command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", folder]
        subprocess.run([*command, ROOT / project], check=True)
    (folder / "stn_client-0.0.1-py3-none-any.whl").write_bytes(b"of long ago")
    return folder


class Index(HTTPServer):
    """Takes uploads as a package index does, and writes them to a folder.

    Attributes:
        credentials: What each upload showed.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Upload)
        self.folder, self.credentials = folder, []


class Upload(BaseHTTPRequestHandler):
    def do_POST(self):
        length, kind = int(self.headers["Content-Length"]), self.headers["Content-Type"]
        form = message_from_bytes(
            b"Content-Type: " + kind.encode() + b"\n\n" + self.rfile.read(length)
        )
        for part in form.get_payload():
            if part.get_filename():
                content = part.get_payload(decode=True)
                (self.server.folder / part.get_filename()).write_bytes(content)
        self.server.credentials.append(self.headers["Authorization"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments):
        """Says nothing."""


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(dist, *arguments, index=None):
    """Runs the command as the Makefile does."""
    command = [sys.executable, ROOT / ".ci/publish.py", "--dist", dist, *arguments]
    if index is not None:
        command += ["--repository-url", f"http://127.0.0.1:{index.server_port}/legacy/"]
    given = {"TWINE_USERNAME": "__token__", "TWINE_PASSWORD": "secret", "NO_PROXY": "127.0.0.1"}
    environment = os.environ | given
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_distributions_pass_the_checks_of_an_index(dist):
    """And nothing is uploaded where nobody is asked to."""
    done = publish(dist, *SDK, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 4
    assert "Uploading" not in done.stdout


def test_this_version_is_uploaded(dist, index):
    """Wheels and sdists of the named projects, byte for byte, and no others."""
    done = publish(dist, *SDK, index=index)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = {path.name: path.read_bytes() for path in index.folder.iterdir()}
    there = {path.name: path.read_bytes() for path in dist.iterdir() if "-0.0.1-" not in path.name}
    assert sent == there
    assert len(index.credentials) == 4
    assert all(index.credentials)


def test_nothing_is_uploaded_unless_all_is_there(dist, index):
    """The engine was not built."""
    done = publish(dist, index=index)
    assert done.returncode == 1
    assert "expected the wheel of stn-engine 0.1.0, got none. Run `make wheels`." in done.stderr
    assert not list(index.folder.iterdir())


def test_nothing_is_uploaded_that_an_index_would_refuse(dist, index, tmp_path_factory):
    """A broken file ends it before the first upload."""
    folder = tmp_path_factory.mktemp("broken")
    for path in dist.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (broken,) = folder.glob("stn_client-0.1.0-*.whl")
    broken.write_bytes(b"no archive")
    done = publish(folder, *SDK, index=index)
    assert done.returncode != 0
    assert not list(index.folder.iterdir())
