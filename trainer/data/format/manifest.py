"""The manifest: the file that turns a folder of shards into a data set.

It is written last, so a folder that has one is complete. It lists every file with its size and checksum, and describes
what the samples contain. Training needs nothing but the folder.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_serializer, model_validator

from trainer.data.format.explain import explain
from trainer.data.format.foreign import ForeignSpec
from trainer.data.format.publish import PARTIAL_NAME
from trainer.data.format.specs import DataSpec, Part, doubled
from trainer.data.format.tar import BLOCK
from trainer.errors import UserError, did_you_mean
from trainer.files import read_bytes, write_durably

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION: Literal[2] = 2

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"

MAX_FILE_BYTES = 2**50
"""A pebibyte. The bound keeps sums of forged sizes within 64 bits."""

MAX_MANIFEST_BYTES = 256 << 20
"""Enough for a million shards."""

SplitName = Annotated[str, Field(pattern=FILE_NAME)]
"""Also the prefix of the split's file names."""


class FileSpec(Part):
    """A file of the data folder."""

    file: str = Field(pattern=FILE_NAME)
    """Name in the folder."""
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
    """One split: its shards in order, the index of its samples, and the table of their labels."""

    shards: tuple[ShardSpec, ...] = Field(min_length=1)
    """Sample ids count through the shards in this order."""
    index: FileSpec
    """`.npy` of `format.index.INDEX_DTYPE`, samples x members: the input, then the dense tasks' targets."""
    labels: FileSpec
    """`.npy` of numbers, samples x tasks with one label a sample, in the order of the manifest's tasks."""
    names: FileSpec | None = None
    """JSON: a list with the name of each sample, such as its image's file. null: the samples have no names."""

    @model_serializer(mode="wrap")
    def _what_is_there(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Manifests without names stay as earlier versions wrote them.
        return {key: value for key, value in dump(self).items() if key != "names" or value is not None}

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """All files of the split."""
        return (*self.shards, *self.tables, *([self.names] if self.names else []))

    @property
    def tables(self) -> tuple[FileSpec, ...]:
        """The files beside the shards that are needed to read samples."""
        return (self.index, self.labels)

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)


class Manifest(DataSpec):
    """A data folder: what its samples contain, and its files."""

    format_version: Literal[2] = FORMAT_VERSION
    foreign: ForeignSpec | None = None
    """null: the shards are our own, and contain only the tasks' members."""
    splits: dict[SplitName, SplitSpec] = Field(min_length=1)
    """By name, usually `train` and `test`."""

    @model_validator(mode="after")
    def _file_names_are_unique(self) -> "Manifest":
        if doubles := doubled(spec.file for split in self.splits.values() for spec in split.files):
            raise ValueError(f"file names must be unique, found twice: {', '.join(doubles)}")
        return self

    def split(self, name: str) -> SplitSpec:
        """Return the split of that name; raise UserError if there is none."""
        if name not in self.splits:
            raise UserError(
                f"Data {self.name!r} has no split {name!r}{did_you_mean(name, self.splits)}\n"
                f"Its splits: {', '.join(self.splits)}."
            )
        return self.splits[name]

    def num_samples(self, split: str) -> int:
        """Return the number of samples in a split."""
        return self.split(split).num_samples

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 of all that determines a split's samples: input, tasks, and checksums of its files."""
        parts = {
            "input": self.input.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in self.tasks],
            "split": self.split(split).model_dump(mode="json", exclude={"names"}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest durably."""
    write_durably(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a data folder's manifest.

    Args:
        folder: a folder that `paretrain data ... --out` wrote.

    Raises:
        UserError: there is no such folder, it has no manifest, or the manifest is not valid.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            raise UserError(
                f"No data folder {folder}.\nMake it as the head of the configuration or study says, or in another way "
                f"of `paretrain data --help`, such as: paretrain data digits --out {folder}"
            )
        text = read_bytes(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise UserError(_missing(folder)) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Parse and validate a manifest from an untrusted source.

    Args:
        text: its JSON.
        where: its path or address, for error messages.

    Raises:
        UserError: it is not a valid manifest.
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
        return f"{folder} contains an unfinished conversion.\nRun its `paretrain data ...` command again."
    return (
        f"{folder} has no {MANIFEST_NAME}, so it is not a data folder.\n"
        f"Make one, for instance with: paretrain data digits --out DIR"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; refuse duplicate keys, of which JSON would keep only the last."""
    if doubles := doubled(key for key, _ in pairs):
        raise ValueError(f"key {doubles[0][:40]!r} appears twice")
    return dict(pairs)
