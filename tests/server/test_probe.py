"""The probe: what a health check inside the container runs."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from stn_server.probe import main


@pytest.fixture
def answering(tmp_path):
    """A health service on a port and a socket; what it says can be set."""
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    socket = f"unix:{tmp_path}/stn.sock"
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_insecure_port(socket)
    server.start()
    yield servicer, port, socket
    server.stop(grace=None).wait()


def test_ready_is_zero_however_the_server_listens(answering):
    """A named address, every interface, a socket; without an address, what the settings say."""
    _servicer, port, socket = answering
    assert main([f"127.0.0.1:{port}"], {}) == 0
    assert main([f"0.0.0.0:{port}"], {}) == 0
    assert main([socket], {}) == 0
    assert main([], {"STN_LISTEN": f"0.0.0.0:{port},unix:/none"}) == 0
    assert main([], {"STN_LISTEN": "unix:/none", "STN_ADMIN_LISTEN": socket}) == 0


def test_not_ready_is_one_and_says_so(answering, capsys):
    """A lame duck is not ready."""
    servicer, port, _socket = answering
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main([f"127.0.0.1:{port}"], {}) == 1
    assert capsys.readouterr().err == f"127.0.0.1:{port}: expected SERVING, got NOT_SERVING.\n"


def test_nobody_there_is_one_and_says_so(tmp_path, capsys):
    """A socket that does not exist."""
    assert main([f"unix:{tmp_path}/none.sock"], {}) == 1
    assert "expected SERVING, got UNAVAILABLE." in capsys.readouterr().err


def test_a_probe_takes_no_proxy(answering, monkeypatch):
    """It asks its own container, whatever way the environment names to others."""
    _servicer, port, _socket = answering
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert main([f"127.0.0.1:{port}"], {}) == 0
