"""Ed25519 keys (RFC 8032): who a device or a coordinator is. The private half never leaves its folder.

A device makes its key when it first starts, so that two cards written from one image have two keys.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.durable import replace_file
from protocol.errors import ConfigError, DataError

KEY = "key.pem"


class Key:
    """A private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        """Use `generate` or `load_or_make`."""
        self._private = private
        self.public: bytes = private.public_key().public_bytes_raw()  # 32 bytes.

    @classmethod
    def generate(cls) -> Key:
        """Return a new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_make(cls, folder: Path) -> Key:
        """Return the key in `folder`/key.pem; made and written durably, for its owner only, if there is none.

        Raises:
            DataError: it cannot be written, or is damaged. A new one in its place would be a stranger.
            ConfigError: others may read it.
        """
        path = folder / KEY
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                replace_file(path, cls.generate()._pem(), 0o600)
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"the private key {path} can be read by others: chmod 600 {path}")
            private = load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise DataError(f"the key {path} cannot be read or written: {error}") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"the key {path} is damaged ({error}); {ANEW}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise DataError(f"the key {path} is not an Ed25519 key; {ANEW}")
        return cls(private)

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private.sign(data)

    def _pem(self) -> bytes:
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


ANEW = "remove it for a new one, and pair anew"


def is_signed_by(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the key `public` (32 bytes; anything else is no key) signed the data."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """Return what people compare: 64 bits of the key's SHA-256, as 3f2a-91bc-00d1-77e4."""
    digits = hashlib.sha256(public).hexdigest()
    return "-".join(digits[i : i + 4] for i in range(0, 16, 4))
