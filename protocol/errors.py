"""The exceptions of sparsefleet: who is wrong decides the branch.

    SparsefleetError
    |-- UserError              the person at the keyboard can cure it; shown without a traceback
    |   |-- ConfigError          a file or flag: unknown key, wrong type, impossible value
    |   |-- DataError            the examples: missing file, NaN, labels out of range
    |   |-- ArtifactError        an artifact folder: wrong digest, foreign version, no parity
    |   |-- RuntimeMissing       onnxruntime or the op library is not what was asked for
    |   |-- OutOfMemory          a task's plan exceeds the device's budget
    |   `-- OverBudget           a task takes more time or energy than the device allows
    |-- ProtocolError          the peer sent something it must not; logged, dropped, counted
    |   |-- MalformedMessage     cannot be decoded, or violates the schema
    |   |-- LimitExceeded        larger than was agreed or declared
    |   |-- DigestMismatch       the bytes are not those that were announced
    |   |-- UnknownMask          refers to a mask this side does not hold
    |   `-- NotAdmitted          nobody knows who said it: it counts against nobody
    |       |-- Replayed           it was said before
    |       |-- Cloned             two devices say it with one key
    |       `-- Dismissed          the device is not let in, and may be told why
    `-- TransportError         the world: broker gone, refused, timed out

A bug of ours is none of these: it is left to crash, with its traceback.
"""


class SparsefleetError(Exception):
    """Base of all of them."""


class UserError(SparsefleetError):
    """Something the user can cure. The text says what failed, where, why, and what to do next."""


class ConfigError(UserError):
    """A configuration file or flag is wrong."""


class DataError(UserError):
    """The examples are missing or unusable."""


class ArtifactError(UserError):
    """An artifact folder is damaged, foreign, or not faithful to its PyTorch module."""


class RuntimeMissing(UserError):
    """The requested runtime or the op library is absent or unsuitable."""


class OutOfMemory(UserError):
    """A task would take more memory than the device may give it."""


class OverBudget(UserError):
    """A task takes more time or energy than the device allows it."""


class ProtocolError(SparsefleetError):
    """The peer violated the protocol."""


class MalformedMessage(ProtocolError):
    """Bytes that do not follow the schema."""


class LimitExceeded(ProtocolError):
    """Something is larger than agreed."""


class DigestMismatch(ProtocolError):
    """Bytes whose SHA-256 is not the announced one."""


class UnknownMask(ProtocolError):
    """A body that names a mask which the receiver does not hold; the sender may send it in full."""


class NotAdmitted(ProtocolError):
    """Unsigned, forged, garbled, or of a device that is not let in: anybody may have sent it."""


class Replayed(NotAdmitted):
    """Said before: by the device, and now by the broker or by somebody who recorded it."""


class Cloned(NotAdmitted):
    """Two devices that run at the same time have one key: a card was copied after its first start."""


class Dismissed(NotAdmitted):
    """The device has shown who it is, and is not let in. `session` is its own, so that it can be told."""

    def __init__(self, reason: str, session: int) -> None:
        """Say why."""
        super().__init__(reason)
        self.session = session


class TransportError(SparsefleetError):
    """The broker cannot be reached, or refused us."""
