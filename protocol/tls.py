"""TLS towards a broker, and what to do when it fails."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass

from protocol.broker_url import is_loopback, parse
from protocol.errors import ConfigError

# What OpenSSL says of a certificate: X509_V_ERR_... of x509_vfy.h.
NOT_YET_VALID, EXPIRED = 9, 10
UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
WRONG_NAME = (62, 64)


class _Socket(ssl.SSLSocket):
    """Closed when the handshake fails; paho forgets to."""

    def do_handshake(self, block: bool = False) -> None:
        """Agree on keys, or close."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


@dataclass(frozen=True)
class Tls:
    """Files, as PEM. Without a `ca`, the system's authorities are trusted."""

    ca: str = ""
    certificate: str = ""  # Of this client, where the broker asks for one,
    key: str = ""  # and its private key.

    def context(self) -> ssl.SSLContext:
        """Return what verifies the broker's certificate and its name.

        Raises:
            ConfigError: a file is missing, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            context.sslsocket_class = _Socket
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(name for name in (self.ca, self.certificate, self.key) if name)
            raise ConfigError(
                f"TLS cannot be prepared from {names}: {error}. `ca` is the file ca/ca.pem of the coordinator's folder "
                "(~/.config/sparsefleet there)"
            ) from error
        return context


def demand(url: str, plaintext: bool) -> None:
    """Let a connection leave this machine only encrypted, or where it is said that it need not be.

    Raises:
        ConfigError: it would travel in the clear, password and all.
    """
    if parse(url)[0] == "mqtt" and not is_loopback(url) and not plaintext:
        raise ConfigError(
            f"{url} is not encrypted, and not on this machine: passwords would travel in the clear. Use mqtts:// "
            "and set [broker] ca (docs/security.md); or set [broker] plaintext = true, where the network itself "
            "is encrypted, such as WireGuard"
        )


def explain(error: ssl.SSLError, host: str, port: int, files: Tls) -> str:
    """Return what went wrong and what cures it, for people."""
    where = f"the TLS connection to {host}, port {port} failed: "
    if not isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{where}{error.reason or error}. Does the broker speak TLS on this port? If not, it is "
            "mqtt://; if it asks for a certificate of this client, set [broker] certificate and key"
        )
    code, now = error.verify_code, time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if code == EXPIRED:
        return (
            f"{where}the broker's certificate has expired, by this machine's clock, which says {now} UTC. "
            "If the clock is right, make a new certificate on the coordinator: sparsefleet broker init --renew"
        )
    if code == NOT_YET_VALID:
        return (
            f"{where}the broker's certificate is not valid yet, by this machine's clock, which says {now} UTC. Set the "
            "clock; or use a certificate of `sparsefleet broker init`, which is valid whatever a board's clock says"
        )
    if code in WRONG_NAME:
        return (
            f"{where}the broker's certificate is for other names than {host!r}. Connect by one of those, or add this "
            f"one on the coordinator: sparsefleet broker init --name {host}"
        )
    if code in UNKNOWN_ISSUER:
        trusted = f"the authority in {files.ca}" if files.ca else "an authority that this system trusts"
        return (
            f"{where}the broker's certificate was not issued by {trusted}. Copy ca/ca.pem of the coordinator's folder "
            "(~/.config/sparsefleet there) to this machine, and set [broker] ca"
        )
    return f"{where}{error.verify_message}"
