"""Processes that read batches ahead, into memory that they share with this one.

Each batch goes to the next worker in turn and comes back in turn, so the number of workers decides nothing but the
speed. A worker that dies or hangs is an error that says so, at once or after a time; one that waits for data that keeps
coming does not hang, and is waited for in turns, so that the trainer can do something else in between.

torch's DataLoader is not used: it raises a worker's death out of a signal handler anywhere in the training step, and
needs /dev/shm and descriptors for every tensor. These workers need a pipe each, and memory that no mount limits.

Shapes: B samples of a batch.
"""

import mmap
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np

from trainer.data.format.faults import out_of_memory
from trainer.errors import UserError

TIMEOUT_SECONDS = 450.0
"""A worker that takes longer than this, and brings nothing nearer, has a hung disk: an error. All else that waits gives
up earlier."""

STOPPED_SECONDS = 120.0
"""For how long a worker may be stopped, by default: a job that is suspended as a whole goes on later."""

TURN_SECONDS = 1.0
"""How long to wait for a batch at a time."""

SLOTS = 2
"""Batches that each worker may have ready or in the making."""

DECODE = "decode a batch"

Found_co = TypeVar("Found_co", covariant=True)


class WorkerError(Exception):
    """A fault of the program in a data worker; its argument holds the worker's traceback."""


class Reader(Protocol[Found_co]):
    """What reads a batch into buffers. It comes to the workers by fork, so nothing of it is copied or sent."""

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        """Fresh buffers of a batch; their shapes and types are all that is asked of them here."""
        ...

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> Found_co:
        """Fill the buffers. Returns what else there is to say of the batch; it is sent, so it should be short."""
        ...

    def progress(self) -> object:
        """Changes while what a worker waits for comes nearer; asked in this process."""
        ...


@dataclass(frozen=True)
class _Worker(Generic[Found_co]):
    pid: int
    tasks: Connection
    slots: list[list[np.ndarray]]


def read_ahead(
    reader: Reader[Found_co],
    sample_ids: Iterable[np.ndarray],
    *,
    batch_size: int,
    workers: int,
    stopped_seconds: float = STOPPED_SECONDS,
) -> Generator[tuple[np.ndarray, list[np.ndarray], Found_co] | None, None, None]:
    """Reads batches in the order of `sample_ids`. Close it to end the workers.

    Args:
        reader: of the data.
        sample_ids: one array of shape (B,) a batch; asked for as far ahead as the workers are.
        batch_size: B.
        workers: processes; 0 reads in this one.
        stopped_seconds: for how long a worker may be stopped, as by SIGSTOP.

    Yields:
        The batch's sample ids, its buffers, which are the caller's to keep, and what the reader said of it; None for
        every TURN_SECONDS in which it has not come. Without workers there is no None.

    Raises:
        UserError: what the reader raised; or a worker died, hung, or was stopped.
    """
    if not workers:
        for sample_ids_B in sample_ids:
            buffers = reader.buffers(batch_size)
            try:
                found = reader.read_into(buffers, sample_ids_B)
            except MemoryError:
                raise out_of_memory(DECODE) from None
            yield sample_ids_B, buffers, found
        return
    batches = iter(sample_ids)
    pool: list[_Worker[Found_co]] = []
    try:
        for number in range(workers):
            try:
                pool.append(_start(reader, batch_size, pool))
            except (OSError, MemoryError) as error:
                raise UserError(
                    f"Data worker {number + 1} of {workers} cannot be started: {error or 'no memory is left'}.\n"
                    f"This machine is short of processes, files or memory. Type data.workers={number}, or ask for more."
                ) from None
        asked: deque[tuple[int, int, np.ndarray]] = deque()
        free = deque((number, slot) for slot in range(SLOTS) for number in range(workers))
        while True:
            for sample_ids_B in islice(batches, len(free)):
                number, slot = free.popleft()
                _send(pool, number, (slot, sample_ids_B))
                asked.append((number, slot, sample_ids_B))
            if not asked:
                return
            number, slot, sample_ids_B = asked.popleft()
            yield from _until_answered(pool[number], reader, stopped_seconds)
            found = _receive(pool, number)
            buffers = [buffer.copy() for buffer in pool[number].slots[slot]]
            free.append((number, slot))
            yield sample_ids_B, buffers, found
    finally:
        for worker in pool:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.tasks.close()


