"""A child of a fork can go on calling the library, as the workers of a data loader do."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT CHECKED: a fork, which this system does not have")
def test_a_child_does_not_wait_for_the_threads_of_its_parent(targets: dict[str, Any]) -> None:
    C = targets["c"]
    x, y = np.ones(1_000_000, np.float32), np.zeros(1_000_000, np.float32)
    before = C.get_num_threads()
    C.set_num_threads(2)
    try:
        for _ in range(3):                                               # the second is repeated from a plan
            expected = C.mse_loss(x, y)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if C.mse_loss(x, y) == expected and C.mse_loss(x[1:], y[1:]) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        C.set_num_threads(before)
