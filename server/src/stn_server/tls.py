"""TLS for the server's addresses, with certificates that can be renewed while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NoReturn

import grpc

from stn_server.config import ConfigError, TlsConfig
from stn_server.reload import Watch


class Certificates:
    """Certificates from files; new connections get those that the last look at the files found.

    Raises:
        ConfigError: A file cannot be read, or the files do not belong together.
    """

    def __init__(self, config: TlsConfig, watch: Watch) -> None:
        paths = [path for path in (config.certificate, config.key, config.client_ca) if path]
        self._files = watch.value("certificates", paths, lambda: _certificates(config))
        self._from_callers = bool(config.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Returns new credentials for one address; each notices renewed files by itself."""
        given = self._files.current()

        def renewed() -> Any:  # None: nothing new; the stubs forget that
            nonlocal given
            current = self._files.current()
            if current is given:
                return None
            given = current
            return given

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            given, renewed, require_client_authentication=self._from_callers
        )
        return credentials


def _certificates(config: TlsConfig) -> grpc.ServerCertificateConfiguration:
    _check(config)
    pair = (Path(config.key).read_bytes(), Path(config.certificate).read_bytes())
    authorities = Path(config.client_ca).read_bytes() if config.client_ca else None
    return grpc.ssl_server_certificate_configuration([pair], authorities)


def _check(config: TlsConfig) -> None:
    """Loads the files by Python's own TLS first, since gRPC accepts any bytes and fails later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would be asked about on the terminal; the empty password fails instead.
        context.load_cert_chain(config.certificate, config.key, password="")
    except OSError as error:
        _reject("certificate", "a certificate and its unencrypted key", error)
    if config.client_ca:
        try:
            context.load_verify_locations(config.client_ca)
        except OSError as error:
            _reject("client_ca", "certificates of authorities", error)


def _reject(name: str, expected: str, error: OSError) -> NoReturn:
    raise ConfigError(f"tls.{name}: expected {expected}, got {error}.") from error
