"""The proof that a data folder still holds what was written."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.data.format.faults import remedy, unreadable
from trainer.data.format.index import index_shard, shard_rows
from trainer.data.format.manifest import FileSpec, Manifest
from trainer.data.format.members import extensions
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
    """Proves that the files of a data folder are those that the manifest names.

    Sizes, counts, and the checksums and numbers of index and labels are always checked. With several processes each
    looks at every `world_size`-th shard, so a fault may show on one rank only: the caller must tell the others.

    Args:
        folder: of the data.
        manifest: as read from it.
        splits: which to look at; all when None.
        checksum: also read the shards: compare their checksums, and index and labels with what the tars hold.
        is_copy: whether it is a copy of remote data, which may lack shards: each is verified when it is fetched.
        rank: of this process.
        world_size: number of processes.

    Returns:
        Index and labels table of each of the splits.

    Raises:
        UserError: naming the file, what was found, what was expected and what to type.
    """
    folder = Path(folder)
    names = list(manifest.splits if splits is None else splits)
    tables = {}
    for split in names:
        tables[split] = load_index(folder, manifest, split)
    shards = [(split, number) for split in names for number in range(len(manifest.split(split).shards))]
    for split, number in shards[rank::world_size]:
        shard = manifest.split(split).shards[number]
        if is_copy and not (folder / shard.file).exists():
            continue
        _verify_file(folder, shard, checksum=checksum)
        if checksum:
            index_NM, labels_NT = tables[split]
            mine = shard_rows(manifest.split(split))[number]
            found_NM, found_NT = index_shard(
                folder / shard.file,
                number=number,
                members=extensions(manifest.input, manifest.tasks),
                tasks=manifest.tasks,
                foreign=manifest.foreign,
            )
            # Bytes, not numbers: a NaN equals no NaN.
            if found_NM.tobytes() != index_NM[mine].tobytes() or found_NT.tobytes() != labels_NT[mine].tobytes():
                raise UserError(f"{folder / shard.file}: its samples are not those of the index.\n{remedy(folder)}")
    return tables


def _verify_file(folder: Path, spec: FileSpec, *, checksum: bool) -> None:
    path = folder / spec.file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != spec.bytes:
                raise UserError(f"{path}: expected {spec.bytes} bytes, found {size}.\n{remedy(folder)}")
            found = hashlib.file_digest(file, "sha256").hexdigest() if checksum else spec.sha256
    except OSError as error:
        raise unreadable(path, error) from None
    if found != spec.sha256:
        raise UserError(
            f"{path}: its content has changed: expected sha256 {spec.sha256}, found {found}.\n{remedy(folder)}"
        )
