"""TLS for the server's addresses, with certificates that can be renewed while it runs."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import grpc

from stn_server.config import ConfigError, TlsConfig
from stn_server.reload import Reloaded


def server_credentials(
    config: TlsConfig, observe: Callable[[str, str], None]
) -> grpc.ServerCredentials:
    """Credentials that look at the files again whenever somebody connects.

    Raises:
        ConfigError: A file cannot be read, or the files do not belong together.
    """
    paths = [path for path in (config.certificate, config.key, config.client_ca) if path]
    certificates = Reloaded("certificates", paths, lambda: _certificates(config), observe)
    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        certificates.current(),
        certificates.current,
        require_client_authentication=bool(config.client_ca),
    )
    return credentials


def _certificates(config: TlsConfig) -> grpc.ServerCertificateConfiguration:
    _check(config)
    pair = (Path(config.key).read_bytes(), Path(config.certificate).read_bytes())
    authorities = Path(config.client_ca).read_bytes() if config.client_ca else None
    return grpc.ssl_server_certificate_configuration([pair], authorities)


def _check(config: TlsConfig) -> None:
    """Lets Python's own TLS judge the files, since gRPC takes any bytes and fails later."""
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
