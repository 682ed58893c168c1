"""Certificates that a server cannot start with."""

import ssl

import pytest

from stn_server.config import ConfigError, TlsConfig
from stn_server.events import Events, Listener
from stn_server.reload import Watch
from stn_server.tls import Certificates
from support.certificates import Authority


@pytest.fixture
def files(tmp_path):
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    return {"certificate": str(certificate), "key": str(key), "client_ca": str(authority.ca)}


@pytest.fixture
def told():
    return []


class Told(Listener):
    def __init__(self, told):
        self._told = told

    def file_changed(self, *facts):
        self._told.append(facts)


def tls(told, **files):
    watch = Watch(Events(Told(told)))
    return Certificates(TlsConfig(**files), watch).context()


def test_files_that_belong_together_are_taken(files, told):
    """With callers' certificates or without."""
    assert tls(told, **files).verify_mode is ssl.CERT_REQUIRED
    del files["client_ca"]
    assert tls(told, **files).verify_mode is ssl.CERT_NONE
    assert told == []


@pytest.mark.parametrize("broken", ["missing", "garbage", "strange"])
@pytest.mark.parametrize("name", ["certificate", "key", "client_ca"])
def test_files_that_do_not_are_refused(files, told, tmp_path, name, broken):
    """At the start, and not at the first connection."""
    strange_files = Authority(tmp_path, "stranger").issue("strange")
    strange = dict(zip(("certificate", "key"), strange_files, strict=True))
    strange["client_ca"] = strange["key"]  # not a certificate
    garbage = tmp_path / "garbage"
    garbage.write_text("no PEM")
    files[name] = str({"missing": "none.pem", "garbage": garbage, "strange": strange[name]}[broken])
    at = "client_ca" if name == "client_ca" else "certificate"
    with pytest.raises(ConfigError, match=rf"^tls\.{at}: expected certificate|expected a certifi"):
        tls(told, **files)


def test_a_key_behind_a_password_is_refused_and_not_asked_about(told, tmp_path):
    """A server has no terminal to be asked on."""
    certificate, key = Authority(tmp_path, "authority").issue("server", password=b"secret")
    with pytest.raises(ConfigError, match=r"^tls\.certificate: .* and its unencrypted key, got"):
        tls(told, certificate=str(certificate), key=str(key))
