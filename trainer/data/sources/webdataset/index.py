"""Index WebDataset shards that another program wrote. The shards are neither changed nor moved.

Shapes: N samples of a split, M array members, H rows, W columns, C channels.
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

from trainer.data.format.coverage import coverage, no_labels
from trainer.data.format.decode import decode_into
from trainer.data.format.explain import refusing
from trainer.data.format.foreign import ForeignSpec, stored_extensions
from trainer.data.format.index import index_shard, read_member, scalar_tasks, walk_samples
from trainer.data.format.manifest import (
    FILE_NAME,
    MANIFEST_NAME,
    Manifest,
    ShardSpec,
    SplitSpec,
    write_manifest,
)
from trainer.data.format.pixels import PixelMoments
from trainer.data.format.png import BadImageError
from trainer.data.format.publish import publishing
from trainer.data.format.shards import describe_file, write_array, write_names
from trainer.data.format.specs import DenseTaskSpec, ImageSpec, RegressionSpec, TaskSpec, doubled
from trainer.data.format.summary import summarise
from trainer.data.format.tar import open_tar
from trainer.data.sources.webdataset.description import Description, ask, read_description
from trainer.data.sources.webdataset.probe import probe
from trainer.errors import UserError
from trainer.files import sync

logger = logging.getLogger(__name__)

MAX_MEASURED = 1000
"""Images of the train split whose pixels are measured."""


def index_folder(folder: Path, description: Path | None, out: Path | None = None) -> Manifest:
    """Turn a folder of shards into a data folder: read them once, and write index, labels table and manifest.

    Args:
        folder: the folder of the shards.
        description: a YAML file like `description.TEMPLATE`. Means and standard deviations that it leaves out are
            measured.
        out: an empty folder, which gets links to the shards; None: write into the folder of the shards.

    Raises:
        UserError: there is no description or a faulty one, no shard, or a shard that is damaged or contains other
            samples than described.
    """
    if description is None:
        raise UserError(ask(folder))
    found, written = read_description(description)
    shards = {split: _find(folder, pattern) for split, pattern in found.splits.items()}
    names = _names(folder, [path for paths in shards.values() for path in paths], linked=out is not None)
    foreign = _with_input(found, next(iter(shards.values()))[0])
    with _in_place(folder) if out is None else publishing(out, MANIFEST_NAME) as target:
        splits, tables, used = {}, {}, set[float | str]()
        for split, paths in shards.items():
            splits[split], tables[split], used_here = _index(target, split, paths, names, found, foreign)
            used |= used_here
        if out is not None:
            for path, name in names.items():
                (target / name).symlink_to(path.resolve())
        first = "train" if "train" in tables else next(iter(tables))
        index_NM, labels_NT = tables[first]
        with refusing(f"{folder} cannot be described in a manifest"):
            manifest = Manifest(
                name=folder.resolve().name,
                made_by={"source": "index", "folder": str(folder), "description": written},
                input=found.input,
                tasks=tuple(_standardised(found.tasks, labels_NT, written["tasks"])),
                foreign=foreign,
                splits=splits,
            )
        if first == "train" and not any(seen.count for seen in coverage(found.tasks, *tables[first]).values()):
            raise UserError(no_labels(folder, manifest, [task.name for task in found.tasks], target))
        probe(target, manifest)
        if not {"mean", "std"} & written["input"].keys():
            image = _measure(target, manifest, first, index_NM[:, 0])
            manifest = manifest.model_copy(update={"input": image})
        write_manifest(target, manifest)
    given = dict.fromkeys(word for source in foreign.tasks.values() for word in source.missing)
    if unused := [word for word in given if word not in used]:
        logger.warning("%s: no label is %s, which `missing` names.", folder, " or ".join(map(repr, unused)))
    if "train" not in splits:
        logger.warning("%s: no split is called train, which training reads. Its splits: %s.", folder, ", ".join(splits))
    summarise(folder if out is None else out, manifest, {})
    return manifest


@contextmanager
def _in_place(folder: Path) -> Iterator[Path]:
    if (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} already is a data folder: it has a {MANIFEST_NAME}.")
    try:
        yield folder
        sync(folder)
    except OSError as error:
        raise UserError(
            f"Writing into {folder} failed: {error}.\nChoose a new folder with --out, which gets links to them."
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
    """Return the shards' names in the data folder."""
    if doubles := doubled(str(path) for path in paths):
        raise UserError(f"{doubles[0]} is in two splits. Test data must not be used for training.")
    names = {path: "-".join(path.relative_to(folder).parts) if linked else path.name for path in paths}
    for path, name in names.items():
        if path.parent != folder and not linked:
            raise UserError(
                f"{path} is in a subfolder of {folder}.\nChoose a new folder with --out, which gets links to them."
            )
        if not re.fullmatch(FILE_NAME, name):
            raise UserError(
                f"{path}: shards of a data folder have names of letters, digits, '.', '_' and '-'.\n"
                "Rename it" + ("." if linked else ", or choose a new folder with --out, which gets links to them.")
            )
    return names


