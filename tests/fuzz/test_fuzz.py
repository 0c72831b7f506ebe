"""Every decoder, fed with mutated bytes: it returns, or refuses with its own error, in little time and memory.

SPARSEFLEET_FUZZ_S is the whole time, shared among the decoders (`make fuzz`: 30 minutes; 60 s otherwise). What
once failed lies in corpus/, a file each, named after its decoder, and is tried first for ever. The seed is new each
time; a failure prints it, and leaves the bytes beside the corpus' files.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutations import mutated

CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("SPARSEFLEET_FUZZ_S", "60")) / len(DECODERS)
MOST_S = 0.1  # Of CPU time for one input.


def check(name: str, decoder: Decoder, data: bytes, origin: str) -> bool:
    """Return whether the bytes were accepted; fail on any error but the decoder's own."""
    begin_s = time.thread_time()
    try:
        decoder.decode(data)
        is_accepted = True
    except decoder.refuses_with:
        is_accepted = False
    except Exception as error:
        path = CORPUS / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        raise AssertionError(f"{name}: {error!r} for {path} ({origin})") from error
    # Once more when it seems slow: the first time may have been a garbage collection.
    if time.thread_time() - begin_s > MOST_S and origin != "again":
        begin_s = time.thread_time()
        check(name, decoder, data, "again")
        assert time.thread_time() - begin_s <= MOST_S, f"{name}: {len(data)} bytes take too long ({origin})"
    return is_accepted


@pytest.mark.parametrize("name", DECODERS)
def test_the_seeds_are_accepted_and_what_once_failed_is_refused(name):
    decoder = DECODERS[name]
    assert decoder.seeds
    assert all(check(name, decoder, seed, "seed") for seed in decoder.seeds)
    for path in CORPUS.glob(f"{name.replace(' ', '-')}-*.bin"):
        check(name, decoder, path.read_bytes(), path.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_rubbish_is_refused(name):
    decoder, seed = DECODERS[name], random.randrange(2**32)
    rng, pool = random.Random(seed), list(DECODERS[name].seeds)
    end_s, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < end_s:
        data = mutated(rng, pool)
        number += 1
        is_accepted = check(name, decoder, data, f"seed {seed}, input {number}")
        if is_accepted and len(pool) < 500 and len(data) < 10_000 and data not in pool:
            pool.append(data)  # What is still accepted leads deeper than what is not.
    assert number > 100
