"""An index for WebDataset shards that another program wrote. The shards stay as they are, where they are.

Shapes: N samples of a split, M members that hold arrays, H rows, W columns, C channels.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from trainer.data.decode import BadImageError, decode_into
from trainer.data.description import Description, ask, read_description
from trainer.data.index import index_shard, scalar_tasks
from trainer.data.manifest import MANIFEST_NAME, ForeignSpec, Manifest, ShardSpec, SplitSpec
from trainer.data.members import extensions
from trainer.data.pixels import PixelMoments
from trainer.data.shards import describe_file, write_array
from trainer.data.specs import ImageSpec, RegressionSpec, TaskSpec
from trainer.errors import UserError
from trainer.files import sync_folder, write_durably

MAX_MEASURED = 1000
"""Images of the train split whose pixels are measured."""


def index_folder(folder: Path, description: Path | None, out: Path | None = None) -> Manifest:
    """Makes a data folder of a folder of shards: reads them once, and writes index, labels table and manifest.

    Args:
        folder: with the shards.
        description: a YAML file, as `trainer.data.description.TEMPLATE`. Means and standard deviations that it leaves
            out are measured.
        out: an empty folder, which gets links to the shards; None: write beside the shards.

    Raises:
        UserError: no description or a faulty one, no shard, one that is damaged or holds other samples than described.
    """
    if description is None:
        raise UserError(ask(folder))
    found, written = read_description(description)
    shards = {split: _find(folder, pattern) for split, pattern in found.splits.items()}
    if out is None:
        out = folder
        if (folder / MANIFEST_NAME).exists():
            raise UserError(f"{folder} already is a data folder: it has a {MANIFEST_NAME}.")
    else:
        shards = {split: _link(folder, paths, out) for split, paths in shards.items()}
    foreign = ForeignSpec(labels=found.labels)
    splits, tables = {}, {}
    for split, paths in shards.items():
        splits[split], tables[split] = _index(out, split, paths, found, foreign)
    first = "train" if "train" in tables else next(iter(tables))
    index_NM, labels_NT = tables[first]
    manifest = Manifest(
        name=folder.resolve().name,
        made_by={"source": "index", "folder": str(folder), "description": written},
        input=found.input if "mean" in written["input"] else _measure(found.input, shards[first], index_NM[:, 0]),
        tasks=tuple(_standardised(found.tasks, labels_NT, written["tasks"])),
        foreign=foreign,
        splits=splits,
    )
    write_durably(out / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())
    sync_folder(out)
    return manifest


def _find(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not paths:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "no such folder"
        raise UserError(f"{folder} has no {pattern}; found: {there or 'nothing'}.")
    return paths


def _link(folder: Path, paths: Sequence[Path], out: Path) -> list[Path]:
    links = [out / "-".join(path.relative_to(folder).parts) for path in paths]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for link, path in zip(links, paths, strict=True):
            link.symlink_to(path.resolve())
    except OSError as error:
        raise UserError(f"{out} should be a new folder, to hold links to the shards: {error}.") from None
    return links


def _index(
    out: Path, split: str, paths: Sequence[Path], found: Description, foreign: ForeignSpec
) -> tuple[SplitSpec, tuple[np.ndarray, np.ndarray]]:
    shards, tables = [], []
    shown = track(paths, f"{split} shards", console=Console(stderr=True), disable=not sys.stderr.isatty())
    for number, path in enumerate(shown):
        try:
            table = index_shard(
                path,
                number=number,
                members=extensions(found.input, found.tasks),
                tasks=found.tasks,
                foreign=foreign,
            )
            shards.append(ShardSpec(samples=len(table[0]), **describe_file(path)))
        except ValidationError:
            raise UserError(
                f"{path}: the names of shards in a data folder are made of letters, digits, '.', '_' and '-'.\n"
                "Rename it, or give --out a new folder, to hold links to the shards."
            ) from None
        tables.append(table)
    index_NM, labels_NT = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    files = {
        "index": write_array(out / f"{split}.index.npy", index_NM),
        "labels": write_array(out / f"{split}.labels.npy", labels_NT),
    }
    return SplitSpec(shards=tuple(shards), **files), (index_NM, labels_NT)


def _measure(image: ImageSpec, paths: Sequence[Path], rows_N: np.ndarray) -> ImageSpec:
    """The spec with mean and standard deviation of the pixels of some images, evenly taken."""
    moments, slot_HWC, decoded = PixelMoments(image.channels), np.empty(image.shape, np.uint8), 0
    for row in rows_N[np.linspace(0, len(rows_N) - 1, min(len(rows_N), MAX_MEASURED)).astype(int)]:
        with paths[row["shard"]].open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["bytes"])
        try:
            decode_into(slot_HWC, data, image)
        except BadImageError:
            continue  # a bad sample is counted when it is trained on
        moments.add(slot_HWC)
        decoded += 1
    if not decoded or min(moments.std) == 0:
        raise UserError(f"{paths[0].parent}: no image can be decoded, or all are of one single colour.")
    return image.model_copy(update={"mean": moments.mean, "std": moments.std})


def _standardised(
    tasks: Sequence[TaskSpec], labels_NT: np.ndarray, written: Sequence[Mapping[str, Any]]
) -> list[TaskSpec]:
    """The tasks, a regression with mean and standard deviation of its labels where the description has none."""
    columns = {task.name: column for column, task in enumerate(scalar_tasks(tasks))}
    found: list[TaskSpec] = []
    for task, values in zip(tasks, written, strict=True):
        if isinstance(task, RegressionSpec) and not {"mean", "std"} & values.keys():
            labels_N = labels_NT[:, columns[task.name]]
            labels_N = labels_N[~np.isnan(labels_N)]
            if not labels_N.size:
                raise UserError(f"Task {task.name!r} has no label in the train split.")
            std = float(labels_N.std()) or 1.0
            task = task.model_copy(update={"mean": float(labels_N.mean()), "std": std})
        found.append(task)
    return found
