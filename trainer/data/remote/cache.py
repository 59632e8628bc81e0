"""Cache remote data on this machine's disk: fetched once for all processes, bounded in size, safe to delete.

A copy is a data folder with a file that says where it comes from. Its shards are fetched on demand and get their names
only after they are verified. When space is needed, the least recently opened shards are removed, but none that is open.
All locks are `flock` locks: they end with their process, however it ends.
"""

import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from trainer.data.format.manifest import FILE_NAME, FileSpec, ShardSpec
from trainer.data.remote.copies import FAILED_SUFFIX, PART_SUFFIX, Copy
from trainer.data.remote.room import make_room
from trainer.data.remote.transfer import fetch_file
from trainer.errors import UserError
from trainer.files import read_text, write_durably
from trainer.plain import one_line

MAX_FAILURE_BYTES = 1 << 16
LOCK_SECONDS = 250.0
"""How long to wait for a process that holds a file without adding to it: longer than transfer.py tries (211 s)."""
POLL_SECONDS = 0.05

_forking = threading.Lock()
_locked: set[BufferedRandom] = set()


def _release_in_child() -> None:
    for stream in _locked:
        stream.raw.close()  # without flushing its buffer, which the parent will write
    _locked.clear()
    _forking.release()


# A lock belongs to all processes that inherit its descriptor: a data worker forked while another thread fetches a shard
# would keep that shard locked for its whole life.
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_release_in_child)


def fetch(copy: Copy, file: FileSpec) -> int:
    """Fetch a file into a copy, or wait until another process has done so or has failed.

    Returns:
        How many bytes this process has fetched.

    Raises:
        UserError: the server does not deliver the file within the time limits of transfer.py, or there is no space.
    """
    path, asked = copy.folder / file.file, time.time()
    failure = path.with_name(path.name + FAILED_SUFFIX)
    try:
        while not path.exists():
            with locked(path.with_name(path.name + PART_SUFFIX)) as part:
                if path.exists():  # another process was faster, between our two checks
                    os.unlink(part.name)
                    break
                # Otherwise dozens of processes would try for half a minute each, one after the other.
                if failure.exists() and failure.stat().st_mtime > asked:
                    raise UserError("\n".join(map(one_line, read_text(failure, MAX_FAILURE_BYTES).splitlines())))
                missing = file.bytes - part.seek(0, 2)
                make_room(copy.folder.parent, missing, copy.max_bytes)
                try:
                    fetch_file(f"{copy.url}/{file.file}", file, part)
                except UserError as error:
                    write_durably(failure, str(error).encode())
                    raise
                os.fsync(part.fileno())
                os.rename(part.name, path)
                failure.unlink(missing_ok=True)
                return missing
    except OSError as error:
        raise unwritable(copy.folder, error) from None
    return 0


def open_shard(folder: Path, shard: ShardSpec, copy: Copy | None) -> int:
    """Open a shard for reading. The cache does not remove a shard of a copy while it is open.

    Args:
        folder: the data folder.
        shard: the shard to open.
        copy: set if the folder is a copy: a missing shard is then fetched.

    Returns:
        A file descriptor.

    Raises:
        OSError: it cannot be opened.
        UserError: it is not a regular file, or cannot be fetched.
    """
    path = folder / shard.file
    while True:
        try:
            descriptor = _open_regular(path, os.O_RDONLY | os.O_CLOEXEC, follow_links=copy is None)
        except FileNotFoundError:
            if copy is None:
                raise
            fetch(copy, shard)
            continue
        if copy is None:
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)  # removed between open and lock


def touch(folder: Path, files: Iterable[FileSpec]) -> None:
    """Mark the files of a copy that are present as just opened."""
    for file in files:
        with suppress(FileNotFoundError):
            os.utime(folder / file.file, follow_symlinks=False)


def arriving(copy: Copy) -> dict[str, int]:
    """Return how many bytes have arrived of each file that any process is fetching into a copy."""
    found = {}
    for part in copy.folder.glob(f"*{PART_SUFFIX}"):
        name = part.name.removesuffix(PART_SUFFIX)
        with suppress(FileNotFoundError):  # it is complete by now
            if re.fullmatch(FILE_NAME, name):  # other files are not ours, and may not be printable
                found[name] = part.lstat().st_size
    return found


@contextmanager
def locked(path: Path) -> Iterator[BufferedRandom]:
    """Open and lock a file; create it if it is missing, and wait while another process has it locked.

    Raises:
        UserError: another process holds it for LOCK_SECONDS without adding to it.
    """
    while True:
        with _forking:
            stream = open(path, "a+b", opener=_open_regular)  # noqa: SIM115
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
    """Return the error for a disk that fails while the cache is written."""
    return UserError(f"The cache {folder} cannot be written: {error}.\nChoose another folder with data.cache.dir=DIR.")


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
                f"{stream.name} is locked by another process that has added nothing to it for {LOCK_SECONDS:g} s.\n"
                f"Find that process with: fuser {stream.name}"
            )
        time.sleep(POLL_SECONDS)


def _has_name(stream: BufferedRandom, path: Path) -> bool:
    # Its holder may have renamed or removed it while we waited.
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _open_regular(path: str | Path, flags: int, *, follow_links: bool = False) -> int:
    if not follow_links and os.path.islink(path):
        raise UserError(f"{path} is a link; expected a file that the cache has written. Delete it with: rm {path}")
    nofollow = 0 if follow_links else os.O_NOFOLLOW
    descriptor = os.open(path, flags | nofollow | os.O_NONBLOCK, 0o666)  # opening a FIFO would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file.")
    return descriptor
