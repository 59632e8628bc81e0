import errno
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support.patience import wait_until
from trainer.data.reading import workers as module
from trainer.data.reading.workers import WorkerError, read_ahead
from trainer.errors import UserError

pytestmark = pytest.mark.processes

BROKEN, HUNG, WRONG, LATE = 1000, 1001, 1002, 1003


class Numbers:
    """Reads sample i as rows of i, and says in which process."""

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        return [np.zeros((batch_size, 3), np.int32), np.zeros(batch_size, np.float32)]

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> int:
        if sample_ids_B[0] == BROKEN:
            raise UserError("the disk is gone")
        if sample_ids_B[0] == HUNG:
            time.sleep(60)
        if sample_ids_B[0] == LATE:
            time.sleep(0.5)
        if sample_ids_B[0] == WRONG:
            raise ZeroDivisionError("in the reader")
        buffers[0][:], buffers[1][:] = sample_ids_B[:, None], sample_ids_B / 2
        return os.getpid()

    def progress(self) -> object:
        return None


class Arriving(Numbers):
    """What it reads comes nearer at every look."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    def progress(self) -> object:
        return next(self._looks)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = psutil.Process().children()
    yield
    assert psutil.Process().children() == before


def following(batches: Iterator[Any]) -> Any:
    """The next batch, however many turns it takes on a busy machine."""
    return next(filter(None, batches))


def ids(count: int) -> list[np.ndarray]:
    return list(np.arange(2 * count).reshape(count, 2))


def read(sample_ids: Sequence[np.ndarray], workers: int) -> list[int]:
    """Checks every batch; returns who read it."""
    found = [item for item in read_ahead(Numbers(), sample_ids, batch_size=2, workers=workers) if item]
    assert len(found) == len(sample_ids)
    for wanted, (ids_B, (rows, halves), _) in zip(sample_ids, found, strict=True):
        assert ids_B.tolist() == wanted.tolist() == rows[:, 2].tolist() == (2 * halves).tolist()
    return [reader for _, _, reader in found]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_batches_come_in_order_and_are_ours_to_keep(workers: int, count: int) -> None:
    readers = read(ids(count), workers)
    assert len(set(readers)) == min(max(workers, 1), count)
    assert (os.getpid() in readers) == (workers == 0 and count > 0)


def test_no_more_is_asked_for_than_the_workers_can_hold() -> None:
    asked = itertools.count()

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.full(2, next(asked))

    with closing(read_ahead(Numbers(), endless(), batch_size=2, workers=2)) as batches:
        for _ in range(5):
            following(batches)
    assert next(asked) == 5 + 2 * module.SLOTS - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_readers_error_comes_in_its_turn(workers: int) -> None:
    batches = read_ahead(Numbers(), [*ids(3), np.full(2, BROKEN), *ids(3)], batch_size=2, workers=workers)
    for _ in range(3):
        following(batches)
    with pytest.raises(UserError, match=r"^the disk is gone$"):
        following(batches)


def test_a_fault_of_the_code_shows_where_it_was() -> None:
    with pytest.raises(WorkerError, match=r"(?s)in a data worker:.*in read_into.*ZeroDivisionError: in the reader"):
        read([np.full(2, WRONG)], workers=1)


def test_a_killed_worker_is_named_with_what_to_do() -> None:
    with closing(read_ahead(Numbers(), itertools.repeat(np.zeros(2, int)), batch_size=2, workers=2)) as batches:
        victim = following(batches)[2]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(UserError) as error:
            list(batches)
    assert str(error.value).startswith(f"Data worker 1 of 2 (process {victim}) was killed by SIGKILL.")
    assert "type data.workers=1" in str(error.value)


def test_a_hung_worker_is_an_error_and_does_not_outlive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(module, "TURN_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"^A data worker gave no batch in 0.2 seconds. The disk of the data may hang"):
        read([np.full(2, HUNG)], workers=1)


def test_a_stopped_worker_is_an_error_and_one_that_goes_on_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.05)
    endless = itertools.repeat(np.zeros(2, int))
    with closing(read_ahead(Numbers(), endless, batch_size=2, workers=1, stopped_seconds=60)) as batches:
        worker = following(batches)[2]
        os.kill(worker, signal.SIGSTOP)
        assert None in itertools.islice(batches, 9)
        os.kill(worker, signal.SIGCONT)
        assert following(batches)[2] == worker
    with closing(read_ahead(Numbers(), endless, batch_size=2, workers=1, stopped_seconds=0.2)) as batches:
        worker = following(batches)[2]
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(UserError, match=rf"\(process {worker}\) was stopped by a signal"):
            list(batches)


def test_data_that_keeps_coming_is_waited_for_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(module, "TURN_SECONDS", 0.05)
    with closing(read_ahead(Arriving(), [np.full(2, LATE), *ids(1)], batch_size=2, workers=1)) as batches:
        turns = list(itertools.takewhile(lambda item: item is None, batches))
        assert turns, "the wait was cut in turns"
        assert [item[0].tolist() for item in batches if item] == [[0, 1]]


def test_signals_to_the_whole_job_leave_the_workers_reading() -> None:
    with closing(read_ahead(Numbers(), itertools.repeat(np.zeros(2, int)), batch_size=2, workers=1)) as batches:
        worker = following(batches)[2]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker, number)
        assert {following(batches)[2] for _ in range(10)} == {worker}


def test_workers_end_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    trainer = multiprocessing.get_context("fork").Process(target=_train_until_killed, args=(tmp_path / "pids",))
    trainer.start()
    wait_until((tmp_path / "pids").exists)
    trainer.kill()
    trainer.join()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    wait_until(lambda: not any(_is_alive(pid) for pid in pids))


def _train_until_killed(path: Path) -> None:
    batches = read_ahead(Numbers(), itertools.repeat(np.zeros(2, int)), batch_size=2, workers=3)
    pids = {following(batches)[2] for _ in range(6)}
    path.with_suffix(".part").write_text(" ".join(map(str, pids)))
    path.with_suffix(".part").rename(path)
    time.sleep(600)


def _is_alive(pid: int) -> bool:
    # An orphan that nobody has waited for yet is dead all the same.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_machine_without_room_for_workers_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(UserError, match=r"Data worker 1 of 2 cannot be started.*\n.*data.workers=0"):
        read(ids(1), workers=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_ends_while_decoding_is_no_fault_of_the_data(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_into(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(Numbers, "read_into", read_into)
    with pytest.raises(UserError, match="not enough memory to decode a batch") as error:
        read(ids(1), workers=workers)
    assert "delete" not in str(error.value)
