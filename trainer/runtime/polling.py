"""Waiting for work that one rank may be slow at: polling in short turns, so that no rank blocks in a collective.

In each turn every rank looks at its own work for about a second, and then all ranks exchange one integer. A rank that
waits for its disk or its server for hours is therefore never mistaken for a lost one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from enum import IntEnum
from typing import TypeVar

from trainer.runtime.collectives import Runtime

TURN_SECONDS = 1.0
"""How long a rank looks at its own work before it reports to the others again."""

Value = TypeVar("Value")


class Progress(IntEnum):
    """How far a rank's work is. The maximum over ranks decides."""

    DONE = 0
    BUSY = 1
    FAILED = 2


def poll(runtime: Runtime, look: Callable[[], int], *, busy: int) -> int:
    """Call `look` on every rank, turn by turn, until the maximum over ranks is not `busy`. Collective.

    Args:
        runtime: the processes.
        look: waits for about a turn at most, and returns how far this rank is.
        busy: the value that asks for another turn.

    Returns:
        The maximum of the last turn, the same on every rank.
    """
    while (found := runtime.all_reduce_max(look())) == busy:
        pass
    return found


def run_while_polling(runtime: Runtime, work: Callable[[], Value]) -> Value:
    """Run `work` in a thread while this one polls; return its result, or raise on every rank. Collective.

    If any rank fails, all ranks stop waiting and raise; unfinished work is abandoned.

    Args:
        runtime: the processes.
        work: may take as long as it likes, and must not communicate.

    Raises:
        UserError: `work` raised it on any rank; the same on every rank.
    """
    if runtime.world_size == 1:
        return work()
    result = Future[Value]()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    def look() -> Progress:
        wait([result], TURN_SECONDS)
        if not result.done():
            return Progress.BUSY
        return Progress.FAILED if result.exception() else Progress.DONE

    threading.Thread(target=run, daemon=True).start()
    poll(runtime, look, busy=Progress.BUSY)
    with runtime.raise_together():
        if result.done():
            return result.result()
    raise AssertionError("a rank that failed raises on every rank")
