"""Clocks and memory measure what they say."""

import os
import sys
import time

import pytest
import torch

from fovea.bench import measure
from fovea.bench.measure import Time
from fovea.bench.workload import SMALL


def test_sleeping_costs_wall_and_no_cpu():
    t = measure.timed(time.sleep, 0.2)
    assert t.wall_s >= 0.2
    assert t.cpu_s < 0.1


def test_median_takes_each_clock_by_itself():
    assert measure.median([Time(1, 30), Time(3, 10), Time(2, 20)]) == Time(2, 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_sees_an_allocation_that_is_gone():
    base = measure.resident_mb()
    measure.reset_peak()
    block = torch.ones(25_000_000)  # 100 MB
    del block
    measure.release()
    peak = measure.peak_mb() - base
    assert 95 < peak < 140
    measure.reset_peak()
    assert measure.peak_mb() - base < 60


def test_matmul_shapes_hold_every_weight_of_one_layer_of_each_kind():
    shapes = measure.matmul_shapes(SMALL, prefix=10, patches=20)
    assert sum(2 * i * o for rows, i, o in shapes if rows == 10) * SMALL.layers == SMALL.linear
    assert sum(i * o for rows, i, o in shapes if rows == 20) == 4 * 128**2 + 3 * 128 * 384


def test_matmul_rate_is_a_rate():
    rate = measure.matmul_rate([(256, 256, 256)], seconds=0.05)
    assert 1e8 < rate < 1e13


def test_one_thread_on_one_core_and_as_before_afterwards():
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with measure.single_thread():
        assert torch.get_num_threads() == 1
        assert cores is None or len(os.sched_getaffinity(0)) == 1
    assert torch.get_num_threads() == threads
    assert cores is None or os.sched_getaffinity(0) == cores
