"""Garbage is collected in the steps that were asked for, and in no other."""

import gc
import weakref

import pytest

from trainer.training.garbage import collected_together


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_lives_until_the_step_in_which_all_ranks_collect() -> None:
    alive = []
    with collected_together(3) as before_step:
        frozen = gc.get_freeze_count()
        for step in range(1, 8):
            before_step(step)
            alive.append([weakref.ref(Cycle()), step])
            [Cycle() for _ in range(2000)]  # Python would collect by itself.
            if step in (2, 3, 5, 6):
                alive[-1].append([seen() is not None for seen, *_ in alive])
    assert (frozen > 0, gc.isenabled(), gc.get_freeze_count()) == (True, True, 0)
    assert [found for _, _, *seen in alive for found in seen] == [
        [True, True],
        [False, False, True],
        [False, False, True, True, True],
        [False, False, False, False, False, True],
    ]


@pytest.mark.parametrize("enabled", [True, False])
def test_without_the_setting_python_decides_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        for every_steps in (None, 2):
            with collected_together(every_steps) as before_step:
                before_step(2)
                assert gc.isenabled() == (enabled and every_steps is None)
            assert gc.isenabled() == enabled
    finally:
        gc.enable()
