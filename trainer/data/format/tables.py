"""Read a split's index and labels table, and verify them.

A table is checked against the manifest and used from memory, so later changes of the file do not affect training; the
data workers are forked and share it. A large table stays on the disk: the checksums of its blocks are computed together
with the file's, and each block is checked again whenever it is read.

Shapes: N samples of a split, M array members, T scalar tasks, S shards, K blocks of a file, R rows of a chunk.
"""

import hashlib
import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data.format.faults import differs, out_of_memory, remedy, unreadable
from trainer.data.format.index import INDEX_DTYPE, labels_dtype, scalar_tasks, shard_rows
from trainer.data.format.manifest import FileSpec, Manifest, SplitSpec
from trainer.data.format.members import extensions
from trainer.data.format.npy import npy_header, npy_start, read_npy
from trainer.data.format.specs import LARGEST, MISSING, ClassificationSpec
from trainer.data.format.tar import MAX_MEMBER_BYTES
from trainer.errors import UserError
from trainer.files import open_regular

MAX_BYTES_IN_MEMORY = 512 << 20
"""Larger tables stay on the disk. Every rank has its own: an index of this size has 26 million samples."""

BLOCK_BYTES = 4096
"""Unit of reads and of CRC-32 checks of a table on the disk."""

HEADER_BYTES = 1 << 16
"""Upper bound of the size of a header."""

CHUNK_ROWS = 1 << 16
"""Rows that are processed at a time."""


