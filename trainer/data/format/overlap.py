"""Find samples of other splits whose input is byte for byte that of a train sample.

Shapes: N samples of a split.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.format.index import read_member
from trainer.data.format.manifest import Manifest
from trainer.data.format.tables import Table, chunks, load_index


@dataclass(frozen=True)
class Overlap:
    """The samples of a split whose inputs are in the train split too.

    Attributes:
        count: how many.
        example: ids of one of them, and of the train sample.
    """

    count: int
    example: tuple[int, int]


def find_overlaps(folder: Path, manifest: Manifest) -> dict[str, Overlap]:
    """Return split -> its overlap with the train split, for the splits that have one.

    Checksum and size of the index find the candidates, and their bytes are compared.

    Args:
        folder: the data folder; shards that it lacks, as a copy of remote data may, are passed over.
        manifest: its manifest, with a train split.
    """
    train = load_index(folder, manifest, "train")[0]
    train_N = _keys(train)
    order_N = np.argsort(train_N, kind="stable")
    found = {}
    for split in manifest.splits:
        if split == "train":
            continue
        other = load_index(folder, manifest, split)[0]
        equal = list(_equal(folder, manifest, split, other, train, train_N, order_N))
        if equal:
            found[split] = Overlap(len(equal), equal[0])
    return found


def _keys(index_NM: Table) -> np.ndarray:
    """Return size and checksum of each input in one number."""
    parts = [rows_RM[:, 0] for _, rows_RM in chunks(index_NM)]
    inputs_N = np.concatenate(parts)
    return inputs_N["bytes"].astype(np.uint64) << np.uint64(32) | inputs_N["crc32"].astype(np.uint64)


def _equal(
    folder: Path,
    manifest: Manifest,
    split: str,
    other: Table,
    train: Table,
    train_N: np.ndarray,
    order_N: np.ndarray,
) -> Iterator[tuple[int, int]]:
    sorted_N, keys_N = train_N[order_N], _keys(other)
    for number in np.flatnonzero(np.isin(keys_N, sorted_N)).tolist():
        first = int(order_N[np.searchsorted(sorted_N, keys_N[number])])
        own = _content(folder, manifest, split, other, number)
        if own is not None and own == _content(folder, manifest, "train", train, first):
            yield number, first


def _content(folder: Path, manifest: Manifest, split: str, table: Table, number: int) -> bytes | None:
    try:
        return read_member(folder, manifest.split(split), table[np.array([number])][0, 0])
    except OSError:
        return None
