"""The proof that a data folder still holds what was written."""

from collections.abc import Iterable
from pathlib import Path

from trainer.data.format.index import index_shard, load_index, remedy, shard_rows
from trainer.data.format.manifest import FileSpec, Manifest
from trainer.data.format.members import extensions
from trainer.errors import UserError
from trainer.files import sha256


def verify_shards(
    folder: Path,
    manifest: Manifest,
    splits: Iterable[str] | None = None,
    *,
    checksum: bool,
    is_copy: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Proves that the files of a data folder are those that the manifest names.

    Sizes, counts, and the checksums of index and labels are always compared. With several processes each looks at
    every `world_size`-th shard, so a fault may show on one rank only: the caller must tell the others.

    Args:
        folder: of the data.
        manifest: as read from it.
        splits: which to look at; all when None.
        checksum: also read the shards: compare their checksums, and index and labels with what the tars hold.
        is_copy: whether it is a copy of remote data, which may lack shards: each is verified when it is fetched.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: naming the file, what was found, what was expected and what to type.
    """
    folder = Path(folder)
    names = list(manifest.splits if splits is None else splits)
    tables = {}
    for split in names:
        spec = manifest.split(split)
        for file in (spec.index, spec.labels):
            _verify_file(folder, file, checksum=True)
        tables[split] = *load_index(folder, manifest, split), shard_rows(spec)
    shards = [(split, number) for split in names for number in range(len(manifest.split(split).shards))]
    for split, number in shards[rank::world_size]:
        shard = manifest.split(split).shards[number]
        if is_copy and not (folder / shard.file).exists():
            continue
        _verify_file(folder, shard, checksum=checksum)
        if checksum:
            index_NM, labels_NT, rows = tables[split]
            mine = rows[number]
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


def _verify_file(folder: Path, spec: FileSpec, *, checksum: bool) -> None:
    path = folder / spec.file
    if not path.is_file():
        found = "found something else" if path.exists() else "it is missing"
        raise UserError(f"{path}: expected a file of {spec.bytes} bytes, {found}.\n{remedy(folder)}")
    size = path.stat().st_size
    if size != spec.bytes:
        raise UserError(f"{path}: expected {spec.bytes} bytes, found {size}.\n{remedy(folder)}")
    try:
        found = sha256(path) if checksum else spec.sha256
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.\n{remedy(folder)}") from error
    if found != spec.sha256:
        raise UserError(
            f"{path}: its content has changed: expected sha256 {spec.sha256}, found {found}.\n{remedy(folder)}"
        )
