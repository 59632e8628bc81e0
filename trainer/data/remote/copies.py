"""Identify the copies of remote data in the cache, and the files that belong to them.

A data folder may come from anyone, including its origin file. A copy is therefore a folder directly inside the
configured cache, with a valid origin file; only the files in its manifest belong to it. Nothing else is ever removed.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from trainer.data.format.origin import ORIGIN_NAME, origin
from trainer.errors import UserError
from trainer.plain import cut_line

PART_SUFFIX = ".part"
"""Suffix of a file that is being fetched. It outlives its process, and the next one continues it."""
FAILED_SUFFIX = ".failed"
"""Suffix of a file that tells waiting processes why a fetch has failed."""
NEW_SUFFIX = ".new"
"""Suffix of an origin file or manifest that is being written."""
LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Copy:
    """A copy of a remote data folder.

    Attributes:
        folder: its folder, directly inside the cache.
        url: address of the remote data folder.
        max_bytes: the configured bound of all copies together. Files that several processes fetch at the same time may
            exceed it.
    """

    folder: Path
    url: str
    max_bytes: int


def cache_folder(cache_dir: Path) -> Path:
    """Return the configured cache with its `~` expanded.

    Raises:
        UserError: `~NAME` of an unknown user, or a null character.
    """
    try:
        if "\0" in str(cache_dir):
            raise RuntimeError("it has a null character")
        return cache_dir.expanduser()
    except RuntimeError as error:
        raise UserError(f"data.cache.dir={cut_line(str(cache_dir))}: expected a folder; {error}.") from None


def copy_at(folder: Path, cache_dir: Path, max_bytes: int) -> Copy | None:
    """Return the folder as a Copy, or None if it is not a copy, even if it has an origin file.

    Args:
        folder: a data folder.
        cache_dir: the configured cache.
        max_bytes: its configured bound.
    """
    real = Path(os.path.realpath(folder))
    if real.parent != Path(os.path.realpath(cache_folder(cache_dir))):
        return None
    url = origin(real)
    return None if url is None else Copy(real, url, max_bytes)


def files_of(manifest: Manifest) -> set[str]:
    """Return the names of all files that a manifest lists."""
    return {file.file for split in manifest.splits.values() for file in split.files}


def held_files(cache_dir: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """List the files of all copies in the cache.

    Not listed: folders without a valid origin file, files that no manifest lists, links, and copies whose manifest
    cannot be read, because it is unknown which files belong to them.

    Yields:
        A file, its status, and whether it may be removed to make room: a shard, or an unfinished file.
    """
    for folder in cache_dir.iterdir():
        if folder.is_symlink() or not folder.is_dir() or origin(folder) is None:
            continue
        try:
            manifest = read_manifest(folder)
        except UserError:
            continue
        shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
        parts = {f"{name}{PART_SUFFIX}" for name in files_of(manifest)}
        known = {*files_of(manifest), *parts, MANIFEST_NAME, ORIGIN_NAME}
        for name in known.intersection(os.listdir(folder)):
            try:
                status = (folder / name).lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield folder / name, status, name in shards or name in parts