def _index(
    target: Path,
    split: str,
    paths: Sequence[Path],
    names: Mapping[Path, str],
    found: Description,
    foreign: ForeignSpec,
) -> tuple[SplitSpec, tuple[np.ndarray, np.ndarray], set[float | str]]:
    """Write the tables of a split. Return its spec, index and labels, and the `missing` labels that samples have."""
    shards, tables = [], []
    shown = track(paths, f"{split} shards", console=Console(stderr=True), disable=not sys.stderr.isatty())
    for number, path in enumerate(shown):
        table = index_shard(
            path,
            number=number,
            members=stored_extensions(found.input, found.tasks, foreign),
            tasks=found.tasks,
            foreign=foreign,
        )
        shards.append(ShardSpec(samples=len(table.keys), **describe_file(path) | {"file": names[path]}))
        tables.append(table)
    index_NM = np.concatenate([table.index_NM for table in tables])
    labels_NT = np.concatenate([table.labels_NT for table in tables])
    of_samples = _sample_names([names[path] for path in paths], [table.keys for table in tables])
    files = {
        "index": write_array(target / f"{split}.index.npy", index_NM),
        "labels": write_array(target / f"{split}.labels.npy", labels_NT),
        "names": write_names(target / f"{split}.names.json", of_samples),
    }
    used = set[float | str]().union(*(table.used_missing for table in tables))
    return SplitSpec(shards=tuple(shards), **files), (index_NM, labels_NT), used


def _sample_names(files: Sequence[str], keys: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of a split's samples: their keys, or SHARD/KEY if some key is in two shards."""
    plain = [key for of_shard in keys for key in of_shard]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{file}/{key}" for file, of_shard in zip(files, keys, strict=True) for key in of_shard]


def _with_input(found: Description, shard: Path) -> ForeignSpec:
    """Return where input and labels are. A single member that ends in the encoding, such as a.jpg, is the input."""
    foreign, encoding = found.foreign, found.input.encoding
    if foreign.input is not None:
        return foreign
    with open_tar(shard) as tar:
        _, members = next(walk_samples(tar, str(shard), True), ("", {}))
    ending = [extension for extension in members if extension.endswith(f".{encoding}")]
    targets = {source.member for source in foreign.tasks.values()} | {
        task.extension for task in found.tasks if isinstance(task, DenseTaskSpec)
    }
    ending = [extension for extension in ending if extension not in targets]
    if encoding in members or len(ending) != 1:
        return foreign
    return foreign.model_copy(update={"input": ending[0]})


def _measure(folder: Path, manifest: Manifest, split: str, entries_N: np.ndarray) -> ImageSpec:
    """Return the spec of the input with mean and standard deviation of the pixels of evenly spaced images."""
    image = manifest.input
    assert isinstance(image, ImageSpec), "a description has images only"
    moments, slot_HWC = PixelMoments(image.channels), np.empty(image.shape, np.uint8)
    for entry in entries_N[np.linspace(0, len(entries_N) - 1, min(len(entries_N), MAX_MEASURED)).astype(int)]:
        try:
            decode_into(slot_HWC, read_member(folder, manifest.split(split), entry), image)
        except BadImageError:
            continue  # training counts it as a bad sample
        moments.add(slot_HWC)
    return moments.fill(image, manifest.name)


def _standardised(
    tasks: Sequence[TaskSpec], labels_NT: np.ndarray, written: Sequence[Mapping[str, Any]]
) -> list[TaskSpec]:
    """Return the tasks; regressions get mean and standard deviation of their labels, if the description has none."""
    columns = {task.name: column for column, task in enumerate(scalar_tasks(tasks))}
    found: list[TaskSpec] = []
    for task, values in zip(tasks, written, strict=True):
        if isinstance(task, RegressionSpec) and not {"mean", "std"} & values.keys():
            labels_N = labels_NT[:, columns[task.name]]
            labels_N = labels_N[~np.isnan(labels_N)]
            if labels_N.size:  # else mean 0 and std 1 remain, and a warning says that there is no label
                std = float(labels_N.std()) or 1.0
                task = RegressionSpec(name=task.name, unit=task.unit, mean=float(labels_N.mean()), std=std)
        found.append(task)
    return found
