"""Build the index of a shard, which says where each sample is stored, and the table of its labels.

Both are derived from the shards alone, so they can be rebuilt and compared at any time. They let the loader read any
member with one `pread` and no parsing. `format.tables` reads them back.

Shapes: N samples of a split, S shards, M array members (the input, then the dense tasks' targets), T scalar tasks (one
label per sample).
"""

import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.format.foreign import ForeignSpec, normal_extension
from trainer.data.format.foreign_labels import LabelReader
from trainer.data.format.manifest import SplitSpec
from trainer.data.format.specs import LARGEST, MISSING, ClassificationSpec, RegressionSpec, ScalarTaskSpec, TaskSpec
from trainer.data.format.tar import Member, TarBytes, open_tar, walk_tar
from trainer.errors import UserError
from trainer.files import open_regular

INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])
"""One entry per member: the number of its shard in the split, and its position there; 0 bytes if it is absent."""


def scalar_tasks(tasks: Sequence[TaskSpec]) -> list[ScalarTaskSpec]:
    """Return the tasks with one label per sample, in the order of the labels table's columns."""
    return [task for task in tasks if isinstance(task, ScalarTaskSpec)]


def labels_dtype(tasks: Sequence[TaskSpec]) -> np.dtype:
    """Return the labels table's type: float64 if there is a regression, else the narrowest of int8, int16 and int32."""
    tasks = scalar_tasks(tasks)
    if any(isinstance(task, RegressionSpec) for task in tasks):
        return np.dtype("<f8")
    most = max((len(task.classes) for task in tasks if isinstance(task, ClassificationSpec)), default=0)
    return next(dtype for dtype in map(np.dtype, ("i1", "<i2", "<i4")) if most <= np.iinfo(dtype).max)


class IndexedShard(NamedTuple):
    """What a shard contains.

    Attributes:
        index_NM: rows of INDEX_DTYPE, shape (N, M).
        labels_NT: shape (N, T): class indices or MISSING, values or NaN.
        keys: of the N samples, which are the names of their members up to the first dot.
        used_missing: labels that samples have and that the description of a foreign shard calls missing.
    """

    index_NM: np.ndarray
    labels_NT: np.ndarray
    keys: list[str]
    used_missing: set[float | str]


def index_shard(
    path: Path,
    *,
    number: int,
    members: Sequence[str],
    tasks: Sequence[TaskSpec],
    foreign: ForeignSpec | None = None,
) -> IndexedShard:
    """Read a whole shard and return where its samples are stored and how they are labelled.

    Args:
        path: the tar.
        number: the shard's number in its split.
        members: extensions of the array members: the input, which every sample has, then the dense tasks.
        tasks: the tasks whose labels to read from the JSON members.
        foreign: how to read the shard, if another program wrote it.

    Raises:
        UserError: a sample is incomplete or faulty, or the tar is damaged; the message names the sample or the byte.
    """
    rows, labels = [], []
    keys: dict[str, None] = {}
    tasks = scalar_tasks(tasks)
    columns = [
        _Column(task.name, len(task.classes) if isinstance(task, ClassificationSpec) else 0, task) for task in tasks
    ]
    reader = LabelReader(tasks, foreign) if foreign else None
    of_labels = reader.members if reader else {"json"}
    required, known = {members[0]} | (set() if foreign else of_labels), {*members, *of_labels}
    with open_tar(path) as tar:
        for key, found in walk_samples(tar, str(path), foreign is not None):
            if key in keys:
                raise UserError(f"{path}: key {key!r} appears twice; a sample's members must be adjacent.")
            keys[key] = None
            there = sorted(found)
            if foreign:
                found = {extension: member for extension, member in found.items() if extension in known}
            if not required <= found.keys() <= known:
                optional = f" and optionally {', '.join(members[1:])}" if members[1:] else ""
                raise UserError(f"{path}: sample {key!r} has members {there}, expected {sorted(required)}{optional}.")
            where = f"{path}: sample {key!r}"
            for extension in members[1:]:
                if extension in found and not found[extension].size:
                    raise UserError(f"{where}: member {extension!r} is empty; leave out members without content.")
            rows.append([_row(tar, number, found.get(extension)) for extension in members])
            texts = {name: _content(tar, found[name]) for name in of_labels if name in found}
            labels.append(reader.read(texts, where) if reader else _labels(texts["json"], columns, where))
    if not rows:
        with open_tar(path) as tar:
            names = [member.name for member in islice(walk_tar(tar, str(path), tolerant=foreign is not None), 3)]
        shown = f": expected members such as KEY.{members[0]}, found {', '.join(map(repr, names))}" if names else ""
        raise UserError(f"{path} contains no sample{shown}.")
    index_NM = np.array(rows, INDEX_DTYPE).reshape(-1, len(members))
    labels_NT = np.array(labels, labels_dtype(tasks)).reshape(len(rows), len(tasks))
    return IndexedShard(index_NM, labels_NT, list(keys), reader.used_missing if reader else set())


