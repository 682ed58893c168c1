"""Authorities and certificates for tests, made on the spot."""

from __future__ import annotations

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFETIME = dt.timedelta(days=1)


class Authority:
    """Signs certificates for this machine.

    Args:
        folder: Where its files go.
        name: What they begin with.

    Attributes:
        ca: PEM file of its own certificate.
    """

    def __init__(self, folder, name):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        certificate = _sign(self._name, self._key, self._name, self._key, is_authority=True)
        self.ca = folder / f"{name}.ca.pem"
        self.ca.write_bytes(_pem(certificate))

    def issue(self, name, password=None):
        """Certificate and key for localhost, as PEM files; whatever they held is replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(_named(name), key, self._name, self._key)
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        hidden = serialization.NoEncryption()
        if password is not None:
            hidden = serialization.BestAvailableEncryption(password)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden
        paths[0].write_bytes(_pem(certificate))
        paths[1].write_bytes(key.private_bytes(*form))
        return paths


def _named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def _sign(subject, key, issuer, issuer_key, *, is_authority=False):
    now = dt.datetime.now(dt.UTC)
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFETIME)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
