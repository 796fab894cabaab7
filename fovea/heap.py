"""What the C library holds of the system for a sequence of allocations: live bytes, and the holes between them.

A small model of glibc's malloc in one thread, as torch uses it on a CPU (posix_memalign, 64 bytes): large blocks are mapped and go back
when freed; the others come from one growing heap, best fit, free neighbours merged. Freeing a mapped block of at most 32 MiB raises the
size from which blocks are mapped, so most activations end up in the heap, where a hole stays resident until something fits into it.

Alignment leaves slivers of 32 to 112 bytes between blocks. Where small objects are cached, as they are unless `UNPINNED` is set, every
sliver soon holds one, and a hole cannot merge with the hole before it.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort

PAGE, HEAD, SLACK = 4096, 16, 96
"""SLACK: what a block must be larger than asked for, so that an aligned piece fits."""
FIRST_MAPPED, MOST_MAPPED = 128 << 10, 32 << 20
UNPINNED = "glibc.malloc.tcache_count=0"
"""What GLIBC_TUNABLES may say; then small objects are taken from where they fit, and slivers merge with the holes beside them."""


def as_set() -> Heap:
    """A heap that behaves as this process's does."""
    return Heap(pinned=UNPINNED not in os.environ.get("GLIBC_TUNABLES", "").split(":"))


class Heap:
    """`take` and `give` blocks; `resident` is what the process holds, `peak` the most it held.

    Args:
      pinned: the sliver before every block is in use.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self.mapped_from, self.mapped = FIRST_MAPPED, 0
        self.top = self.end = 0  # the heap is [0, end); from `top` on it is free
        self.holes: list[tuple[int, int]] = []  # (size, address), sorted
        self.at: dict[int, int] = {}  # address of a hole -> its end
        self.ending: dict[int, int] = {}  # end of a hole -> its address
        self.returned = 0  # bytes of holes that the system has taken back
        self.peak = 0

    @property
    def resident(self) -> int:
        return self.end - self.returned + self.mapped

    def take(self, size: int) -> tuple[int, int]:
        """(address, length) of a block; address -1 when it is mapped."""
        if size + SLACK >= self.mapped_from:
            length = -(-(size + SLACK) // PAGE) * PAGE
            self.mapped += length
            block = -1, length
        else:
            block = self._fit(-(-(size + HEAD) // 64) * 64, size + SLACK)
        self.peak = max(self.peak, self.resident)
        return block

    def give(self, block: tuple[int, int]) -> None:
        address, length = block
        if address < 0:
            self.mapped -= length
            if self.mapped_from < length <= MOST_MAPPED:
                self.mapped_from = length
            return
        self._merge(address, address + length)
        if self.end - self.top > 2 * self.mapped_from:
            self.end = self.top

    def trim(self) -> None:
        """malloc_trim: all that is free goes back."""
        self.end = self.top
        self.returned = sum(size for size, _ in self.holes)

    def _fit(self, length: int, need: int) -> tuple[int, int]:
        i = bisect_left(self.holes, (need, 0))
        if i == len(self.holes):
            address, self.top = self.top, self.top + length
            self.end = max(self.end, self.top)
            return address, length
        size, address = self.holes[i]
        self._forget(address)
        self.returned = max(0, self.returned - length)
        if size > length:
            self._hole(address + length, address + size)
        return address, length

    def _merge(self, start: int, stop: int) -> None:
        if start in self.ending and not self.pinned:
            start = self._forget(self.ending[start])[0]
        if stop in self.at:
            stop = self._forget(stop)[1]
        if stop == self.top:
            self.top = start
        else:
            self._hole(start, stop)

    def _hole(self, start: int, stop: int) -> None:
        insort(self.holes, (stop - start, start))
        self.at[start], self.ending[stop] = stop, start

    def _forget(self, start: int) -> tuple[int, int]:
        stop = self.at.pop(start)
        del self.ending[stop]
        del self.holes[bisect_left(self.holes, (stop - start, start))]
        return start, stop
