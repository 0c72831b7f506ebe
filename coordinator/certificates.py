"""A small certificate authority of our own, for the broker's TLS: no outsider must vouch for a laptop's name.

    <home>/ca/ca.pem        what devices get to know (public)
    <home>/ca/key.pem       what signs; never leaves this folder
    <home>/broker/          the broker's certificate and key, for the names and addresses that it is reached by

Everything is valid from 1970 on: boards have no clock of their own, and one that stands in the past must still be
able to connect, and be told the time.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.broker_url import local_name
from protocol.durable import replace_file
from protocol.errors import ConfigError

BEGIN = datetime(1970, 1, 1, tzinfo=timezone.utc)
CA_YEARS, YEARS = 30, 10
CA, KEY, SERVER, SERVER_KEY = "ca.pem", "key.pem", "server.pem", "server.key"


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Write both durably, the key for its owner only."""
        for folder in (certificate.parent.parent, certificate.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(key, self.key, 0o600)
        replace_file(certificate, self.certificate)


class Authority:
    """What vouches for the broker, and for devices where they log in by certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Use `load_or_make`."""
        self._certificate, self._key = certificate, key

    @classmethod
    def load_or_make(cls, home: Path) -> Authority:
        """Return the one in `home`/ca; made if there is none.

        Raises:
            ConfigError: it cannot be read or written. Devices know the one that is there: it is not replaced.
        """
        folder = home / "ca"
        try:
            if not (folder / CA).exists():
                _new_authority().write(folder / CA, folder / KEY)
            certificate = x509.load_pem_x509_certificate((folder / CA).read_bytes())
            key = load_pem_private_key((folder / KEY).read_bytes(), None)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificate authority in {folder} cannot be used: {error}. Restore it; or remove it, make a new "
                f"one with `sparsefleet broker init`, and bring its {CA} to each device"
            ) from error
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The certificate that others trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    def server(self, names: list[str]) -> Pair:
        """Return a certificate for a broker that is reached by these names and addresses."""
        return self._issue(names[0], x509.SubjectAlternativeName(list(map(_general, names))), server=True)

    def client(self, name: str) -> Pair:
        """Return a certificate by which this device logs in; its name is the MQTT user name."""
        return self._issue(name, None, server=False)

    def _issue(self, name: str, names: x509.SubjectAlternativeName | None, server: bool) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(name, YEARS, key.public_key(), self._certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return _pair(builder.sign(self._key, SHA256()), key)


def server_files(home: Path, names: list[str], renew: bool = False) -> tuple[Path, Path]:
    """Return the broker's certificate and key; made where they are missing, or do not cover all these names.

    Raises:
        ConfigError: they cannot be read or written.
    """
    certificate, key = home / "broker" / SERVER, home / "broker" / SERVER_KEY
    covered = _covered(certificate)
    if renew or not key.exists() or not set(names) <= covered or not covered:
        Authority.load_or_make(home).server(sorted({*names, *covered})).write(certificate, key)
    return certificate, key


def own_names() -> list[str]:
    """Return the names and addresses by which this machine may be reached, now."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), local_name()}
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET:  # Those of IPv6 change by the day.
                names.add(address.address)
    return sorted(names)


def _covered(path: Path) -> set[str]:
    if not path.exists():
        return set()
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}. Make a new one: sparsefleet broker init --renew"
        ) from error
    addresses = found.get_values_for_type(x509.IPAddress)
    return {*found.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} is neither a host name nor an address: {error}") from error


def _new_authority() -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"sparsefleet on {socket.gethostname()}"[:64]
    builder = _builder(name, CA_YEARS, key.public_key(), _name(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        False, False, False, False, False, True, True, False, False
    )  # It signs certificates.
    builder = builder.add_extension(usage, critical=True)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return _pair(builder.add_extension(own, critical=False).sign(key, SHA256()), key)


def _builder(
    name: str, years: int, public: ec.EllipticCurvePublicKey, issuer: x509.Name
) -> x509.CertificateBuilder:
    end = datetime.now(timezone.utc) + timedelta(days=365 * years)
    builder = x509.CertificateBuilder().subject_name(_name(name[:64])).issuer_name(issuer).public_key(public)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(BEGIN).not_valid_after(end)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), pem)
