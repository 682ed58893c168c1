"""TLS for the server's addresses, with certificates that can be renewed while it runs."""

from __future__ import annotations

import ssl
from typing import NoReturn

from stn_server.config import ConfigError, TlsConfig
from stn_server.reload import Watch


class Certificates:
    """Certificates from files; new connections get those that the last look at the files found.

    Raises:
        ConfigError: A file cannot be read, or the files do not belong together.
    """

    def __init__(self, config: TlsConfig, watch: Watch) -> None:
        paths = [path for path in (config.certificate, config.key, config.client_ca) if path]
        self._contexts = watch.value("certificates", paths, lambda: _context(config))

    def context(self) -> ssl.SSLContext:
        """Returns the TLS of a connection that begins now."""
        return self._contexts.current()


def _context(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    try:
        # An encrypted key would be asked about on the terminal; the empty password fails instead.
        context.load_cert_chain(config.certificate, config.key, password="")
    except OSError as error:
        _reject("certificate", "a certificate and its unencrypted key", error)
    if config.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.client_ca)
        except OSError as error:
            _reject("client_ca", "certificates of authorities", error)
    return context


def _reject(name: str, expected: str, error: OSError) -> NoReturn:
    raise ConfigError(f"tls.{name}: expected {expected}, got {error}.") from error
