"""The copies of remote data in the configured cache: which folders are copies, and which files in them are ours.

A data folder may come from anybody, its mark included. So a copy is a folder directly inside the cache that the
configuration names, with a sound mark; and ours are the files that its manifest names. Nothing else is ever removed.
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
"""Ends the name of a file on its way. It outlives its process, and the next one goes on from it."""
FAILED_SUFFIX = ".failed"
"""Ends the name of the file that tells waiting processes why a file could not be fetched."""
NEW_SUFFIX = ".new"
"""Ends the name of a mark or manifest that is being written."""
LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Copy:
    """A copy of a remote data folder.

    Attributes:
        folder: directly inside the cache.
        url: the remote data folder.
        max_bytes: the configured bound of all copies in the cache together. Files that several processes fetch at the
            same time may come on top.
    """

    folder: Path
    url: str
    max_bytes: int


def cache_folder(cache_dir: Path) -> Path:
    """Return the configured cache with its `~` expanded.

    Raises:
        UserError: `~NAME` of a user that this machine does not know, or a null character.
    """
    try:
        if "\0" in str(cache_dir):
            raise RuntimeError("it has a null character")
        return cache_dir.expanduser()
    except RuntimeError as error:
        raise UserError(f"data.cache.dir={cut_line(str(cache_dir))}: expected a folder; {error}.") from None


def copy_at(folder: Path, cache_dir: Path, max_bytes: int) -> Copy | None:
    """Return the copy that a folder is; None for a folder that is no copy, whatever mark it has.

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
    """Return the names of all files that a manifest names."""
    return {file.file for split in manifest.splits.values() for file in split.files}


def held_files(cache_dir: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """List the files of all copies in the cache.

    Other folders and files are not listed: those without a sound mark, those that no manifest names, links, and the
    copies whose manifest cannot be read, since nobody can say what is theirs.

    Yields:
        A file, its status, and whether it may be removed to make room: a shard, or a part of a file.
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
