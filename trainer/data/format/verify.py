"""Verify that the files of a data folder are those that were written."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.data.format.faults import differs, remedy, unreadable
from trainer.data.format.foreign import stored_extensions
from trainer.data.format.index import index_shard, shard_rows
from trainer.data.format.manifest import FileSpec, Manifest
from trainer.data.format.tables import Table, load_index
from trainer.errors import UserError
from trainer.files import open_regular


def verify_shards(
    folder: Path,
    manifest: Manifest,
    splits: Iterable[str] | None = None,
    *,
    checksum: bool,
    is_copy: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, tuple[Table, Table]]:
    """Verify that the files of a data folder are those that the manifest lists, but for the names of the samples.

    `load_names` verifies these when they are read, which no training does. Sizes, counts, and the checksums and entries
    of index and labels are always checked. Each of several processes checks every `world_size`-th shard, so a fault may
    show on one rank only: the caller must tell the others.

    Args:
        folder: the data folder.
        manifest: its manifest.
        splits: which splits to verify; None means all.
        checksum: also read the shards: compare their checksums, and the shards' content with index and labels.
        is_copy: whether the folder is a copy of remote data, which may lack shards: each is verified when fetched.
        rank: this process's rank.
        world_size: number of processes.

    Returns:
        Index and labels table of each split.

    Raises:
        UserError: a file differs from the manifest, or cannot be read.
    """
    folder = Path(folder)
    names = list(manifest.splits if splits is None else splits)
    tables = {split: load_index(folder, manifest, split) for split in names}
    shards = [(split, number) for split in names for number in range(len(manifest.split(split).shards))]
    for split, number in shards[rank::world_size]:
        shard = manifest.split(split).shards[number]
        if is_copy and not (folder / shard.file).exists():
            continue
        _verify_file(folder, shard, checksum=checksum)
        if checksum:
            index_NM, labels_NT = tables[split]
            rows = shard_rows(manifest.split(split))[number]
            found = index_shard(
                folder / shard.file,
                number=number,
                members=stored_extensions(manifest.input, manifest.tasks, manifest.foreign),
                tasks=manifest.tasks,
                foreign=manifest.foreign,
            )
            # Compared as bytes, because NaN != NaN.
            same_index = found.index_NM.tobytes() == index_NM[rows].tobytes()
            if not same_index or found.labels_NT.tobytes() != labels_NT[rows].tobytes():
                raise UserError(
                    f"{folder / shard.file}: its samples are not those of the index and manifest.json.\n"
                    f"{remedy(folder)}"
                )
    return tables


def _verify_file(folder: Path, spec: FileSpec, *, checksum: bool) -> None:
    path = folder / spec.file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != spec.bytes:
                raise UserError(
                    f"{path}: expected {spec.bytes} bytes, as in manifest.json, found {size}.\n{remedy(folder)}"
                )
            found = hashlib.file_digest(file, "sha256").hexdigest() if checksum else spec.sha256
    except OSError as error:
        raise unreadable(path, error) from None
    if found != spec.sha256:
        raise differs(path, spec.sha256, found)