def _start(reader: Reader[Found_co], batch_size: int, before: Sequence[_Worker[Found_co]]) -> _Worker[Found_co]:
    slots = [[_shared(buffer) for buffer in reader.buffers(batch_size)] for _ in range(SLOTS)]
    ours, theirs = Pipe()
    # Forked, also where CUDA is up: a worker touches neither torch nor any other library with threads of its own. Not
    # multiprocessing's Process, which a program that ends in an error would wait for, for ever.
    pid = os.fork()
    if not pid:
        try:
            # While a worker held another's pipe open, that one would not see the trainer's end.
            for connection in (ours, *(worker.tasks for worker in before)):
                connection.close()
            _work(reader, slots, theirs)
        finally:
            os._exit(1)
    theirs.close()
    return _Worker(pid, ours, slots)


def _shared(like: np.ndarray) -> np.ndarray:
    memory = mmap.mmap(-1, max(like.nbytes, 1))
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)


def _work(reader: Reader[Found_co], slots: list[list[np.ndarray]], tasks: Connection) -> None:
    # A signal for the whole job is the trainer's to answer; it may want some more batches before it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    # The trainer's end closes the pipe.
    with suppress(EOFError, OSError):
        while True:
            slot, sample_ids_B = tasks.recv()
            tasks.send(_answer(reader, slots[slot], sample_ids_B))


def _answer(
    reader: Reader[Found_co], buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray
) -> tuple[Found_co | None, Exception | None]:
    try:
        return reader.read_into(buffers, sample_ids_B), None
    except UserError as error:
        return None, error
    except MemoryError:
        return None, out_of_memory(DECODE)
    except Exception:
        return None, WorkerError(f"in a data worker:\n{traceback.format_exc()}")


def _send(pool: Sequence[_Worker[Found_co]], number: int, task: tuple[int, np.ndarray]) -> None:
    try:
        pool[number].tasks.send(task)
    except OSError:
        raise _death(pool, number) from None


def _until_answered(worker: _Worker[Found_co], reader: Reader[Found_co], stopped_seconds: float) -> Iterator[None]:
    before: object
    before, since = None, time.monotonic()
    ran_at = since
    while not worker.tasks.poll(TURN_SECONDS):
        # Looked at, not waited for: None while it runs.
        if os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            ran_at = time.monotonic()
        elif time.monotonic() - ran_at > stopped_seconds:
            raise UserError(
                f"A data worker (process {worker.pid}) was stopped by a signal, for more than {stopped_seconds:g} "
                f"seconds. To let it run, type kill -CONT {worker.pid} in time; now, type the same command again"
            )
        if (now := reader.progress()) != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > TIMEOUT_SECONDS:
            raise UserError(
                f"A data worker gave no batch in {TIMEOUT_SECONDS:g} seconds. The disk of the data may hang: try\n"
                "  ls -l DATA_FOLDER; time md5sum DATA_FOLDER/*.tar"
            )
        yield


def _receive(pool: Sequence[_Worker[Found_co]], number: int) -> Found_co:
    try:
        found, error = pool[number].tasks.recv()
    except (EOFError, OSError):
        raise _death(pool, number) from None
    if error is not None:
        raise error
    return found


def _death(pool: Sequence[_Worker[Found_co]], number: int) -> UserError:
    pid, count = pool[number].pid, len(pool)
    # Looked at, not reaped: whoever ends the pool waits for it.
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None, "waited for"
    by_signal = ended.si_code != os.CLD_EXITED
    how = f"was killed by {signal.Signals(ended.si_status).name}" if by_signal else f"ended ({ended.si_status})"
    return UserError(
        f"Data worker {number + 1} of {count} (process {pid}) {how}. The usual cause is memory: look for it with\n"
        f"  dmesg | grep -i -A2 oom\nand type data.workers={count - 1}, or ask for more memory."
    )
