"""Make room in the cache by removing the least recently opened shards."""

import fcntl
import os
from pathlib import Path

from trainer.data.remote.copies import held_files
from trainer.errors import UserError


def make_room(cache_dir: Path, needed: int, max_bytes: int) -> None:
    """Remove shards of copies until `needed` more bytes fit. Open shards are kept.

    Files that do not belong to a copy are not counted, and are never removed.

    Raises:
        UserError: there is not enough room.
    """
    held = list(held_files(cache_dir))
    used = sum(status.st_size for _, status, _ in held)
    removable = [(path, status) for path, status, may_go in held if may_go]
    if used - sum(status.st_size for _, status in removable) + needed > max_bytes:
        removable = []  # removing all of them would not suffice
    for path, status in sorted(removable, key=lambda file: file[1].st_mtime):
        if used + needed <= max_bytes:
            return
        if _removed(path):
            used -= status.st_size
    if used + needed > max_bytes:
        raise UserError(
            f"The cache {cache_dir} is full: its limit is {max_bytes / 2**30:.3g} GiB, {used / 2**30:.3g} GiB are in "
            f"use, and {needed / 2**30:.3g} GiB more are needed.\n"
            "Raise the limit with data.cache.max_gib=N, or choose another cache with data.cache.dir=DIR."
        )


def _removed(path: Path) -> bool:
    """Remove a file unless a process uses it or another file has taken its name; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            return False
        path.unlink()
        return True
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
