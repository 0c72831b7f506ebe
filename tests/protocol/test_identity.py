from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from protocol.errors import ConfigError, DataError
from protocol.identity import KEY, Key, fingerprint, is_signed_by

# RFC 8032, section 7.1, test 2: an independent truth.
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_a_signature_is_that_of_the_standard():
    assert is_signed_by(PUBLIC, SIGNATURE, b"\x72")
    assert not is_signed_by(PUBLIC, SIGNATURE, b"\x73")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_what_is_no_key_has_signed_nothing(public):
    assert not is_signed_by(public, SIGNATURE, b"\x72")


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    before = os.umask(0)
    try:
        first = Key.load_or_make(tmp_path / "identity")
    finally:
        os.umask(before)
    again = Key.load_or_make(tmp_path / "identity")
    assert again.public == first.public
    assert is_signed_by(first.public, again.sign(b"x"), b"x")
    assert stat.S_IMODE((tmp_path / "identity" / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700
    assert Key.load_or_make(tmp_path / "other").public != first.public


def test_a_key_that_others_may_read_is_refused(tmp_path):
    Key.load_or_make(tmp_path)
    (tmp_path / KEY).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Key.load_or_make(tmp_path)


def test_a_damaged_key_is_never_replaced_in_silence(tmp_path):
    """Wherever it was cut: a new key would make the device a stranger."""
    Key.load_or_make(tmp_path)
    path = tmp_path / KEY
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="pair anew"):
            Key.load_or_make(tmp_path)
        assert path.read_bytes() == whole[:end]


def test_a_place_that_takes_no_key_is_named():
    with pytest.raises(DataError, match="/proc/nowhere"):
        Key.load_or_make(Path("/proc/nowhere"))


def test_a_fingerprint_is_short_enough_to_read_aloud():
    # printf of the 32 bytes above | sha256sum
    assert fingerprint(PUBLIC) == "39f7-13d0-a644-253f"
