"""Waiting for other processes, on machines of any speed."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something holds. The limit is for what never will: how long it takes proves nothing."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it does not happen in {seconds:.0f} s"
        time.sleep(0.01)
