"""The model of the C library's heap, by hand and against its own bookkeeping."""

import random
from itertools import pairwise

from fovea.heap import FIRST_MAPPED, UNPINNED, Heap, as_set

K = 1024


def test_large_blocks_are_mapped_until_one_was_freed():
    heap = Heap()
    big = heap.take(FIRST_MAPPED)
    assert big[0] == -1
    assert heap.resident == FIRST_MAPPED + 4096, "a page for what alignment needs"
    heap.give(big)
    assert (heap.resident, heap.peak) == (0, FIRST_MAPPED + 4096)
    assert heap.take(FIRST_MAPPED - 1000)[0] == 0, "such a size comes from the heap from now on"


def test_a_hole_stays_until_something_fits():
    heap = Heap()
    a, b = heap.take(64 * K), heap.take(64 * K)
    assert heap.resident == 2 * (64 * K + 64)
    heap.give(a)
    assert heap.resident == 2 * (64 * K + 64), "b lies above it"
    assert heap.take(64 * K)[0] == b[0] + b[1], "as large a block does not fit: alignment needs more"
    assert heap.take(32 * K)[0] == 0, "a smaller one does"


def test_neighbours_merge_and_a_free_end_goes_back():
    heap = Heap()
    blocks = [heap.take(100 * K) for _ in range(4)]
    heap.give(blocks[0])
    heap.give(blocks[1])
    assert heap.take(199 * K)[0] == -1, "this size is mapped"
    assert heap.take(120 * K)[0] == 0, "two holes side by side are one"
    heap.give(blocks[2])
    heap.give(blocks[3])
    assert heap.end == heap.top == 120 * K + 64, "256 KiB or more at the end are returned"


def test_trimming_returns_holes_and_using_them_takes_them_again():
    heap = Heap()
    a, _ = heap.take(100 * K), heap.take(10 * K)
    heap.give(a)
    heap.trim()
    assert heap.resident == 10 * K + 64
    heap.take(50 * K)
    assert heap.resident == 60 * K + 2 * 64


def test_blocks_never_overlap_and_all_memory_is_accounted_for():
    heap, draw = Heap(), random.Random(0)
    live: list[tuple[int, int]] = []
    for _ in range(3000):
        if live and draw.random() < 0.48:
            heap.give(live.pop(draw.randrange(len(live))))
        else:
            live.append(heap.take(int(2 ** draw.uniform(4, 22))))
        inside = sorted(b for b in live if b[0] >= 0)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(inside))
        holes = sum(size for size, _ in heap.holes)
        assert sum(n for _, n in inside) + holes == heap.top
        assert heap.resident <= heap.peak
    for b in live:
        heap.give(b)
    assert heap.top == 0
    assert heap.mapped == 0


def test_a_pinned_hole_grows_forward_only():
    free, pinned = Heap(), Heap(pinned=True)
    for heap in (free, pinned):
        a, b, _, _ = (heap.take(60 * K) for _ in range(4))
        heap.give(a)
        heap.give(b)
        assert heap.take(100 * K)[0] == (0 if heap is free else 4 * (60 * K + 64)), "two holes, or one"
    assert pinned.peak > free.peak


def test_the_heap_is_as_the_environment_says(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert as_set().pinned
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.arena_max=1:{UNPINNED}")
    assert not as_set().pinned
