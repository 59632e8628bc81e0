"""An index for WebDataset shards that another program wrote. The shards stay as they are, where they are.

Shapes: N samples of a split, M members that hold arrays, H rows, W columns, C channels.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.data.format.coverage import warnings
from trainer.data.format.decode import BadImageError, decode_into
from trainer.data.format.index import index_shard, scalar_tasks
from trainer.data.format.manifest import (
    FILE_NAME,
    MANIFEST_NAME,
    ForeignSpec,
    Manifest,
    ShardSpec,
    SplitSpec,
    write_manifest,
)
from trainer.data.format.members import extensions
from trainer.data.format.pixels import PixelMoments
from trainer.data.format.publish import publishing
from trainer.data.format.shards import describe_file, write_array
from trainer.data.format.specs import ImageSpec, RegressionSpec, TaskSpec, doubled, refusing
from trainer.data.sources.webdataset.description import Description, ask, read_description
from trainer.errors import UserError
from trainer.files import sync

logger = logging.getLogger(__name__)

MAX_MEASURED = 1000
"""Images of the train split whose pixels are measured."""


def index_folder(folder: Path, description: Path | None, out: Path | None = None) -> Manifest:
    """Makes a data folder of a folder of shards: reads them once, and writes index, labels table and manifest.

    Args:
        folder: with the shards.
        description: a YAML file, as `description.TEMPLATE`. Means and standard deviations that it leaves out are
            measured.
        out: an empty folder, which gets links to the shards; None: write beside the shards.

    Raises:
        UserError: no description or a faulty one, no shard, one that is damaged or holds other samples than described.
    """
    if description is None:
        raise UserError(ask(folder))
    found, written = read_description(description)
    shards = {split: _find(folder, pattern) for split, pattern in found.splits.items()}
    names = _names(folder, [path for paths in shards.values() for path in paths], linked=out is not None)
    foreign = ForeignSpec(labels=found.labels)
    with _beside(folder) if out is None else publishing(out, MANIFEST_NAME) as place:
        splits, tables = {}, {}
        for split, paths in shards.items():
            splits[split], tables[split] = _index(place, split, paths, names, found, foreign)
        if out is not None:
            for path, name in names.items():
                (place / name).symlink_to(path.resolve())
        first = "train" if "train" in tables else next(iter(tables))
        index_NM, labels_NT = tables[first]
        measured = {"mean", "std"} & written["input"].keys()
        image = found.input if measured else _measure(found.input, shards[first], index_NM[:, 0])
        with refusing(f"{folder} cannot be described in a manifest"):
            manifest = Manifest(
                name=folder.resolve().name,
                made_by={"source": "index", "folder": str(folder), "description": written},
                input=image,
                tasks=tuple(_standardised(found.tasks, labels_NT, written["tasks"])),
                foreign=foreign,
                splits=splits,
            )
        write_manifest(place, manifest)
    for warning in warnings(folder if out is None else out, manifest):
        logger.warning("%s", warning)
    return manifest


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    if (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} already is a data folder: it has a {MANIFEST_NAME}.")
    try:
        yield folder
        sync(folder)
    except OSError as error:
        raise UserError(
            f"Writing into {folder} failed: {error}.\nGive --out a new folder, to hold links to the shards."
        ) from None


def _find(folder: Path, pattern: str) -> list[Path]:
    try:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"Expected a pattern of files in {folder}, such as train-*.tar, found {pattern!r}: {error}."
        ) from None
    if not paths:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "no such folder"
        raise UserError(f"{folder} has no {pattern}; found: {there or 'nothing'}.")
    return paths


def _names(folder: Path, paths: Sequence[Path], *, linked: bool) -> dict[Path, str]:
    """What the shards are called in the data folder."""
    if doubles := doubled(str(path) for path in paths):
        raise UserError(f"{doubles[0]} is in two splits. A sample for testing is none for training.")
    names = {path: "-".join(path.relative_to(folder).parts) if linked else path.name for path in paths}
    for path, name in names.items():
        if path.parent != folder and not linked:
            raise UserError(f"{path} lies deeper than {folder}.\nGive --out a new folder, to hold links to the shards.")
        if not re.fullmatch(FILE_NAME, name):
            raise UserError(
                f"{path}: the names of shards in a data folder are made of letters, digits, '.', '_' and '-'.\n"
                "Rename it" + ("." if linked else ", or give --out a new folder, to hold links to the shards.")
            )
    return names


def _index(
    place: Path,
    split: str,
    paths: Sequence[Path],
    names: Mapping[Path, str],
    found: Description,
    foreign: ForeignSpec,
) -> tuple[SplitSpec, tuple[np.ndarray, np.ndarray]]:
    shards, tables = [], []
    shown = track(paths, f"{split} shards", console=Console(stderr=True), disable=not sys.stderr.isatty())
    for number, path in enumerate(shown):
        table = index_shard(
            path, number=number, members=extensions(found.input, found.tasks), tasks=found.tasks, foreign=foreign
        )
        shards.append(ShardSpec(samples=len(table[0]), **describe_file(path) | {"file": names[path]}))
        tables.append(table)
    index_NM, labels_NT = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    files = {
        "index": write_array(place / f"{split}.index.npy", index_NM),
        "labels": write_array(place / f"{split}.labels.npy", labels_NT),
    }
    return SplitSpec(shards=tuple(shards), **files), (index_NM, labels_NT)


def _measure(image: ImageSpec, paths: Sequence[Path], rows_N: np.ndarray) -> ImageSpec:
    """The spec with mean and standard deviation of the pixels of some images, evenly taken."""
    moments, slot_HWC = PixelMoments(image.channels), np.empty(image.shape, np.uint8)
    for row in rows_N[np.linspace(0, len(rows_N) - 1, min(len(rows_N), MAX_MEASURED)).astype(int)]:
        with paths[row["shard"]].open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["bytes"])
        try:
            decode_into(slot_HWC, data, image)
        except BadImageError:
            continue  # a bad sample is counted when it is trained on
        moments.add(slot_HWC)
    return moments.fill(image, paths[0].parent)


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
            task = RegressionSpec(name=task.name, unit=task.unit, mean=float(labels_N.mean()), std=std)
        found.append(task)
    return found
