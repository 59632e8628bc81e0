"""Run a function on several real processes over gloo, with a hard time limit."""

import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Container
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Forked from a clean server that has torch in memory already: a rank starts in a tenth of a second, not in five.
_context = multiprocessing.get_context("forkserver")
PRELOADED = "torch._inductor.compile_fx torch.distributed.optim torch.distributed.fsdp accelerate deepspeed"
_context.set_forkserver_preload([*PRELOADED.split(), "tests.support.problem"])
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed asks for it while it is imported.


class RankFailed(AssertionError):
    """A rank raised, died or did not answer in time."""


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *arguments: Any,
    limit_seconds: float = 60,
    lost: Container[int] = (),
) -> list[Any]:
    """Call `function(rank, *arguments)` on every rank of a gloo group. Returns what each gave back, in rank order.

    The function is a module-level one; its answer can be pickled. Of the ranks in `lost` none is awaited, nor returned.
    Every rank is gone when this returns or raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world_size):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_rank_main, args=(rank, world_size, f"{folder}/store", theirs, function, arguments)
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            deadline = time.monotonic() + limit_seconds
            return [_answer(rank, ours, deadline) for rank, (_, ours) in enumerate(ranks) if rank not in lost]
        finally:
            for process, ours in ranks:
                process.kill()
                process.join()
                ours.close()


def _answer(rank: int, ours: Connection, deadline: float) -> Any:
    if not ours.poll(max(deadline - time.monotonic(), 0)):
        raise RankFailed(f"rank {rank} did not answer in time")
    try:
        failure, answer = ours.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} died without a word") from None
    if failure:
        raise RankFailed(f"rank {rank} raised:\n{failure}")
    return torch.load(io.BytesIO(answer), weights_only=False)


def _rank_main(
    rank: int,
    world_size: int,
    store: str,
    theirs: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(Path(store)), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=20),
        )
        # As bytes: a tensor sent as such lives in shared memory that ends with this process.
        answer = io.BytesIO()
        torch.save(function(rank, *arguments), answer)
        theirs.send(("", answer.getvalue()))
    except BaseException:
        theirs.send((traceback.format_exc(), b""))
    finally:
        theirs.close()
        if dist.is_initialized():
            dist.destroy_process_group()
