"""Processes that read batches ahead into memory that they share with this process.

Batches are assigned to the workers in turn and returned in that order, so the number of workers affects only the speed.
If a worker dies, an error is raised at once; if it hangs, after a timeout. A worker that waits for data that keeps
arriving does not hang. Waiting is done in short turns, so that the trainer can do something else in between.

torch's DataLoader is not used: it raises a worker's death from a signal handler, anywhere in the training step, and
needs /dev/shm and descriptors for every tensor. These workers need one pipe each, and memory that no mount limits.

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
"""A worker without a batch or progress for this long has a hung disk, which is an error. All other timeouts are
shorter."""

STOPPED_SECONDS = 120.0
"""How long a worker may be stopped by default: a job that is suspended as a whole continues later."""

TURN_SECONDS = 1.0
"""How long to wait for a batch in one turn."""

SLOTS = 2
"""Batches that each worker may have finished or in progress."""

DECODE = "decode a batch"

Found_co = TypeVar("Found_co", covariant=True)


class WorkerError(Exception):
    """A bug in a data worker; its argument contains the worker's traceback."""


class Reader(Protocol[Found_co]):
    """Reads batches into buffers. Workers get it by fork, so it is never copied or sent."""

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        """Return new buffers for a batch; only their shapes and types matter here."""
        ...

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> Found_co:
        """Fill the buffers and return what else to report about the batch. It is sent, so it should be small."""
        ...

    def progress(self) -> object:
        """Return a value that changes while the data that a worker waits for arrives. Called in this process."""
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
    """Read batches in the order of `sample_ids`. Close the generator to end the workers.

    Args:
        reader: reads the data.
        sample_ids: an array of shape (B,) per batch; consumed as far ahead as the workers read.
        batch_size: B.
        workers: number of processes; 0 reads in this process.
        stopped_seconds: how long a worker may be stopped, for example by SIGSTOP.

    Yields:
        The batch's sample ids, its buffers, which the caller may keep, and the reader's report; or None after each
        TURN_SECONDS without a batch. Without workers, never None.

    Raises:
        UserError: the reader raised it, or a worker died, hung, or was stopped.
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
    # Forked even if CUDA is initialised: a worker uses neither torch nor other libraries with threads. Not a Process of
    # multiprocessing: a program that ends in an error would wait for it forever.
    pid = os.fork()
    if not pid:
        try:
            # A worker does not notice the end of the trainer while another worker has its pipe open.
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
    # The trainer handles signals to the whole job; it may need more batches before it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    # The pipe closes when the trainer ends.
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
        # This does not block or reap: None while the worker runs.
        if os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            ran_at = time.monotonic()
        elif time.monotonic() - ran_at > stopped_seconds:
            raise UserError(
                f"A data worker (process {worker.pid}) was stopped by a signal for more than {stopped_seconds:g} "
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
    # Not reaped here: the code that ends the pool waits for it.
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None, "waitid without WNOHANG waits"
    by_signal = ended.si_code != os.CLD_EXITED
    how = f"was killed by {signal.Signals(ended.si_status).name}" if by_signal else f"ended ({ended.si_status})"
    return UserError(
        f"Data worker {number + 1} of {count} (process {pid}) {how}. The usual cause is a lack of memory; check with\n"
        f"  dmesg | grep -i -A2 oom\nand type data.workers={count - 1}, or ask for more memory."
    )
