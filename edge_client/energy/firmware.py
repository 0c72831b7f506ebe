"""The Raspberry Pi's firmware, asked through its mailbox device as vcgencmd does, without a process.

A vcgencmd process costs 38 ms a sample; the ioctl is a message to the firmware. /dev/vcio_gencmd is
preferred, because whoever may open /dev/vcio may also write the GPU's memory.

In a recorded tree the device is a folder instead, with one file of the answer to each command.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from edge_client.energy.source import Unavailable

DEVICES = ("dev/vcio_gencmd", "dev/vcio")
# _IOWR(100, 0, char *): direction 3, size of a pointer, type 100, number 0.
REQUEST = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8
GET_GENCMD_RESULT = 0x00030080
_ANSWER_BYTES = 4096
# Size of the buffer, request code, tag, size of its value, request/response, error; value; end tag.
_HEAD = struct.Struct("<6I")
_BUFFER_BYTES = _HEAD.size + _ANSWER_BYTES + 4

_CURE = "add the user to the group video (sudo usermod -aG video $USER, then log in again)"


class Firmware:
    """An open mailbox."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `open`."""
        self.path, self._descriptor = path, descriptor

    @staticmethod
    def open(root: Path = Path("/")) -> Firmware | Unavailable:
        """Return the first device that opens, or why none does."""
        refused = ""
        for name in DEVICES:
            path = root / name
            try:
                if path.is_dir():
                    return Firmware(path, -1)
                return Firmware(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
            except OSError as error:
                refused = refused or f"{path} cannot be opened ({error.strerror})"
        if refused:
            return Unavailable("the firmware's mailbox", refused, _CURE)
        where = " nor ".join(str(root / name) for name in DEVICES)
        return Unavailable(
            "the firmware's mailbox",
            f"neither {where} exists",
            "only a Raspberry Pi with its own kernel has them",
        )

    def ask(self, command: str) -> str:
        """Return the firmware's answer to a vcgencmd command.

        Raises:
            OSError: the device failed.
            ValueError: the firmware does not know the command.
        """
        answer = self._recorded(command) if self._descriptor < 0 else self._exchange(command)
        if answer.startswith("error="):
            raise ValueError(f"the firmware answers {command!r} with {answer.strip()}")
        return answer

    def _recorded(self, command: str) -> str:
        return (self.path / command).read_text()

    def _exchange(self, command: str) -> str:
        text = command.encode() + b"\0"
        buffer = bytearray(_BUFFER_BYTES)
        _HEAD.pack_into(buffer, 0, _BUFFER_BYTES, 0, GET_GENCMD_RESULT, _ANSWER_BYTES, 0, 0)
        buffer[_HEAD.size : _HEAD.size + len(text)] = text
        fcntl.ioctl(self._descriptor, REQUEST, buffer, True)
        if error := struct.unpack_from("<I", buffer, 20)[0]:
            raise ValueError(f"the firmware answers {command!r} with error {error}")
        return (
            bytes(buffer[_HEAD.size : _HEAD.size + _ANSWER_BYTES])
            .split(b"\0", 1)[0]
            .decode("utf-8", "replace")
        )

    def __del__(self) -> None:
        """Close the device."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