def _content(tar: TarBytes, member: Member) -> bytes:
    return tar[member.offset : member.offset + member.size]


def _row(tar: TarBytes, number: int, member: Member | None) -> tuple[int, int, int, int]:
    if member is None:
        return number, 0, 0, 0
    return number, member.offset, member.size, zlib.crc32(_content(tar, member))


def walk_samples(tar: TarBytes, where: str, foreign: bool) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield key and members, by extension, of every sample.

    Raises:
        UserError: a member appears twice, or the tar is damaged.
    """
    # WebDataset's rule: a sample is a run of members with the same key, the name up to its first dot.
    split = _split_foreign if foreign else _split
    named = ((*split(member.name), member) for member in walk_tar(tar, where, tolerant=foreign))
    for key, run in groupby((row for row in named if row[0]), lambda row: row[0]):
        members: dict[str, Member] = {}
        for _, extension, member in run:
            if extension in members:
                raise UserError(f"{where}: member {member.name!r} appears twice.")
            members[extension] = member
        yield key, members


def _split(name: str) -> tuple[str, str]:
    key, _, extension = name.partition(".")
    return key, extension


def _split_foreign(name: str) -> tuple[str, str]:
    """Return key and extension as WebDataset does; no key for files outside of samples: `._photo.jpg`, README."""
    folder, slash, name = name.removeprefix("./").rpartition("/")
    stem, dot, extension = name.partition(".")
    return folder + slash + stem if stem and dot else "", normal_extension(extension)


class _Column(NamedTuple):
    """A task and its number of classes, or 0. For speed, nearly every label is checked against that number alone."""

    name: str
    num_classes: int
    task: ScalarTaskSpec


def _labels(text: bytes, columns: Sequence[_Column], where: str) -> list[int | float]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its labels are not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: its labels should be a JSON object, found {text[:40]!r}.")
    return [
        value if type(value := found.get(name)) is int and 0 <= value < num_classes else _label(value, task, where)
        for name, num_classes, task in columns
    ]


def _label(value: object, task: ScalarTaskSpec, where: str) -> int | float:
    if isinstance(task, ClassificationSpec):
        if value is None:
            return MISSING
        if type(value) is int and 0 <= value < len(task.classes):
            return value
        expected = f"a class number from 0 to {len(task.classes) - 1}"
    else:
        if value is None:
            return math.nan
        if isinstance(value, int | float) and type(value) is not bool and abs(value) <= LARGEST:
            return value
        expected = f"a finite number of at most {LARGEST:g}"
    raise UserError(f"{where}: label of task {task.name!r} should be null or {expected}, found {repr(value)[:40]}.")


def read_member(folder: Path, split: SplitSpec, entry: np.void) -> bytes:
    """Read a member from its shard, given its entry in the index.

    Raises:
        OSError: the shard is missing or cannot be read.
    """
    with open_regular(folder / split.shards[int(entry["shard"])].file) as file:
        return os.pread(file.fileno(), int(entry["bytes"]), int(entry["offset"]))


def shard_rows(split: SplitSpec) -> list[slice]:
    """Return, for each shard, its rows of the index and the labels table."""
    ends = list(accumulate(shard.samples for shard in split.shards))
    return [slice(end - shard.samples, end) for end, shard in zip(ends, split.shards, strict=True)]
