"""Raise one error that says which other process of the run is lost and where, and leave a record of it."""

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

from trainer.errors import (
    STDERR,
    LostPeerError,
    PublicError,
    SharedError,
    StoppedError,
    UserError,
    say_error,
)
from trainer.files import make_folder
from trainer.runtime.faults.place import raised_at, reason, running_at, tells_of_a_lost_peer
from trainer.runtime.faults.records import ON_STDERR, FaultRecord, Process, write_record
from trainer.runtime.faults.roll_call import RollCall, Verdict
from trainer.runtime.faults.watch import Watch


@contextmanager
def guarded(rank: int, world_size: int, watch: Watch, folder: Path | None, *, waits_on_gpu: bool) -> Iterator[None]:
    """Turn the loss of another process inside the block into one clear error, and answer the roll calls of others.

    Args:
        rank: this process.
        world_size: number of processes.
        watch: knows the phase of this process.
        folder: where to leave the record, stacks and flight records (see `records`); None: nowhere.
        waits_on_gpu: the main thread may wait for another process inside CUDA, where no exception reaches it. Then a
            thread ends the process when a step is late and a roll call finds a process lost.

    Raises:
        LostPeerError: another process is gone or stuck, or has failed.
    """
    this = _GuardedProcess(rank, world_size, watch, folder)
    ended = threading.Event()
    if waits_on_gpu:
        threading.Thread(target=_alarm, args=(watch, this.end_if_somebody_is_lost, ended), daemon=True).start()
    try:
        yield
    except BaseException as error:
        this.report(error)
        raise
    finally:
        ended.set()
        this.roll_call.end()


class _GuardedProcess:
    """This process: what it says when others call it, and what it leaves when it fails or loses another one.

    Constructing it is collective.

    Args:
        rank: its rank; constructed on the main thread.
        world_size: number of processes.
        watch: knows its phase.
        folder: where to leave records; None: nowhere.

    Attributes:
        roll_call: answers the calls of others.
    """

    def __init__(self, rank: int, world_size: int, watch: Watch, folder: Path | None) -> None:
        self._watch, self._world_size = watch, world_size
        self._main_thread = threading.get_ident()
        self._process = Process(rank=rank, host=socket.gethostname(), pid=os.getpid())
        self._leaver = _Leaver(folder)
        peers = [self._process] * world_size
        dist.all_gather_object(peers, self._process)
        store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
        self.roll_call = RollCall(store, rank, peers, self._answer)

    def end_if_somebody_is_lost(self) -> None:
        """Call the roll, and end this process with a message if it finds that another one is lost."""
        found = self._record()
        self._leaver.leave(found)
        verdict = self.roll_call.call()
        if verdict.is_certain:
            self.roll_call.say_last(found.words, failed=False)
            say_error(self._leave_lost_peer(found, verdict))
            os._exit(LostPeerError.exit_code)

    def report(self, error: BaseException) -> None:
        """Tell the others of an error that ends this process, and leave a record of it.

        Raises:
            LostPeerError: the error comes of another process that is lost.
        """
        found = self._record(error)
        if tells_of_a_lost_peer(error):
            self.roll_call.say_last(found.words, failed=False)
            raise LostPeerError(self._leave_lost_peer(found, self.roll_call.call(), error)) from error
        if not isinstance(error, PublicError | KeyboardInterrupt):
            found = found.model_copy(update={"message": f"{type(error).__name__}: {found.message}"})
        if not isinstance(error, SharedError | StoppedError | KeyboardInterrupt):
            self._leaver.leave(found.model_copy(update={"kind": "failed"}), error=error)
        self.roll_call.say_last(found.words, failed=True)

    def _answer(self) -> str:
        found = self._record()
        self._leaver.leave(found)
        return found.words

    def _record(self, error: BaseException | None = None) -> FaultRecord:
        return FaultRecord(
            **self._process.model_dump(),
            world_size=self._world_size,
            kind="asked",
            phase=self._watch.phase,
            step=self._watch.step,
            place=raised_at(error) if error else running_at(self._main_thread),
            message=reason(error) if error else "",
        )

    def _leave_lost_peer(self, found: FaultRecord, verdict: Verdict, error: BaseException | None = None) -> str:
        """Leave the record of a lost peer. Returns the message."""
        here = f"rank {self._process.rank} on {self._process.host}"
        words = f"{here} stopped: {verdict.words}. Found {found.words}"
        found = found.model_copy(update={"kind": "lost_peer", "lost": list(verdict.lost)})
        self._leaver.leave(found, words, error)
        return words


def leave_start(folder: Path | None, rank: int, world_size: int, error: RuntimeError) -> None:
    """Leave the record of a peer that was lost before the processes had met."""
    record = FaultRecord(
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        world_size=world_size,
        kind="lost_peer",
        phase="the start",
        step=None,
        place=raised_at(error),
        message=reason(error),
    )
    _Leaver(folder).leave(record, error=error)


def _alarm(watch: Watch, act: Callable[[], None], ended: threading.Event) -> None:
    """Call `act` when a step is late, and again each time that it is late by another limit."""
    while not ended.wait(1.0):
        if time.monotonic() >= watch.deadline:
            act()
            watch.restart()


class _Leaver:
    """Leaves what this process knows of a fault, in a folder, or on stderr where the folder cannot be written."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writing = threading.Lock()
        self._is_final = False

    def leave(self, record: FaultRecord, message: str = "", error: BaseException | None = None) -> None:
        """Leave a record, the last collectives, and the error's traceback or the stacks of all threads.

        A process that was asked where it is keeps the record of its own fault, if there is one already.
        """
        with self._writing:
            is_final = record.kind != "asked"
            if self._folder is None or (self._is_final and not is_final):
                return
            self._is_final |= is_final
            text = f"{record} of {record.world_size}: {record.kind} {record.words}\n{message}\n"
            text += "".join(traceback.format_exception(error) if error else [])
            try:
                make_folder(self._folder)
                write_record(self._folder, record)
                flight = torch._C._distributed_c10d._dump_fr_trace()  # type: ignore[attr-defined]
                (self._folder / f"flight_{record.rank}").write_bytes(flight)
                with (self._folder / f"rank_{record.rank:05d}.txt").open("w") as stream:
                    _write(text, stream, stream if error is None else None)
            except (OSError, UserError):  # Perhaps the disk is the fault.
                text = f"{ON_STDERR}{record.model_dump_json()}\n{text}"
                _write(text, sys.stderr, STDERR if error is None else None)


def _write(text: str, stream: TextIO, stacks: TextIO | int | None) -> None:
    stream.write(text)
    stream.flush()
    if stacks is not None:
        faulthandler.dump_traceback(stacks)
