"""Which calls go through the HTTP proxy that the environment names."""

import socket
import threading

import pytest

from stn_client import Client, RetryPolicy, UnavailableError
from support.scripted_service import PATIENCE_S

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


class Proxy:
    """Accepts one connection, notes what it is asked first, and hangs up."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE_S)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.asked = ""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        with connection:
            self.asked = connection.recv(1000).decode().splitlines()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.fixture
def proxy(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with Proxy() as running:
        monkeypatch.setenv("http_proxy", running.url)
        yield running


ONCE = RetryPolicy(attempts=1)
HUNG_UP = "(?i)proxy|closed|reset"


def test_proxies_are_not_for_this_machine(proxy, local_server, tmp_path):
    """Whatever the environment says."""
    with Client(local_server.target, retry=ONCE) as client:
        assert client.server_info().ready
    with (
        Client(f"unix:{tmp_path}/none.sock", retry=ONCE) as client,
        pytest.raises(UnavailableError, match=r"none\.sock"),
    ):
        client.server_info()
    assert proxy.asked == ""


@pytest.mark.parametrize("target", ["0.0.0.0:{}", "[::ffff:127.0.0.1]:{}", "ipv4:0.0.0.0:{}"])
def test_proxies_are_not_for_a_server_on_every_address(proxy, local_server, target):
    """Which is what one that listens on every address is called by itself."""
    port = local_server.target.rpartition(":")[2]
    with Client(target.format(port), retry=ONCE) as client:
        assert client.server_info().ready
    assert not proxy.asked


def test_proxies_are_for_other_machines(proxy):
    """As every gRPC client, and most others, do."""
    with (
        Client("stn.invalid:50051", retry=ONCE) as client,
        pytest.raises(UnavailableError, match=HUNG_UP),
    ):
        client.server_info()
    assert proxy.asked == "CONNECT stn.invalid:50051 HTTP/1.1"


def test_proxies_can_be_refused(proxy):
    """With proxy=False, names are looked up here."""
    with (
        Client("stn.invalid:50051", proxy=False, retry=ONCE) as client,
        pytest.raises(UnavailableError, match=r"lookup failed for stn\.invalid"),
    ):
        client.server_info()
    assert proxy.asked == ""


def test_proxies_can_be_wanted_on_this_machine(proxy, local_server):
    """With proxy=True, as for a tunnel that ends here."""
    with (
        Client(local_server.target, proxy=True, retry=ONCE) as client,
        pytest.raises(UnavailableError, match=HUNG_UP),
    ):
        client.server_info()
    assert proxy.asked == f"CONNECT {local_server.target} HTTP/1.1"
