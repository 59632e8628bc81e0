"""train.collect_garbage_every_steps: Python's garbage collector runs in the same steps on all ranks.

By default each process collects when Python decides. In every step one of many ranks does, and all others wait for it.
torchtitan collects in this way, too.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collected_together(every_steps: int | None) -> Iterator[Callable[[int], None]]:
    """Give the block a function to be called before each step with the step's number, from 1.

    Inside the block nothing is collected but by that function. What exists already is not looked through again.

    Args:
        every_steps: train.collect_garbage_every_steps.
    """
    if every_steps is None:
        yield lambda step: None
        return
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def before_step(step: int) -> None:
        if step % every_steps == 0:
            gc.collect()

    try:
        yield before_step
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
