"""LocalServer and the real `stn-server` command."""

import os
import urllib.request

import numpy as np
import pytest

from stn_client import Affine, Client
from stn_client.local import LocalServer


def test_local_server_serves_a_warp(local_server):
    """What comes back from the process is the input of an identity warp."""
    feature_map = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    with Client(local_server.target) as client:
        warped = client.warp(feature_map, Affine(np.eye(2, 3)[None]), coordinates="pixel")
    np.testing.assert_array_equal(warped, feature_map)


def test_local_server_tells_its_addresses(local_server):
    """Target and metrics are addresses of the loopback interface; the metrics answer."""
    assert local_server.targets == (local_server.target,)
    assert local_server.target.startswith("127.0.0.1:")
    with urllib.request.urlopen(local_server.metrics) as answer:
        assert b"stn_build_info" in answer.read()


@pytest.mark.slow
def test_local_server_stops_when_asked(tmp_path):
    """stop() ends the process with exit code 0, however often; the log is in its file."""
    log = tmp_path / "log"
    server = LocalServer(log=log)
    assert [server.stop(), server.stop()] == [0, 0]
    assert '"event": "serving"' in log.read_text()


@pytest.mark.slow
def test_local_server_with_a_wrong_flag_does_not_start(tmp_path):
    """The error has the exit code, and the log says which flag it was."""
    log = tmp_path / "log"
    match = r"stn-server: expected it to start, got exit code 2\. Its log says why\."
    with pytest.raises(RuntimeError, match=match):
        LocalServer("--no-such-flag", log=log)
    assert "--no-such-flag" in log.read_text()


def test_local_server_without_the_command_says_how_to_get_it(monkeypatch, tmp_path):
    """Neither beside the interpreter nor on the PATH: the error names the package."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"stn-server: .* pip install .* \./server"):
        LocalServer()
