import threading
import time

import pytest
import torch

from rp_lib.stats import in_threads


def test_results_keep_their_order_and_kernels_one_thread():
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []

    def work(k: int) -> int:
        time.sleep(0.01 * (4 - k))  # the first is the last to finish
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return k * k

    assert in_threads(work, iter(range(5))) == [0, 1, 4, 9, 16] and in_threads(work, []) == []
    assert {kernels for _, kernels in seen} == {1} and torch.get_num_threads() == before
    assert threading.get_ident() not in {ident for ident, _ in seen}


def test_an_error_arrives_and_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda k: 1 // k, [1, 0, 2])
    assert torch.get_num_threads() == before
