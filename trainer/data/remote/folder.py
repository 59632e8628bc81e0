"""Turn a data path, which may be an address, into a data folder on this machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.format.address import is_url
from trainer.data.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest, read_manifest
from trainer.data.format.names import load_names
from trainer.data.format.origin import ORIGIN_NAME, copy_name, origin, origin_content
from trainer.data.format.specs import TaskSpec
from trainer.data.remote.cache import fetch, locked, unwritable
from trainer.data.remote.copies import (
    FAILED_SUFFIX,
    LOCK_NAME,
    NEW_SUFFIX,
    PART_SUFFIX,
    Copy,
    cache_folder,
    files_of,
)
from trainer.data.remote.transfer import fetch_bytes
from trainer.errors import UserError
from trainer.files import read_bytes, write_durably


@dataclass(frozen=True)
class DataFolder:
    """A data folder on this machine.

    Attributes:
        path: the folder.
        manifest: its manifest.
        copy: set if the folder is a copy of remote data: shards that it lacks are then fetched when they are read.
        name: of the source that it is in a run's data.sources; empty for the only folder of a run.
        used: names of the tasks whose labels are used; None: all.
    """

    path: Path
    manifest: Manifest
    copy: Copy | None = None
    name: str = ""
    used: tuple[str, ...] | None = None

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks whose labels are used.

        Raises:
            UserError: the folder has none of that name.
        """
        return self.manifest.tasks if self.used is None else self.manifest.select_tasks(self.used)


def local_folder(path: str, cache_dir: Path) -> Path:
    """Return the local folder of a data path: the path itself, or the folder of its copy in the cache.

    Raises:
        UserError: the address has an unsupported scheme, or is malformed.
    """
    return cache_folder(cache_dir) / copy_name(path.rstrip("/")) if is_url(path) else Path(path)


