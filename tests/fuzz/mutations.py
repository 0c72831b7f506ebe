"""Mutations of bytes that are accepted: what finds most bugs in decoders is nearly right."""

from __future__ import annotations

import random
from collections.abc import Sequence

INTERESTING = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80",
    b"\x28\xb5\x2f\xfd",  # zstd's magic
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\x00\x00\x00\x01\x00",  # msgpack
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f",  # NaN and infinity
    b"[" * 64, b"{", b"-1", b"1e999", b"NaN", b"null", b'"',
    b"9" * 400,
)  # fmt: skip


def mutated(rng: random.Random, pool: Sequence[bytes]) -> bytes:
    """Return one of the pool's after one to four changes."""
    data = bytearray(rng.choice(pool))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        _change(rng, data, pool)
    return bytes(data)


def _change(rng: random.Random, data: bytearray, pool: Sequence[bytes]) -> None:
    at = _place(rng, len(data))
    kind = rng.randrange(8)
    if kind == 0 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[at] = rng.randrange(256)
    elif kind == 2:
        one = rng.choice(INTERESTING)
        data[at : at + len(one)] = one
    elif kind == 3:
        data[at:at] = rng.choice(INTERESTING)
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        del data[at : at + rng.randrange(1, 9)]
    elif kind == 6:
        data += rng.randbytes(rng.randrange(1, 40))
    else:  # The end of another one.
        data[at:] = rng.choice(pool)[at:]


def _place(rng: random.Random, length: int) -> int:
    """Anywhere, and half the time among the first bytes: there are the lengths."""
    return rng.randrange(min(length, 200) if rng.random() < 0.5 else length) if length else 0
