"""A process that loses another one says which and where, and leaves what is needed to see why."""

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist

from trainer.errors import STDERR, LostPeerError, PublicError, say_error
from trainer.runtime.faults.place import raised_at, reason, running_at, tells_of_a_lost_peer
from trainer.runtime.faults.roll_call import RollCall, Verdict
from trainer.runtime.faults.watch import Watch

FAULTS = "faults"
"""Folder in a run's: for each rank that found a fault, or was asked about one, where it was (rank_00000.txt), and its
last collectives (flight_0, as torch's flight recorder writes them)."""


@contextmanager
def guarded(rank: int, world_size: int, watch: Watch, folder: Path | None, *, waits_on_gpu: bool) -> Iterator[None]:
    """Turn the loss of another process inside the block into one clear error, and answer when others lose one.

    Args:
        rank: this process.
        world_size: number of processes.
        watch: knows what this process is doing.
        folder: where to leave stacks and flight records; None: nowhere.
        waits_on_gpu: whether the main thread may wait for another process where no exception reaches it. Then a thread
            ends the process in a step that is late, if a roll call finds somebody gone.

    Raises:
        LostPeerError: another process is gone or stuck, or has failed.
    """
    names = [""] * world_size
    host, main_thread = socket.gethostname(), threading.get_ident()
    dist.all_gather_object(names, f"rank {rank} on {host} (process {os.getpid()})")

    def stopped(words: str, verdict: Verdict) -> str:
        return f"rank {rank} on {host} stopped: {verdict.words}. Found {words}"

    def leave(words: str, error: BaseException | None = None) -> None:
        if folder is not None:
            _leave(folder, rank, f"{names[rank]} of {world_size} {words}", error)

    def answer() -> str:
        words = f"in {watch.what}, {running_at(main_thread)}"
        leave(words)
        return words

    def end_if_somebody_is_lost() -> None:
        words = answer()
        verdict = roll_call.call()
        if verdict.is_certain:
            roll_call.say_last(words, failed=False)
            say_error(stopped(words, verdict))
            os._exit(LostPeerError.exit_code)

    roll_call = RollCall(dist.group.WORLD.get_group_store(), rank, names, answer)  # type: ignore[union-attr]
    ended = threading.Event()
    if waits_on_gpu:
        threading.Thread(target=_alarm, args=(watch, end_if_somebody_is_lost, ended), daemon=True).start()
    try:
        yield
    except BaseException as error:
        place = f"in {watch.what}, {raised_at(error)}"
        if tells_of_a_lost_peer(error):
            words = f"{place}: {reason(error)}"
            roll_call.say_last(words, failed=False)
            message = stopped(words, roll_call.call())
            leave(f"{words}\n{message}", error)
            raise LostPeerError(message) from error
        words = f"{place}: {reason(error)}"
        if not isinstance(error, PublicError | KeyboardInterrupt):
            words = f"{place}: {type(error).__name__}: {reason(error)}"
            leave(f"failed {words}", error)
        roll_call.say_last(words, failed=True)
        raise
    finally:
        ended.set()
        roll_call.end()


def _alarm(watch: Watch, act: Callable[[], None], ended: threading.Event) -> None:
    """Act when a step is late, and again when it is later still."""
    while not ended.wait(1.0):
        if time.monotonic() >= watch.deadline:
            act()
            watch.met()


def _leave(folder: Path, rank: int, words: str, error: BaseException | None) -> None:
    """Leave where this process is; on stderr where the folder cannot be written, since the disk may be at fault."""
    text = words + "\n" + "".join(traceback.format_exception(error) if error else [])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"flight_{rank}").write_bytes(torch._C._distributed_c10d._dump_fr_trace())  # type: ignore[attr-defined]
        with (folder / f"rank_{rank:05d}.txt").open("w") as stream:
            _write(text, stream, stream if error is None else None)
    except OSError:
        _write(text, sys.stderr, STDERR if error is None else None)


def _write(text: str, stream: TextIO, stacks: TextIO | int | None) -> None:
    stream.write(text)
    stream.flush()
    if stacks is not None:
        faulthandler.dump_traceback(stacks)