def open_folder(path: str, cache_dir: Path, max_bytes: int) -> Path:
    """Return `local_folder`, after fetching the manifest and the tables into it. Safe in many processes at once.

    Raises:
        UserError: the server does not have the files, they differ from its manifest, the cache cannot be written, or
            something else is in the folder of the copy.
    """
    folder = local_folder(path, cache_dir)
    if not is_url(path):
        return folder
    url = path.rstrip("/")
    try:
        content = fetch_bytes(f"{url}/{MANIFEST_NAME}", max_bytes=MAX_MANIFEST_BYTES)
    except UserError as error:
        copy = f"\nTo train on the copy from earlier: data.path={folder}" if (folder / MANIFEST_NAME).exists() else ""
        raise UserError(f"{error}{copy}") from None
    # Parsed before an older copy is replaced: some servers answer every request with an HTML page.
    manifest = _fetched_manifest(content, url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_folders(folder, url)
        with locked(folder / LOCK_NAME):
            if origin(folder) is None:
                _replace(folder / ORIGIN_NAME, origin_content(url))
            _renew(folder, content, manifest, url)
    except OSError as error:
        raise unwritable(folder, error) from None
    for split in manifest.splits.values():
        for file in split.tables:
            fetch(Copy(folder, url, max_bytes), file)
    return folder


def names_of(source: DataFolder, split: str) -> list[str] | None:
    """Return the names of a split's samples, fetched first if a copy lacks them; None if they have none.

    Raises:
        UserError: as `load_names`, or they cannot be fetched.
    """
    names = source.manifest.split(split).names
    if source.copy and names:
        fetch(source.copy, names)
    return load_names(source.path, source.manifest, split)


def fits(copies: Sequence[Manifest], max_bytes: int) -> bool:
    """Return whether a cache can contain all of these copies at once."""
    splits = [split for manifest in copies for split in manifest.splits.values()]
    return sum(file.bytes for split in splits for file in split.files) <= max_bytes


def check_room(copies: Sequence[Manifest], group_samples: int, max_bytes: int) -> None:
    """Refuse a cache that is too small for training.

    Training needs the train shards of two groups of each source at a time, the current and the next one, and the split
    that every evaluation reads, for which the largest of the others is counted.

    Args:
        copies: the manifests of the remote sources.
        group_samples: samples of a source that are shuffled together.
        max_bytes: of the cache.

    Raises:
        UserError: the cache is too small; the message says how large it must be.
    """
    rooms = [_room(manifest, group_samples) for manifest in copies]
    always, needed = sum(always for always, _ in rooms), sum(always + groups for always, groups in rooms)
    if needed > max_bytes:
        raise UserError(
            f"The cache is too small: data.cache.max_gib={max_bytes / 2**30:.3g}. The evaluated split and the "
            f"tables take {always / 2**30:.3g}; the shards of two groups of data.shuffle_samples={group_samples} "
            f"samples, one in use and the next, take {(needed - always) / 2**30:.3g} more.\n"
            f"Type data.cache.max_gib={needed / 2**30 * 1.05:.3g}, or fewer data.shuffle_samples (another order)."
        )


def _room(manifest: Manifest, group_samples: int) -> tuple[float, float]:
    """Return the bytes of what is always needed, and those of two groups."""
    shards = manifest.split("train").shards
    always = sum(file.bytes for split in manifest.splits.values() for file in split.tables)
    others = [split for name, split in manifest.splits.items() if name != "train"]
    always += max((sum(shard.bytes for shard in split.shards) for split in others), default=0)
    # A group ends with the shard that reaches its number of samples.
    fraction = (group_samples + max(shard.samples for shard in shards)) / manifest.num_samples("train")
    return always, 2 * min(fraction, 1) * sum(shard.bytes for shard in shards)


def _fetched_manifest(content: bytes, url: str) -> Manifest:
    try:
        manifest = parse_manifest(content, f"{url}/{MANIFEST_NAME}")
    except UserError as error:
        raise UserError(f"{error}\nIt was fetched from {url}.") from None
    for name in sorted(files_of(manifest)):
        if name in (MANIFEST_NAME, ORIGIN_NAME) or name.endswith((PART_SUFFIX, FAILED_SUFFIX, NEW_SUFFIX)):
            raise UserError(f"{url}/{MANIFEST_NAME} lists a file {name}, a name that the cache reserves.")
    return manifest


def _refuse_other_folders(folder: Path, url: str) -> None:
    # List the names first: a process that is making the copy now writes its origin file before anything else.
    others = set(os.listdir(folder)) - {LOCK_NAME, f"{ORIGIN_NAME}{NEW_SUFFIX}"}
    if folder.is_symlink() or (others and origin(folder) != url):
        raise UserError(
            f"{folder} is the folder for the copy of {url}, but it is not one: it is a link, or it has other files "
            f"and no {ORIGIN_NAME} of that copy. Nothing in it was changed.\n"
            "Move it away, or choose another cache with data.cache.dir=DIR."
        )


def _renew(folder: Path, content: bytes, manifest: Manifest, url: str) -> None:
    """Write a manifest into a copy and remove the files of an older one. Files that neither lists are kept."""
    path = folder / MANIFEST_NAME
    try:
        if read_bytes(path, MAX_MANIFEST_BYTES) == content:
            return
        old = files_of(read_manifest(folder))
    except FileNotFoundError:
        old = set()
    except UserError as error:
        raise UserError(
            f"{error}\n{folder} is an older copy of {url}; without its manifest it is unknown which files are its "
            f"own. Delete it with: rm -r {folder}"
        ) from None
    for name in sorted(files_of(manifest) - old):
        for path_of in (folder / name, folder / f"{name}{PART_SUFFIX}"):
            if os.path.lexists(path_of):
                raise UserError(
                    f"{path_of} does not belong to the copy of {url} in this folder, but the data there now has "
                    "a file of this name. Nothing was changed.\n"
                    "Move it away, or choose another cache with data.cache.dir=DIR."
                )
    for name in old:
        for suffix in ("", PART_SUFFIX, FAILED_SUFFIX):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}{NEW_SUFFIX}")
    write_durably(new, content)
    os.replace(new, path)
