"""Run a measurement on every rank of a process group on this machine."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def on_every_rank(processes: int, measure: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `measure(*arguments)` in one process per rank, with the environment that torch's launchers set.

    Returns:
        The answers in the order of the ranks.

    Raises:
        ChildProcessError: a process ended without an answer; its traceback is printed above.
    """
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        process = context.Process(target=_run, args=(environment, theirs, measure, arguments))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        return [ours.recv() for _, ours in ranks]
    except EOFError:
        raise ChildProcessError("a process ended without an answer") from None
    finally:
        for process, _ in ranks:
            process.join(timeout=60)
            process.kill()


def _run(
    environment: dict[str, str], answer: Connection, measure: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= environment
    answer.send(measure(*arguments))
