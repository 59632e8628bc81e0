"""The one file that makes a pile of shards a data set.

The manifest is written last, so a folder that has one is whole. It names every file with its size and checksum, and
says what the samples hold. A trainer needs the folder alone.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from trainer.data.format.publish import PARTIAL_NAME
from trainer.data.format.specs import DataSpec, Name, Part, TaskSpec, doubled, explain
from trainer.data.format.tar import BLOCK
from trainer.errors import UserError, did_you_mean
from trainer.files import read_bytes, write_durably

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION: Literal[2] = 2

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"

MAX_FILE_BYTES = 2**50
"""A pebibyte; it keeps sums of forged sizes in the range of 64 bits."""

MAX_MANIFEST_BYTES = 256 << 20
"""Of a million shards."""

SplitName = Annotated[str, Field(pattern=FILE_NAME)]
"""Begins the names of the split's files."""


class ForeignSpec(Part):
    """How shards are read that another program wrote. Members that nobody asks for are passed over."""

    labels: Name = "json"
    """Extension of the member with the labels: a JSON object by task, or, of the only task, its label alone."""


class FileSpec(Part):
    """A file of the folder, as it was written."""

    file: str = Field(pattern=FILE_NAME)
    """Name inside the folder."""
    bytes: int = Field(gt=0, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardSpec(FileSpec):
    """A WebDataset tar."""

    samples: PositiveInt

    @model_validator(mode="after")
    def _samples_have_room(self) -> "ShardSpec":
        if self.samples * BLOCK > self.bytes:
            raise ValueError(f"{self.samples} samples need a header each, and do not fit into {self.bytes} bytes")
        return self


class SplitSpec(Part):
    """One split: its shards in order, where each sample lies in them, and every label in one table."""

    shards: tuple[ShardSpec, ...] = Field(min_length=1)
    """Sample ids count through the shards in this order."""
    index: FileSpec
    """`.npy` of `format.index.INDEX_DTYPE`, samples x members: the input, then the dense tasks' targets."""
    labels: FileSpec
    """`.npy` of numbers, samples x tasks with one label a sample, in the order of the manifest's tasks."""

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """All files of the split."""
        return (*self.shards, self.index, self.labels)

    @property
    def num_samples(self) -> int:
        """Samples in all its shards."""
        return sum(shard.samples for shard in self.shards)


class Manifest(DataSpec):
    """A data folder: what it is, what its samples hold and which files make it up."""

    format_version: Literal[2] = FORMAT_VERSION
    foreign: ForeignSpec | None = None
    """null: the shards are our own, and hold what the tasks name and nothing else."""
    splits: dict[SplitName, SplitSpec] = Field(min_length=1)
    """By name, usually `train` and `test`."""

    @model_validator(mode="after")
    def _file_names_are_unique(self) -> "Manifest":
        if doubles := doubled(spec.file for split in self.splits.values() for spec in split.files):
            raise ValueError(f"file names must be unique, found twice: {', '.join(doubles)}")
        return self

    def split(self, name: str) -> SplitSpec:
        """The split of that name; UserError when the data has no such split."""
        if name not in self.splits:
            raise UserError(
                f"Data {self.name!r} has no split {name!r}{did_you_mean(name, self.splits)}\n"
                f"Its splits: {', '.join(self.splits)}."
            )
        return self.splits[name]

    def num_samples(self, split: str) -> int:
        """Samples in a split."""
        return self.split(split).num_samples

    def select_tasks(self, names: Iterable[str]) -> tuple[TaskSpec, ...]:
        """The tasks of those names, in that order.

        Raises:
            UserError: a name that the data does not have, a name given twice, or no name at all.
        """
        known = {task.name: task for task in self.tasks}
        wanted = tuple(names)
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"Data {self.name!r} has no task {name!r}{did_you_mean(name, known)}\n"
                    f"Its tasks: {', '.join(known)}."
                )
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"Expected one or more different tasks, found {list(wanted)}.")
        return tuple(known[name] for name in wanted)

    def fingerprint(self, split: str) -> str:
        """SHA-256 over all that decides a split's samples: input, tasks, and the checksums of its files."""
        parts = {
            "input": self.input.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in self.tasks],
            "split": self.split(split).model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a folder's manifest, durably."""
    write_durably(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates a data folder's manifest.

    Args:
        folder: what `paretrain data ... --out` wrote.

    Raises:
        UserError: no such folder, no manifest in it, or one that cannot be understood.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            raise UserError(
                f"No data folder {folder}.\nMake one, for instance with: paretrain data digits --out {folder}"
            )
        text = read_bytes(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise UserError(_missing(folder)) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Validate a manifest that somebody else may have written.

    Args:
        text: its JSON.
        where: begins the sentence of an error: its path or address.

    Raises:
        UserError: it cannot be understood.
    """
    again = "Make the data again with `paretrain data ...` into a new folder."
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply.\n{again}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.\n{again}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {repr(version)[:40]}; this paretrain reads version {FORMAT_VERSION}.\n"
            f"{again} Or use the paretrain that wrote it."
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where} is not a valid manifest:\n{explain(error)}\n{again}") from None


def _missing(folder: Path) -> str:
    if (folder / PARTIAL_NAME).exists():
        return f"{folder} holds an unfinished conversion.\nRun its `paretrain data ...` command again."
    return (
        f"{folder} has no {MANIFEST_NAME}, so it is no data folder.\n"
        f"Make one, for instance with: paretrain data digits --out DIR"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; refuse a key that is there twice, of which only the last would count."""
    if doubles := doubled(key for key, _ in pairs):
        raise ValueError(f"key {doubles[0][:40]!r} is there twice")
    return dict(pairs)
