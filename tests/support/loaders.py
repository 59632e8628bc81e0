"""Loaders of a folder, with the options of the rank among the others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.data.format.manifest import read_manifest
from trainer.data.format.tables import load_index
from trainer.data.reading.batch import Batch, RankOptions
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.order import START, Cursor
from trainer.data.remote.copies import Copy
from trainer.data.remote.folder import DataFolder

_OF_RANK = {field.name for field in dataclasses.fields(RankOptions)}


def data_folder(folder: Path, copy: Copy | None = None) -> DataFolder:
    return DataFolder(folder, read_manifest(folder), copy)


def train_loader(
    folder: Path,
    *,
    tasks: Sequence[str],
    global_batch: int,
    cursor: Cursor = START,
    copy: Copy | None = None,
    **options: Any,
) -> TrainLoader:
    """The loader of a run of one data folder."""
    data = data_folder(folder, copy)
    return TrainLoader(
        [data],
        samples_per_step=[global_batch],
        tasks=data.manifest.select_tasks(tasks),
        cursors={"": cursor},
        **_grouped(options),
    )


def eval_loader(folder: Path, *, tasks: Sequence[str], **options: Any) -> EvalLoader:
    data = data_folder(folder)
    return EvalLoader(data, tasks=data.manifest.select_tasks(tasks), **_grouped(options))


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.sample_ids_B.tolist() for batch in batches]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return ids(left) == ids(right) and all(
        torch.equal(a.inputs, b.inputs) and all(torch.equal(a.targets[t], b.targets[t]) for t in a.targets)
        for a, b in zip(left, right, strict=True)
    )


def damage(folder: Path, sample_id: int, content: bytes | None = None) -> None:
    """Overwrites the start of a train sample's image."""
    manifest = read_manifest(folder)
    row = load_index(folder, manifest, "train")[0][sample_id : sample_id + 1][0, 0]
    path = folder / manifest.splits["train"].shards[row["shard"]].file
    whole = bytearray(path.read_bytes())
    whole[row["offset"] : row["offset"] + 8] = content or bytes(8)
    path.write_bytes(whole)


def _grouped(options: dict[str, Any]) -> dict[str, Any]:
    of_rank = {name: value for name, value in options.items() if name in _OF_RANK}
    others = {name: value for name, value in options.items() if name not in _OF_RANK}
    return others | {"options": RankOptions(**of_rank)}
