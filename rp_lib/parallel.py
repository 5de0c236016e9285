"""Several independent computations of numbers at once, in threads of one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

# Each worker holds some blocks of resamples (see :data:`rp_lib.resampling.BLOCK`): more of them cost memory.
MOST = 4


T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]``, as many at once as there are cores, at most :data:`MOST`.

    Numpy and torch leave Python's lock while they compute. Their own kernels run on one thread each meanwhile: cores
    are then not shared twice, and sums come out the same on any number of cores.
    """
    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with threadpool_limits(1), ThreadPoolExecutor(max(1, min(cores, MOST, len(items)))) as pool:
        torch.set_num_threads(1)
        try:
            return list(pool.map(function, items))
        finally:
            torch.set_num_threads(before)