class StoredTable:
    """A table on the disk; indexed like an array, by a slice of rows or an array of row numbers.

    Args:
        path: the file.
        start: the byte at which the rows begin.
        shape: number of rows and columns.
        dtype: type of an entry.
        crc32_K: CRC-32 of each BLOCK_BYTES of the file, computed when the file was verified.
    """

    def __init__(self, path: Path, start: int, shape: tuple[int, int], dtype: np.dtype, crc32_K: np.ndarray) -> None:
        self._path, self._start, self._crc32_K = path, start, crc32_K
        (self._rows, self._columns), self._dtype = shape, dtype
        self._row_bytes = self._columns * dtype.itemsize
        with open_regular(path) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, wanted: slice | np.ndarray) -> np.ndarray:
        if isinstance(wanted, slice):
            begin, end, _ = wanted.indices(self._rows)
            content = self._read(begin, end)
        else:
            content = b"".join(self._read(row, row + 1) for row in (wanted % self._rows).tolist())
        return np.frombuffer(content, self._dtype).reshape(-1, self._columns)

    def _read(self, begin: int, end: int) -> bytes:
        begin_byte, end_byte = (self._start + row * self._row_bytes for row in (begin, end))
        blocks = range(begin_byte // BLOCK_BYTES, -(-end_byte // BLOCK_BYTES))
        first_byte = blocks.start * BLOCK_BYTES
        try:
            content = os.pread(self._descriptor, len(blocks) * BLOCK_BYTES, first_byte)
        except OSError as error:
            raise unreadable(self._path, error) from None
        for number in blocks:
            begin_block = number * BLOCK_BYTES - first_byte
            if zlib.crc32(content[begin_block : begin_block + BLOCK_BYTES]) != self._crc32_K[number]:
                raise UserError(
                    f"{self._path}: byte {number * BLOCK_BYTES}: its content has changed since it was verified.\n"
                    f"{remedy(self._path.parent)}"
                )
        return content[begin_byte - first_byte : end_byte - first_byte]


Table = np.ndarray | StoredTable
"""Indexed by a slice of rows or an array of row numbers; may be larger than the memory."""


def chunks(table: Table) -> Iterator[tuple[int, np.ndarray]]:
    """Yield all rows in order, CHUNK_ROWS at a time, with the number of the first of them."""
    for begin in range(0, len(table), CHUNK_ROWS):
        yield begin, table[begin : begin + CHUNK_ROWS]


def load_index(folder: Path, manifest: Manifest, split: str) -> tuple[Table, Table]:
    """Read a split's index and labels table, compare them with the manifest and check every entry.

    Returns:
        Rows of INDEX_DTYPE, shape (N, M), and labels, shape (N, T).

    Raises:
        UserError: a file is missing, differs from the manifest, or contains invalid entries.
    """
    folder, spec = Path(folder), manifest.split(split)
    num_members, num_tasks = len(extensions(manifest.input, manifest.tasks)), len(scalar_tasks(manifest.tasks))
    index_NM = _read_table(folder, spec.index, INDEX_DTYPE, num_members)
    _check_index(folder, spec, index_NM)
    labels_NT = _read_table(folder, spec.labels, labels_dtype(manifest.tasks), num_tasks)
    if len(labels_NT) != len(index_NM):
        raise _fault(folder, spec.labels, f"expected {len(index_NM)} samples, found {len(labels_NT)}")
    _check_labels(folder, spec.labels, manifest, labels_NT)
    return index_NM, labels_NT


def _read_table(folder: Path, spec: FileSpec, dtype: np.dtype, columns: int) -> Table:
    path = folder / spec.file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != spec.bytes:
                raise _fault(folder, spec, f"expected {spec.bytes} bytes, as in manifest.json, found {size}")
            if size > MAX_BYTES_IN_MEMORY:
                return _verify_stored(folder, spec, file, dtype, columns)
            content = file.read(size + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise out_of_memory(f"read {path}, of {size:,} bytes") from None
    _compare(folder, spec, hashlib.sha256(content).hexdigest())
    _check_header(folder, spec, content, dtype, columns)
    return read_npy(content)


def _verify_stored(folder: Path, spec: FileSpec, file: BinaryIO, dtype: np.dtype, columns: int) -> StoredTable:
    header = file.read(HEADER_BYTES)
    shape = _check_header(folder, spec, header, dtype, columns)
    file.seek(0)
    digest = hashlib.sha256()
    crc32_K = np.empty(-(-spec.bytes // BLOCK_BYTES), np.uint32)
    for number in range(len(crc32_K)):
        block = file.read(BLOCK_BYTES)
        digest.update(block)
        crc32_K[number] = zlib.crc32(block)
    _compare(folder, spec, digest.hexdigest())
    return StoredTable(folder / spec.file, npy_start(header), shape, dtype, crc32_K)


def _compare(folder: Path, spec: FileSpec, found: str) -> None:
    if found != spec.sha256:
        raise differs(folder / spec.file, spec.sha256, found)


def _check_header(folder: Path, spec: FileSpec, content: bytes, dtype: np.dtype, columns: int) -> tuple[int, int]:
    """Return the shape of a table; refuse another type or shape, and a file of another length."""
    try:
        shape, found = npy_header(content)
    except ValueError as error:
        raise _fault(folder, spec, str(error)) from None
    if found != dtype or len(shape) != 2 or shape[1] != columns:
        raise _fault(
            folder,
            spec,
            f"expected rows of shape ({columns},) of {dtype}, as in manifest.json, found an array of shape {shape} of "
            f"{found}",
        )
    if npy_start(content) + shape[0] * columns * dtype.itemsize != spec.bytes:
        raise _fault(folder, spec, f"its header says {shape[0]} rows, which is not {spec.bytes} bytes")
    return shape


def _check_index(folder: Path, spec: SplitSpec, index_NM: Table) -> None:
    end_S = np.array([rows.stop for rows in shard_rows(spec)])
    bytes_S = np.array([shard.bytes for shard in spec.shards], np.uint64)
    counts_S = np.zeros(len(spec.shards), np.int64)
    in_order = len(index_NM) == end_S[-1]
    for begin, rows_RM in chunks(index_NM):
        shard_RM = rows_RM["shard"]
        if (wrong := shard_RM >= len(spec.shards)).any():
            sample_id = begin + int(wrong.any(1).argmax())
            fault = f"sample {sample_id} is in shard {shard_RM[wrong][0]}; the manifest has {len(spec.shards)}"
            raise _fault(folder, spec.index, fault)
        counts_S += np.bincount(shard_RM[:, 0], minlength=len(counts_S))
        expected_R = np.searchsorted(end_S, np.arange(begin, begin + len(rows_RM)), side="right")
        in_order = in_order and bool((shard_RM == expected_R[:, None]).all())
        size_RM, limit_RM = rows_RM["bytes"].astype(np.uint64), bytes_S[shard_RM]
        # In this order, because unsigned numbers wrap around.
        wrong = (size_RM > np.minimum(limit_RM, MAX_MEMBER_BYTES)) | (rows_RM["offset"] > limit_RM - size_RM)
        if wrong.any():
            row, member = np.argwhere(wrong)[0]
            shard, (_, offset, size, _) = spec.shards[shard_RM[row, member]], rows_RM[row, member].tolist()
            fault = f"sample {begin + row} has {size} bytes at byte {offset} of {shard.file}, which has {shard.bytes}"
            raise _fault(folder, spec.index, fault)
    for shard, found in zip(spec.shards, counts_S.tolist(), strict=True):
        if found != shard.samples:
            raise _fault(folder, shard, f"the manifest says {shard.samples} samples, the index has {found}")
    if not in_order:
        raise _fault(folder, spec.index, "it is not in the order of the manifest's shards")


def _check_labels(folder: Path, spec: FileSpec, manifest: Manifest, labels_NT: Table) -> None:
    tasks = scalar_tasks(manifest.tasks)
    for begin, labels_RT in chunks(labels_NT):
        for column, task in enumerate(tasks):
            labels_R = labels_RT[:, column]
            if isinstance(task, ClassificationSpec):
                right_R = (labels_R >= MISSING) & (labels_R < len(task.classes)) & (labels_R == np.floor(labels_R))
                expected = f"a class number below {len(task.classes)}, as in manifest.json, or {MISSING} for none"
            else:
                right_R = np.isnan(labels_R) | (np.abs(labels_R) <= LARGEST)
                expected = f"a finite number of at most {LARGEST:g}, or NaN for none"
            if not right_R.all():
                row = int(right_R.argmin())
                fault = f"sample {begin + row}: label of task {task.name!r} should be {expected}, found {labels_R[row]}"
                raise _fault(folder, spec, fault)


def _fault(folder: Path, spec: FileSpec, fault: str) -> UserError:
    return UserError(f"{folder / spec.file}: {fault}.\n{remedy(folder)}")
