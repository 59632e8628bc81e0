"""Files of remote data on this machine's disk: fetched once for all its processes, bounded, safe to lose.

A copy is a data folder like any other, with a file that says where it comes from. Its shards come when they are wanted
and get their names only when they are verified. When space is needed, those that nobody has opened for longest go; one
that is open stays. All locks are `flock`'s, which end with their process, however that ends.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from trainer.data.format.manifest import FileSpec
from trainer.data.format.origin import ORIGIN_NAME, origin
from trainer.data.remote.transfer import fetch_file
from trainer.errors import UserError

PART_SUFFIX = ".part"
"""Of a file on its way. It outlives its process, and the next one goes on from it."""
FAILED_SUFFIX = ".failed"
"""Of what is said of a file that could not be fetched, for the processes that were waiting for it."""
LOCK_SECONDS = 250.0
"""How long to wait for a process that holds a file and adds nothing to it: longer than transfer.py tries (211 s)."""
POLL_SECONDS = 0.05

_forking = threading.Lock()
_locked: set[BufferedRandom] = set()


def _leave_to_the_parent() -> None:
    for stream in _locked:
        stream.raw.close()  # not what it has in its buffer: that is the parent's to write
    _locked.clear()
    _forking.release()


# A lock belongs to all processes that have inherited its descriptor: a data worker that was forked while another thread
# fetched a shard would hold that one for as long as it lives.
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_leave_to_the_parent)


def fetch(folder: Path, file: FileSpec) -> int:
    """Bring a file into a copy, or wait until another process has done so or has failed for both.

    Returns:
        How many bytes this process has fetched.

    Raises:
        UserError: the server does not give it within the time that transfer.py states, or there is no room for it.
    """
    source, path = origin(folder), folder / file.file
    assert source is not None, "only a copy lacks files"
    failure, asked = path.with_name(path.name + FAILED_SUFFIX), time.time()
    try:
        while not path.exists():
            with locked(path.with_name(path.name + PART_SUFFIX)) as part:
                if path.exists():  # somebody was quicker, between our two looks
                    os.unlink(part.name)
                    break
                # Else dozens of processes would each, one after the other, try for half a minute.
                if failure.exists() and failure.stat().st_mtime > asked:
                    raise UserError(failure.read_text())
                missing = file.bytes - part.seek(0, 2)
                _make_room(folder.parent, missing, source.max_bytes)
                try:
                    fetch_file(f"{source.url}/{file.file}", file, part)
                except UserError as error:
                    failure.write_text(str(error))
                    raise
                os.fsync(part.fileno())
                os.rename(part.name, path)
                failure.unlink(missing_ok=True)
                return missing
    except OSError as error:
        raise unwritable(folder, error) from None
    return 0


def open_shard(folder: Path, shard: FileSpec) -> int:
    """A descriptor to read a shard with; one that a copy lacks is fetched first. While it is open, the shard stays.

    Raises:
        OSError: it cannot be opened.
        UserError: it cannot be fetched.
    """
    is_copy = (folder / ORIGIN_NAME).exists()
    while True:
        try:
            descriptor = os.open(folder / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not is_copy:
                raise
            fetch(folder, shard)
            continue
        if not is_copy:
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)  # removed between open and lock


def touch(folder: Path, files: Iterable[FileSpec]) -> None:
    """Let the files of a copy that are there count as just opened."""
    for file in files:
        with suppress(FileNotFoundError):
            os.utime(folder / file.file)


def arriving(folder: Path) -> dict[str, int]:
    """How many bytes have come of each file that is on its way into a copy, whatever process fetches it."""
    found = {}
    for part in folder.glob(f"*{PART_SUFFIX}"):
        with suppress(FileNotFoundError):  # it is whole by now
            found[part.name.removesuffix(PART_SUFFIX)] = part.stat().st_size
    return found


@contextmanager
def locked(path: Path) -> Iterator[BufferedRandom]:
    """The file of that name, made if need be, once no other process has it locked.

    Raises:
        UserError: another process holds it for LOCK_SECONDS and adds nothing to it.
    """
    while True:
        with _forking:
            stream = path.open("a+b")
            _locked.add(stream)
        try:
            _wait_for_lock(stream)
            if _has_name(stream, path):
                yield stream
                return
        finally:
            with _forking:
                _locked.remove(stream)
                stream.close()


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to say when the cache's disk fails."""
    return UserError(f"The cache {folder} cannot be written: {error}.\nGive it another place with data.cache.dir=DIR.")


def _wait_for_lock(stream: BufferedRandom) -> None:
    size, deadline = -1, 0.0
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if (grown := os.fstat(stream.fileno()).st_size) != size:
            size, deadline = grown, time.monotonic() + LOCK_SECONDS
        elif time.monotonic() > deadline:
            raise UserError(
                f"{stream.name} is held by another process that has added nothing to it for {LOCK_SECONDS:g} s.\n"
                f"Find that process with: fuser {stream.name}"
            )
        time.sleep(POLL_SECONDS)


def _has_name(stream: BufferedRandom, path: Path) -> bool:
    # While we waited for it, its holder may have renamed or removed it.
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make_room(cache_dir: Path, needed: int, max_bytes: int) -> None:
    stats = {}
    for path in cache_dir.glob("*/*"):
        with suppress(FileNotFoundError):
            stats[path] = path.stat()
    used = sum(stat.st_size for stat in stats.values())
    for path in sorted(stats, key=lambda path: stats[path].st_mtime):
        if used + needed <= max_bytes:
            return
        if path.suffix in (".tar", PART_SUFFIX) and _removed(path):
            used -= stats[path].st_size
    if used + needed > max_bytes:
        raise UserError(
            f"The cache {cache_dir} is full: it may hold {max_bytes / 2**30:.3g} GiB, {used / 2**30:.3g} GiB are in "
            f"use, and {needed / 2**30:.3g} GiB more are needed.\n"
            "Give it more with data.cache.max_gib=N, or another place with data.cache.dir=DIR."
        )


def _removed(path: Path) -> bool:
    """Remove a file, unless somebody reads or writes it."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
