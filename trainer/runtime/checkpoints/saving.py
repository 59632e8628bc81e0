"""Save while training goes on: a step waits for the copy to host memory only, and a thread writes it to the disk.

A save has two parts, both done in that thread: every rank writes its files, then rank 0 publishes them. Between two
steps the ranks agree on whether the part is done everywhere, without waiting for a disk.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import FaultError, SharedError, UserError
from trainer.runtime.checkpoints.folder import folder_of_step, read_pointer
from trainer.runtime.checkpoints.manifest import (
    FORMAT,
    STATE,
    FileEntry,
    Manifest,
    Writer,
    generators_file,
    model_file,
    optimizer_file,
)
from trainer.runtime.checkpoints.pieces import Piece, copied
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.checkpoints.writing import generators, publish, write_files
from trainer.runtime.collectives import Runtime

Value = TypeVar("Value")

PATIENCE_SECONDS = 1800.0
"""A part of a save that takes longer is an error: the disk hangs."""
TURN_SECONDS = 1.0
"""How long a rank waits for its disk before it meets the others again."""
RETRY_AFTER_SECONDS = (1.0, 5.0, 20.0)
"""How long to wait before each retry of a part that failed."""
PASSING_ERRORS = frozenset(
    (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT, errno.EREMOTEIO)
)
"""Errors that a network file system recovers from, or that end when a user makes room."""


def retried(work: Callable[[], Value]) -> Value:
    """Do `work` on a disk; retry it a few times if it fails with one of `PASSING_ERRORS`.

    Raises:
        OSError: the last error.
    """
    for seconds in RETRY_AFTER_SECONDS:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
        time.sleep(seconds)
    return work()


@dataclass
class _Save:
    """A save under way.

    Attributes:
        step: optimizer steps done.
        best: the step of the best checkpoint; None: none is selected.
        part: what this rank's thread is doing.
        since: when the part began, by time.monotonic().
        is_written: every rank has written its files, and the part publishes them.
    """

    step: int
    best: int | None
    part: Future[Any]
    since: float
    is_written: bool = False

    def is_over(self) -> bool:
        return self.part.done() or time.monotonic() - self.since > PATIENCE_SECONDS

    def result(self) -> Any:
        if not self.part.done():
            raise TimeoutError(f"the disk has not answered for {PATIENCE_SECONDS:g} s")
        return self.part.result()


class Saver:
    """Write and publish checkpoints in the background, at most one at a time. Every method is collective.

    Args:
        folder: the folder of the checkpoints.
        keep: how many published checkpoints stay.
        runtime: the processes.
        run: the run's identity, the same at all its starts; only checkpoints of this run are removed.
        config: the resolved configuration, as JSON; every checkpoint holds it.
        written_by: the version of the code, on rank 0; None: nobody knows it.
        on_published: is told each published checkpoint, on rank 0; must return at once. None: nobody is told.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        runtime: Runtime,
        run: str,
        config: Mapping[str, Any],
        *,
        written_by: Writer | None = None,
        on_published: Callable[[Path], None] | None = None,
    ) -> None:
        self._folder, self._keep, self._runtime = folder, keep, runtime
        self._run, self._config = run, config
        self._on_published = on_published
        self._written_by = written_by
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._save: _Save | None = None

    def begin(
        self,
        step: int,
        model: Iterable[Piece],
        optimizer: Iterable[Piece],
        state: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """Wait until the last save is published, copy what this rank has to save, and begin to write it.

        Args:
            step: optimizer steps done.
            model: this rank's pieces of the model.
            optimizer: this rank's pieces of the optimizer's state.
            state: the rest, the same on every rank.
            best: the step of the best checkpoint, this one or an earlier one, which stays; None: none is selected.

        Raises:
            FaultError: see `advance`.
            UserError: the state holds something that a checkpoint cannot hold.
        """
        self.finish()
        try:
            shared = to_bytes(dict(state))
        except ValueError as error:
            raise UserError(
                f"step {step} cannot be saved: {STATE}{error}, which cannot be read back safely. "
                "Expected tensors, numbers, strings, and lists and dictionaries of them"
            ) from error
        rank = self._runtime.rank
        contents: dict[str, bytes | list[Piece]] = {
            model_file(rank): copied(model),
            optimizer_file(rank): copied(optimizer),
            generators_file(rank): to_bytes(generators()),
        }
        if self._runtime.is_main:
            contents[STATE] = shared
        aside = self._aside(step)
        part = self._thread.submit(retried, lambda: write_files(aside, contents))
        self._save = _Save(step, best, part, time.monotonic())

    def advance(self) -> None:
        """Begin the next part of the save under way, if this one is over on every rank. Never waits for a disk.

        Raises:
            FaultError: a rank could not write. The save is given up; the last published checkpoint is kept.
        """
        save = self._save
        if save is None or self._runtime.all_reduce_max(int(not save.is_over())):
            return
        try:
            with self._runtime.raise_together(), self._disk_errors(save.step):
                entries = save.result()
        except SharedError:
            self._save = None
            if self._runtime.is_main:
                shutil.rmtree(self._aside(save.step), ignore_errors=True)
            raise
        self._save = None if save.is_written else self._published(save, entries or {})
        if save.is_written and self._on_published and self._runtime.is_main:
            self._on_published(folder_of_step(self._folder, save.step))

    def finish(self) -> None:
        """Wait until the save under way is published.

        Raises:
            FaultError: see `advance`.
        """
        while self._save is not None:
            # In short turns: no rank waits in a collective for another rank's disk.
            wait([self._save.part], timeout=TURN_SECONDS)
            self.advance()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Publish the save under way when the block ends, also when all ranks leave it with the same error."""
        try:
            yield
        except SharedError:
            self.finish()
            raise
        self.finish()

    def _published(self, save: _Save, mine: Mapping[str, FileEntry]) -> _Save:
        """Make rank 0 begin to publish what all ranks have written."""
        step, best = save.step, save.best
        files: dict[str, Any] = {}
        for of_rank in self._runtime.gather(mine):
            files |= of_rank
        part: Future[Any] = Future()
        if self._runtime.is_main:
            aside, final, keep = self._aside(step), folder_of_step(self._folder, step), self._keep
            manifest = Manifest(
                format=FORMAT,
                step=step,
                world_size=self._runtime.world_size,
                run=self._run,
                config=dict(self._config),
                files=files,
                best=best,
                written_by=self._written_by,
            )
            part = self._thread.submit(retried, lambda: publish(aside, final, manifest, keep))
        else:
            part.set_result(None)
        return _Save(step, best, part, time.monotonic(), is_written=True)

    def _aside(self, step: int) -> Path:
        return folder_of_step(self._folder, step).with_suffix(".tmp")

    @contextmanager
    def _disk_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            last, _ = read_pointer(self._folder)
            raise FaultError(
                f"the checkpoint of step {step} could not be written: {error}. "
                f"{f'The last checkpoint is {last}' if last else 'There is no earlier checkpoint'}. "
                "Make room or repair the disk, then type the same command again to resume"
            ) from error
