"""Samples into WebDataset shards, and the proof that a folder still holds what was written.

A conversion works in a subfolder and moves whole, synced files into place, the manifest last: a folder with a manifest
is complete, a folder without one is refused. The same samples give the same bytes.
"""

import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.data.decode import BadImageError, check_header
from trainer.data.index import index_shard, load_index, remedy
from trainer.data.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    FileSpec,
    ImageSpec,
    Manifest,
    ShardSpec,
    SplitSpec,
    TaskSpec,
)
from trainer.errors import UserError
from trainer.files import sha256, sync_folder, write_durably


@dataclass(frozen=True)
class Sample:
    """One sample as it goes into a shard.

    Attributes:
        image: encoded as the ImageSpec says.
        labels: class number per task; None or absent where the sample has no label.
    """

    image: bytes
    labels: Mapping[str, int | None]


def write_shards(
    out: Path,
    *,
    name: str,
    made_by: dict[str, Any],
    image: ImageSpec,
    tasks: Sequence[TaskSpec],
    splits: Mapping[str, Iterable[Sample]],
    samples_per_shard: int = 5000,
) -> Manifest:
    """Writes a data folder: tar shards, an index and a labels table per split, and the manifest.

    Args:
        out: a folder that does not exist yet, is empty, or holds an interrupted conversion, which is started afresh.
        name: of the data set.
        made_by: how the samples were made (source, seed, options), for the manifest.
        image: what every image member decodes to.
        tasks: what the samples are labelled with.
        splits: the samples of each split, in the order of their ids.
        samples_per_shard: of every shard but a split's last.

    Raises:
        UserError: a folder in use, a split without samples, a sample that does not fit `image` or `tasks`, a full disk.
    """
    out = Path(out)
    try:
        partial = _start(out)
        specs = {
            split: _write_split(partial, split, samples, image, tasks, samples_per_shard)
            for split, samples in splits.items()
        }
        manifest = Manifest(name=name, made_by=made_by, image=image, tasks=tuple(tasks), splits=specs)
        write_durably(partial / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())
        for spec in specs.values():
            for file in spec.files:
                (partial / file.file).rename(out / file.file)
        sync_folder(out)
        (partial / MANIFEST_NAME).rename(out / MANIFEST_NAME)
        partial.rmdir()
        sync_folder(out)
    except OSError as error:
        raise UserError(
            f"Writing the data folder {out} failed: {error}.\n"
            "It is unfinished. Mend that and run the same command again."
        ) from error
    return manifest


def verify_shards(
    folder: Path,
    manifest: Manifest,
    splits: Iterable[str] | None = None,
    *,
    checksum: bool,
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
        tables[split] = load_index(folder, manifest, split)
    shards = [(split, number) for split in names for number in range(len(manifest.split(split).shards))]
    for split, number in shards[rank::world_size]:
        shard = manifest.split(split).shards[number]
        _verify_file(folder, shard, checksum=checksum)
        if checksum:
            index_N, labels_NT = tables[split]
            mine_N = index_N["shard"] == number
            found_N, found_NT = index_shard(
                folder / shard.file, number=number, encoding=manifest.image.encoding, tasks=manifest.tasks
            )
            if not (np.array_equal(found_N, index_N[mine_N]) and np.array_equal(found_NT, labels_NT[mine_N])):
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


def _start(out: Path) -> Path:
    if (out / MANIFEST_NAME).exists():
        raise UserError(f"{out} already holds a data set.\nDelete it, or write to another folder with --out.")
    partial = out / PARTIAL_NAME
    if partial.exists():
        shutil.rmtree(partial)
    out.mkdir(parents=True, exist_ok=True)
    in_the_way = sorted(path.name for path in out.iterdir())
    if in_the_way:
        raise UserError(
            f"{out} is not empty (found {', '.join(in_the_way[:5])}).\n"
            "Delete it, or write to another folder with --out."
        )
    partial.mkdir()
    return partial


def _write_split(
    folder: Path,
    split: str,
    samples: Iterable[Sample],
    image: ImageSpec,
    tasks: Sequence[TaskSpec],
    samples_per_shard: int,
) -> SplitSpec:
    # Read at import: keeps webdataset from unpickling, from `pipe:` commands and from names in the environment.
    os.environ.setdefault("WDS_SECURE", "1")
    from webdataset.writer import TarWriter

    shards, indexes, labels = [], [], []
    shown = track(samples, f"{split} samples", console=Console(stderr=True), disable=not sys.stderr.isatty())
    numbered = enumerate(shown)
    for number in itertools.count():
        chunk = itertools.islice(numbered, samples_per_shard)
        first = next(chunk, None)
        if first is None:
            break
        path = folder / f"{split}-{number:06d}.tar"
        with path.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0, compress=False) as tar:
                for key, sample in itertools.chain([first], chunk):
                    tar.write(_members(f"{key:09d}", sample, image))
            file.flush()
            os.fsync(file.fileno())
        # What readers will see is what stands on the disk, so the index is made from there.
        index_N, labels_NT = index_shard(path, number=number, encoding=image.encoding, tasks=tasks)
        shards.append(ShardSpec(samples=len(index_N), **_describe(path)))
        indexes.append(index_N)
        labels.append(labels_NT)
    if not shards:
        raise UserError(f"The {split} split has no samples.")
    index = _write_array(folder / f"{split}.index.npy", np.concatenate(indexes))
    table = _write_array(folder / f"{split}.labels.npy", np.concatenate(labels))
    return SplitSpec(shards=tuple(shards), index=index, labels=table)


def _members(key: str, sample: Sample, image: ImageSpec) -> dict[str, Any]:
    try:
        check_header(sample.image, image)
    except BadImageError as error:
        raise UserError(f"Sample {key}: {error}.") from None
    text = json.dumps(dict(sample.labels), sort_keys=True)
    return {"__key__": key, image.encoding: sample.image, "json": text.encode()}


def _write_array(path: Path, array: np.ndarray) -> FileSpec:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_durably(path, buffer.getvalue())
    return FileSpec(**_describe(path))


def _describe(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
