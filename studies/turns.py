"""Time two functions in turns, in a process of its own with one thread.

On a machine that does other work, the ratio of CPU times of neighbouring turns moves least.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar, cast

from studies.replicates import environment, one_thread_each

Step = Callable[[], object]
Found = TypeVar("Found")

MEMORY_BYTES = 16 * 2**30
"""A process that asks for more ends."""


def take_turns(first: Step, second: Step, least: int, most: int, seconds: float) -> list[tuple[float, float]]:
    """Call both functions in turns; return their CPU seconds, turn by turn.

    The first turn is a warm-up and is left out, unless it is the only one.

    Args:
        first: one function.
        second: the other.
        least: how many turns to take after the warm-up, however long they take.
        most: how many turns to take at most, after the warm-up.
        seconds: start no further turn after so many seconds.
    """
    turns: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(turns) <= least or (len(turns) <= most and time.perf_counter() - started < seconds):
        # Alternate which comes first, too: the second one reuses memory that the first has freed.
        if len(turns) % 2:
            turns.append((cpu_seconds(first), cpu_seconds(second)))
        else:
            turns.append((cpu_seconds(second), cpu_seconds(first))[::-1])
    return turns[1:] or turns


def cpu_seconds(step: Step) -> float:
    """Return the CPU seconds of one call."""
    started = time.process_time()
    step()
    return time.process_time() - started


def peak_mib() -> float:
    """Return the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def apart(function: Callable[..., Found], *arguments: object, seconds: float, preload: Sequence[str]) -> Found | str:
    """Return what a function returns in a process of its own, or the reason why it returns nothing.

    Args:
        function: what to call; importable by its name.
        *arguments: its arguments.
        seconds: the process is killed after this time.
        preload: modules that all such processes share. They are imported once, by the server that forks the processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    # The server, which starts with the first process, does not put a folder of the user's before our packages.
    same_path = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with one_thread_each(), environment(same_path):
        process.start()
    theirs.close()
    try:
        return cast(Found | str, ours.recv()) if ours.poll(seconds) else f"over {seconds:.0f} s"
    except EOFError:
        return "died"
    finally:
        process.kill()
        process.join()


def _answer(answer: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        answer.send(function(*arguments))
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        answer.send(f"over {MEMORY_BYTES >> 30} GiB")
