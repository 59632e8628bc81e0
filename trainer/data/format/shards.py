"""Write samples into WebDataset shards. The same samples give the same bytes.

A folder with a manifest is complete; a folder without one is refused.
"""

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.data.format.explain import refusing
from trainer.data.format.index import index_shard
from trainer.data.format.manifest import (
    FILE_NAME,
    MANIFEST_NAME,
    FileSpec,
    Manifest,
    ShardSpec,
    SplitSpec,
    write_manifest,
)
from trainer.data.format.members import BadMemberError, MemberSpec, check_member, dense_tasks, extensions
from trainer.data.format.publish import publishing
from trainer.data.format.specs import DataSpec, DenseTaskSpec, FeaturesSpec, ImageSpec, TaskSpec
from trainer.data.format.summary import summarise
from trainer.data.format.tar_writer import tar_end, tar_member
from trainer.errors import UserError
from trainer.files import sha256, write_durably

_TO_JSON = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True)
class Sample:
    """One sample to be written.

    Attributes:
        inputs: the image or the row of features, encoded as its spec says.
        labels: scalar task -> class index or value; None or absent if the sample has no label.
        maps: dense task -> encoded target; absent if the sample has none.
        name: what it is called in error messages and in the table of `paretrain predict`, such as its file.
    """

    inputs: bytes
    labels: Mapping[str, int | float | None]
    maps: Mapping[str, bytes] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Source:
    """The content of a data folder; `paretrain data from MODULE.FUNCTION` expects the function to return one.

    Attributes:
        name: name of the data set.
        inputs: what every sample's input decodes to.
        tasks: the tasks that samples have labels for.
        splits: the samples of each split, including `train` and `test`. Each is read once, so it may be a generator.
    """

    name: str
    inputs: ImageSpec | FeaturesSpec
    tasks: Sequence[TaskSpec]
    splits: Mapping[str, Iterable[Sample]]


def write_shards(
    out: Path,
    *,
    name: str,
    made_by: dict[str, Any],
    inputs: ImageSpec | FeaturesSpec,
    tasks: Sequence[TaskSpec],
    splits: Mapping[str, Iterable[Sample]],
    samples_per_shard: int = 5000,
    reasons: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a data folder: tar shards, an index and a labels table per split, and the manifest. Print a line a task.

    Args:
        out: a folder that does not exist yet, is empty, or contains an interrupted conversion, which starts over.
        name: name of the data set.
        made_by: how the samples were made (source, seed, options), for the manifest.
        inputs: what every sample's input decodes to.
        tasks: the tasks that samples have labels for.
        splits: the samples of each split, in the order of their ids.
        samples_per_shard: size of every shard but a split's last.
        reasons: task -> what was decided about it and why, for its line.

    Raises:
        UserError: the folder is in use, a split has no samples, a sample does not fit `inputs` and `tasks`, or the disk
            is full.
    """
    spec = _spec(name, made_by, inputs, tasks, splits)
    with publishing(Path(out), MANIFEST_NAME) as folder:
        written = {
            split: _write_split(folder, split, samples, inputs, tasks, samples_per_shard)
            for split, samples in splits.items()
        }
        manifest = Manifest(**dict(spec), splits=written)
        write_manifest(folder, manifest)
    summarise(Path(out), manifest, reasons or {})
    return manifest


def _spec(
    name: str,
    made_by: dict[str, Any],
    inputs: ImageSpec | FeaturesSpec,
    tasks: Sequence[TaskSpec],
    splits: Iterable[str],
) -> DataSpec:
    """Build the part of the manifest that does not depend on samples, to find its faults before any are written."""
    for split in splits:
        if not re.fullmatch(FILE_NAME, split):
            raise UserError(f"Expected letters, digits, '.', '_' and '-' in the name of a split, found {split!r}.")
    with refusing(f"Data {name!r} cannot be written"):
        return DataSpec(name=name, made_by=made_by, input=inputs, tasks=tuple(tasks))


def _write_split(
    folder: Path,
    split: str,
    samples: Iterable[Sample],
    inputs: ImageSpec | FeaturesSpec,
    tasks: Sequence[TaskSpec],
    samples_per_shard: int,
) -> SplitSpec:
    dense = {task.name: task for task in dense_tasks(tasks)}
    # Training tolerates and counts a few images that do not decode; evaluation tolerates none.
    whole = split != "train"
    shards, indexes, labels = [], [], []
    names: list[str] = []
    shown = track(samples, f"{split} samples", console=Console(stderr=True), disable=not sys.stderr.isatty())
    numbered = enumerate(shown)
    for number in itertools.count():
        chunk = itertools.islice(numbered, samples_per_shard)
        first = next(chunk, None)
        if first is None:
            break
        path = folder / f"{split}-{number:06d}.tar"
        with path.open("wb") as file:
            for number_in_split, sample in itertools.chain([first], chunk):
                key = f"{number_in_split:09d}"
                names.append(sample.name)
                for extension, content in _members(key, sample, inputs, dense, whole=whole).items():
                    file.write(tar_member(f"{key}.{extension}", content))
            file.write(tar_end(file.tell()))
            file.flush()
            os.fsync(file.fileno())
        # Readers get what is on the disk, so the index is made from that.
        found = index_shard(path, number=number, members=extensions(inputs, tasks), tasks=tasks)
        shards.append(ShardSpec(samples=len(found.keys), **describe_file(path)))
        indexes.append(found.index_NM)
        labels.append(found.labels_NT)
    if not shards:
        raise UserError(f"The {split} split has no samples.")
    index = write_array(folder / f"{split}.index.npy", np.concatenate(indexes))
    table = write_array(folder / f"{split}.labels.npy", np.concatenate(labels))
    named = None
    if any(names):
        named = write_names(folder / f"{split}.names.json", names)
    return SplitSpec(shards=tuple(shards), index=index, labels=table, names=named)


def _members(
    key: str, sample: Sample, inputs: ImageSpec | FeaturesSpec, dense: Mapping[str, DenseTaskSpec], *, whole: bool
) -> dict[str, bytes]:
    if not sample.maps.keys() <= dense.keys():
        raise UserError(f"Sample {key}: expected targets of {sorted(dense)}, found {sorted(sample.maps)}.")
    # An absent label means the same as null, and takes no space where most of thousands are missing.
    text = _TO_JSON.encode({name: label for name, label in sample.labels.items() if label is not None})
    found: dict[str, tuple[bytes, MemberSpec]] = {inputs.encoding: (sample.inputs, inputs)}
    found |= {dense[name].extension: (data, dense[name]) for name, data in sample.maps.items()}
    for extension, (data, spec) in found.items():
        try:
            check_member(data, spec, inputs, whole=whole)
        except BadMemberError as error:
            where = f"Sample {key} ({sample.name})" if sample.name else f"Sample {key}"
            raise UserError(f"{where}, {extension}: {error}.\nFix it, or leave it out.") from None
    members = {"json": text.encode()} | {extension: data for extension, (data, _) in found.items()}
    return dict(sorted(members.items()))


def write_array(path: Path, array: np.ndarray) -> FileSpec:
    """Write an `.npy` file durably and return its spec."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return _write(path, buffer.getvalue())


def write_names(path: Path, names: Sequence[str]) -> FileSpec:
    """Write the names of a split's samples durably and return the file's spec."""
    return _write(path, f"{json.dumps(names, indent=0)}\n".encode())


def _write(path: Path, content: bytes) -> FileSpec:
    write_durably(path, content)
    return FileSpec(**describe_file(path))


def describe_file(path: Path) -> dict[str, Any]:
    """Return the values of a file's FileSpec."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
