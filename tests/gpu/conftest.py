"""The oracle: one process on the CPU, by plain gradients."""

import pytest

from tests.gpu.on_device import CASE, NUM_STEPS
from tests.support.strategies import Found, by_definition


@pytest.fixture(scope="session")
def oracle() -> Found:
    return by_definition(CASE, range(NUM_STEPS))
