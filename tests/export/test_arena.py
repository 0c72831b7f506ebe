"""The arena's rules, with addresses and sizes by hand; tests/edge_client/test_memory.py measures."""

from __future__ import annotations

from onnx import helper

from export.arena import FIRST_REGION_BYTES, Arena
from export.liveness import resident_bytes

MB = 1 << 20


def test_a_freed_chunk_is_used_again_and_its_bytes_count_once():
    arena = Arena()
    arena.free(arena.allocate(300_000))
    arena.allocate(200_000)
    assert arena.resident_bytes == 300_000


def test_free_neighbours_are_joined():
    arena = Arena()
    first, second = arena.allocate(256_000), arena.allocate(256_000)
    arena.free(first)
    arena.free(second)
    arena.allocate(512_000)
    assert arena.resident_bytes == 512_000


def test_neighbours_are_kept_apart_by_what_is_alive():
    """Two free chunks around a third do not make one: only the end of the region is long enough."""
    arena = Arena()
    a, _, c = (arena.allocate(100 * 256) for _ in range(3))
    barrier = arena.allocate(256)
    arena.free(a)
    arena.free(c)
    arena.allocate(200 * 256)
    assert barrier is not None
    assert arena.resident_bytes == 501 * 256


def test_a_chunk_that_is_less_than_twice_as_long_is_handed_out_whole():
    arena = Arena()
    whole, _ = arena.allocate(300 * 256), arena.allocate(256)
    arena.free(whole)
    arena.allocate(200 * 256)
    arena.allocate(100 * 256)  # Would fit behind it, were the chunk split.
    assert arena.resident_bytes == 401 * 256


def test_the_smallest_chunk_that_fits_is_taken():
    arena = Arena()
    large, _, small, _ = (arena.allocate(n * 256) for n in (400, 1, 210, 1))
    arena.free(large)
    arena.free(small)
    arena.allocate(200 * 256)
    arena.allocate(400 * 256)
    assert arena.resident_bytes == 612 * 256


def test_regions_double_and_a_tensor_does_not_cross_them():
    """1 MB holds one tensor of 0.75 MB; the next two lie in the second region of 2 MB."""
    arena = Arena()
    for _ in range(3):
        arena.allocate(FIRST_REGION_BYTES * 3 // 4)
    assert arena.resident_bytes == 3 * FIRST_REGION_BYTES * 3 // 4
    arena.allocate(2 * MB)  # Not into what is left of the second, but into a third, of 4 MB.
    assert arena.resident_bytes == 3 * FIRST_REGION_BYTES * 3 // 4 + 2 * MB


def test_an_empty_tensor_takes_nothing():
    arena = Arena()
    arena.free(arena.allocate(0))
    assert arena.resident_bytes == 0


def test_a_tensor_dies_behind_its_last_reader():
    """A chain x, a, b, c, and a is read again at the end: a, b and c are alive at once, then d beside a."""
    nodes = [
        helper.make_node("Op", inputs, [output])
        for inputs, output in ((["x"], "a"), (["a"], "b"), (["b"], "c"), (["c"], "d"), (["d", "a"], "result"))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    kb = 1024
    # a | b | c, then d where b was; the result is the caller's own.
    assert resident_bytes(model, dict.fromkeys("abcd", 64 * kb)) == 3 * 64 * kb
    # Without the last reader a dies with b's birth, and c takes its place.
    del model.graph.node[4]
    assert resident_bytes(model, dict.fromkeys("abcd", 64 * kb)) == 2 * 64 * kb


def test_of_two_equal_regions_the_second_is_filled_first_by_the_next_step():
    """The system maps it below the first one, and best fit takes the lower of two chunks of one size."""
    arena, region = Arena(), 2 * FIRST_REGION_BYTES
    large, less = region - 1024, region - 4096
    chunks = [arena.allocate(large), arena.allocate(less)]
    assert arena.resident_bytes == large + less
    for chunk in chunks:
        arena.free(chunk)
    arena.allocate(large)
    assert arena.resident_bytes == 2 * large
