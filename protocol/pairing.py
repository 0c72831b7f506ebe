"""How a device and a coordinator come to know each other's key: by a code that both were told by a person.

    coordinator                               device
      Hello(key C)        (retained)      ->
                                          <-  Pair(key D, C, nonce, proof of the code over fleet, name, D, C, nonce)
      Paired(nonce, proof of the code over the same)  ->

Each proof covers both keys, so that nobody in between can put in a key of its own, and neither tells the code. A code
has 80 bits: who records the proofs cannot find it by trying, so that no cleverer exchange is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from protocol.errors import ConfigError

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: nothing that is easily misread.
CODE_LENGTH = 16
NONCE_BYTES = 16
_MISREAD = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})


def new_code() -> str:
    """Return a code of 80 random bits, as 7K3M-0XQZ-94TB-HW2V."""
    return _shown("".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH)))


def read_code(text: str) -> str:
    """Return a code that a person has typed as `new_code` writes it.

    Raises:
        ConfigError: it cannot be one. The text does not repeat it.
    """
    code = text.strip().upper().translate(_MISREAD)
    if len(code) != CODE_LENGTH or not set(code) <= set(ALPHABET):
        raise ConfigError(
            f"the pairing code has {len(code)} characters, or strange ones; it looks like 7K3M-0XQZ-94TB-HW2V. "
            "Make one on the coordinator with: sparsefleet fleet code"
        )
    return _shown(code)


def _shown(code: str) -> str:
    return "-".join(code[i : i + 4] for i in range(0, CODE_LENGTH, 4))


@dataclass(frozen=True)
class Exchange:
    """What both sides must agree on."""

    fleet: str
    client_id: str
    device_key: bytes
    coordinator_key: bytes
    nonce: bytes

    def device_proof(self, code: str) -> bytes:
        """Return what the device shows, 32 bytes."""
        return self._proof(b"device", code)

    def coordinator_proof(self, code: str) -> bytes:
        """Return what the coordinator shows, 32 bytes."""
        return self._proof(b"coordinator", code)

    def _proof(self, side: bytes, code: str) -> bytes:
        names = (b"sparsefleet pairing 1", side, self.fleet.encode(), self.client_id.encode())
        fields = (*names, self.device_key, self.coordinator_key, self.nonce)
        covered = b"".join(len(one).to_bytes(2, "big") + one for one in fields)
        return hmac.digest(code.encode(), covered, hashlib.sha256)


def is_proof(given: bytes, expected: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given, expected)
