"""Where every sample of a split lies, and all its labels in one table.

The index and the labels table are derived from the shards alone, so they can be made again at any time, and
compared. They let the loader read any sample with one `pread` and no parsing.

Shapes: N samples of a split, T tasks.
"""

import json
import mmap
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from trainer.data.manifest import Encoding, Manifest, TaskSpec
from trainer.data.tar import Member, walk_tar
from trainer.errors import UserError

MISSING = -1
"""Label of a sample that has none for the task."""

INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])
"""One row a sample: its shard's number in the split, and where the image's bytes lie in that shard."""


def labels_dtype(tasks: Sequence[TaskSpec]) -> np.dtype:
    """The narrower of int16 and int32 that holds every class of every task."""
    most = max(len(task.classes) for task in tasks)
    return np.dtype("<i2" if most <= np.iinfo(np.int16).max else "<i4")


def index_shard(
    path: Path, *, number: int, encoding: Encoding, tasks: Sequence[TaskSpec]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole shard and says where its samples lie and how they are labelled.

    Args:
        path: of the tar.
        number: of the shard in its split.
        encoding: extension of the image members.
        tasks: whose labels to take from the JSON members.

    Returns:
        Rows of INDEX_DTYPE, shape (N,), and integer labels, shape (N, T).

    Raises:
        UserError: naming the sample that is no whole sample, or the byte at which the tar is damaged.
    """
    rows, labels = [], []
    keys: set[str] = set()
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise UserError(f"{path} is empty.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as tar:
            for key, members in _samples(tar, str(path)):
                if key in keys:
                    raise UserError(f"{path}: key {key!r} stands twice; a sample's members must lie side by side.")
                keys.add(key)
                if sorted(members) != sorted((encoding, "json")):
                    raise UserError(
                        f"{path}: sample {key!r} has members {sorted(members)}, expected {sorted((encoding, 'json'))}."
                    )
                image, text = members[encoding], members["json"]
                crc32 = zlib.crc32(tar[image.offset : image.offset + image.size])
                rows.append((number, image.offset, image.size, crc32))
                where = f"{path}: sample {key!r}"
                labels.append(_labels(bytes(tar[text.offset : text.offset + text.size]), tasks, where))
    return np.array(rows, INDEX_DTYPE), np.array(labels, labels_dtype(tasks)).reshape(-1, len(tasks))


def _samples(tar: memoryview, where: str) -> Iterator[tuple[str, dict[str, Member]]]:
    # WebDataset's rule: a sample is a run of members with one key, the name up to its first dot.
    for key, run in groupby(walk_tar(tar, where), lambda member: member.name.partition(".")[0]):
        members: dict[str, Member] = {}
        for member in run:
            extension = member.name.partition(".")[2]
            if extension in members:
                raise UserError(f"{where}: member {member.name!r} stands twice.")
            members[extension] = member
        yield key, members


def _labels(text: bytes, tasks: Sequence[TaskSpec], where: str) -> list[int]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: its labels are not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: its labels should be a JSON object, found {text[:40]!r}.")
    return [_label(found.get(task.name), task, where) for task in tasks]


def _label(value: object, task: TaskSpec, where: str) -> int:
    if value is None:
        return MISSING
    if type(value) is not int or not 0 <= value < len(task.classes):
        raise UserError(
            f"{where}: label of task {task.name!r} should be null or a class number from 0 to "
            f"{len(task.classes) - 1}, found {value!r}."
        )
    return value


def load_index(folder: Path, manifest: Manifest, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A split's index and labels table, memory-mapped and compared with the manifest's counts.

    Returns:
        Rows of INDEX_DTYPE, shape (N,), and integer labels, shape (N, T).

    Raises:
        UserError: a file that is missing, is not what it should be, or disagrees with the manifest.
    """
    spec = manifest.split(split)
    index_N = _load(folder / spec.index.file, INDEX_DTYPE, ())
    promised_N = np.repeat(np.arange(len(spec.shards)), [shard.samples for shard in spec.shards])
    if not np.array_equal(index_N["shard"], promised_N):
        for number, shard in enumerate(spec.shards):
            found = np.count_nonzero(index_N["shard"] == number)
            if found != shard.samples:
                raise UserError(
                    f"{folder / shard.file}: the manifest promises {shard.samples} samples, the index has {found}.\n"
                    f"{remedy(folder)}"
                )
        raise UserError(f"{folder / spec.index.file} is not in the order of the manifest's shards.\n{remedy(folder)}")
    labels_NT = _load(folder / spec.labels.file, labels_dtype(manifest.tasks), (len(manifest.tasks),))
    if len(labels_NT) != len(index_N):
        raise UserError(
            f"{folder / spec.labels.file}: expected {len(index_N)} samples, found {len(labels_NT)}.\n{remedy(folder)}"
        )
    return index_N, labels_NT


def _load(path: Path, dtype: np.dtype, row: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.\n{remedy(path.parent)}") from None
    if array.dtype != dtype or array.ndim == 0 or array.shape[1:] != row:
        raise UserError(
            f"{path}: expected rows of shape {row} of {dtype}, found an array of shape {array.shape} of "
            f"{array.dtype}.\n{remedy(path.parent)}"
        )
    return array


def remedy(folder: Path) -> str:
    """What to type when a data folder is damaged."""
    return f"Copy {folder} again from where it was made, or delete it and run its `paretrain data ...` command again."
