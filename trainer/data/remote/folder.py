"""A data path, which may be an address, to a data folder of this machine."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from trainer.data.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from trainer.data.format.origin import ORIGIN_NAME, Origin, is_url
from trainer.data.remote.cache import fetch, locked, unwritable
from trainer.data.remote.transfer import fetch_bytes
from trainer.errors import UserError
from trainer.files import write_durably

LOCK_NAME = ".lock"
MAX_MANIFEST_BYTES = 256 << 20


def local_folder(path: str, cache_dir: Path) -> Path:
    """The folder that a data path means on this machine: itself, or the place of its copy in the cache.

    Raises:
        UserError: an address of a kind that is not read.
    """
    if not is_url(path):
        return Path(path)
    url = path.rstrip("/")
    # The hash keeps apart what ends in the same name: .../train/shards and .../test/shards.
    return cache_dir.expanduser() / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def open_folder(path: str, cache_dir: Path, max_bytes: int) -> Path:
    """`local_folder`, with manifest, index and labels in it. Any number of processes may call it at once.

    Raises:
        UserError: the server does not have them, they are not what its manifest says, or the cache cannot be written.
    """
    folder = local_folder(path, cache_dir)
    if not is_url(path):
        return folder
    url = path.rstrip("/")
    try:
        manifest = fetch_bytes(f"{url}/{MANIFEST_NAME}", max_bytes=MAX_MANIFEST_BYTES)
    except UserError as error:
        copy = f"\nTo train on the copy from earlier: data.path={folder}" if (folder / MANIFEST_NAME).exists() else ""
        raise UserError(f"{error}{copy}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_NAME):
            _renew(folder, manifest, Origin(url, max_bytes))
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        splits = read_manifest(folder).splits
    except UserError as error:
        raise UserError(f"{error}\nIt was fetched from {url}.") from None
    for split in splits.values():
        for file in (split.index, split.labels):
            fetch(folder, file)
    return folder


def fits(manifest: Manifest, max_bytes: int) -> bool:
    """Whether a cache can hold all of the data at once."""
    return sum(file.bytes for split in manifest.splits.values() for file in split.files) <= max_bytes


def check_room(manifest: Manifest, group_samples: int, max_bytes: int) -> None:
    """Refuse a cache that cannot hold what training needs at a time: the train shards of two groups, the one in use and
    the next, and the test split, which every evaluation reads.

    Raises:
        UserError: naming the bytes, and what to change.
    """
    shards = manifest.split("train").shards
    always = sum(file.bytes for split in manifest.splits.values() for file in (split.index, split.labels))
    always += sum(shard.bytes for shard in manifest.split("test").shards)
    # A group ends with the shard that reaches its number of samples.
    share = (group_samples + max(shard.samples for shard in shards)) / manifest.num_samples("train")
    needed = always + 2 * min(share, 1) * sum(shard.bytes for shard in shards)
    if needed > max_bytes:
        raise UserError(
            f"The cache is too small: it may hold data.cache.max_gib={max_bytes / 2**30:.3g}. The test split and the "
            f"tables take {always / 2**30:.3g}; the shards of two groups of data.shuffle_samples={group_samples} "
            f"samples, one in use and the next, take {(needed - always) / 2**30:.3g} more.\n"
            f"Type data.cache.max_gib={needed / 2**30 * 1.05:.3g}, or fewer data.shuffle_samples (another order)."
        )


def _renew(folder: Path, manifest: bytes, source: Origin) -> None:
    path = folder / MANIFEST_NAME
    if path.exists() and path.read_bytes() != manifest:
        for old in folder.iterdir():  # of the data that stood at this address before
            if old.name != LOCK_NAME:
                old.unlink()
    for name, content in {MANIFEST_NAME: manifest, ORIGIN_NAME: json.dumps(asdict(source)).encode()}.items():
        write_durably(folder / f"{name}.new", content)
        os.replace(folder / f"{name}.new", folder / name)
