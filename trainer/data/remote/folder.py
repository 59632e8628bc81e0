"""A data path, which may be an address, to a data folder of this machine."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainer.data.format.manifest import MANIFEST_NAME, Manifest, ShardSpec, read_manifest
from trainer.data.format.origin import ORIGIN_NAME, Origin, is_url, origin
from trainer.data.remote.cache import fetch, locked, unwritable
from trainer.data.remote.transfer import check_file, fetch_bytes
from trainer.errors import UserError
from trainer.files import write_durably

LOCK_NAME = ".lock"
MAX_MANIFEST_BYTES = 256 << 20
NUM_CONNECTIONS = 4
"""Shards that a process fetches at a time."""


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
    """Refuse a cache that cannot hold the train shards of two groups, the one in use and the next.

    Raises:
        UserError: naming the bytes, and what to change.
    """
    shards = manifest.split("train").shards
    tables = sum(file.bytes for split in manifest.splits.values() for file in (split.index, split.labels))
    # A group ends with the shard that reaches its number of samples.
    share = (group_samples + max(shard.samples for shard in shards)) / manifest.num_samples("train")
    needed = tables + 2 * min(share, 1) * sum(shard.bytes for shard in shards)
    if needed > max_bytes:
        raise UserError(
            f"The cache is too small: it may hold data.cache.max_gib={max_bytes / 2**30:.3g}, and the shards of two "
            f"groups of data.shuffle_samples={group_samples} samples, one in use and the next, need "
            f"{needed / 2**30:.3g}.\n"
            f"Type data.cache.max_gib={needed / 2**30 * 1.05:.3g}, or fewer data.shuffle_samples (another order)."
        )


def check_remote(folder: Path, shards: Sequence[ShardSpec]) -> None:
    """Look for the shards that a copy lacks on their server, and at their sizes.

    Raises:
        UserError: one is not there, or not of the size that the manifest promises.
    """
    source = origin(folder)
    assert source is not None, "only a copy has a server"
    absent = [shard for shard in shards if not (folder / shard.file).exists()]
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        for _ in pool.map(lambda shard: check_file(f"{source.url}/{shard.file}", shard), absent):
            pass


def fetch_for(seconds: float, folder: Path, shards: Sequence[ShardSpec], *, rank: int = 0, world_size: int = 1) -> bool:
    """Spend about so long on fetching what a copy lacks; ranks begin at different shards. Returns whether it is whole.

    Raises:
        UserError: as `fetch`.
    """
    deadline = time.monotonic() + seconds
    absent = [shard for shard in shards if not (folder / shard.file).exists()]
    first = len(absent) * rank // world_size
    absent = absent[first:] + absent[:first]
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    hidden = rank > 0 or not absent or not sys.stderr.isatty()
    with (
        Progress(*columns, console=Console(stderr=True), disable=hidden) as progress,
        ThreadPoolExecutor(NUM_CONNECTIONS) as pool,
    ):
        bar = progress.add_task("fetching shards", total=sum(shard.bytes for shard in absent))
        while absent and time.monotonic() < deadline:
            batch, absent = absent[:NUM_CONNECTIONS], absent[NUM_CONNECTIONS:]
            for shard, _ in zip(batch, pool.map(lambda shard: fetch(folder, shard), batch), strict=True):
                progress.advance(bar, shard.bytes)
    return not absent


def _renew(folder: Path, manifest: bytes, source: Origin) -> None:
    path = folder / MANIFEST_NAME
    if path.exists() and path.read_bytes() != manifest:
        for old in folder.iterdir():  # of the data that stood at this address before
            if old.name != LOCK_NAME:
                old.unlink()
    for name, content in {MANIFEST_NAME: manifest, ORIGIN_NAME: json.dumps(asdict(source)).encode()}.items():
        write_durably(folder / f"{name}.new", content)
        os.replace(folder / f"{name}.new", folder / name)
