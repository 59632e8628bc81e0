"""A checkpoint's manifest.json: the run and configuration that wrote it, and the size and SHA-256 of each file."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import UserError
from trainer.files import open_regular, read_json, sha256

MANIFEST = "manifest.json"
STATE = "state.safetensors"
FORMAT = 5
"""The version of everything in a checkpoint; docs/formats.md says what changed."""
OLDEST = 4
"""The oldest format that is still read."""
MAX_STEPS = 10**18 - 1


class DamagedError(UserError):
    """A checkpoint is not as it was written."""


class FileEntry(BaseModel):
    """Size and checksum of a file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: int = Field(ge=0, lt=2**63)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Writer(BaseModel):
    """What wrote a checkpoint: the version and the commit of paretrain; None: nobody knows the commit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: str = Field(max_length=64)
    commit: str | None = Field(max_length=64)


class Manifest(BaseModel):
    """The description of a checkpoint.

    Attributes:
        step: optimizer steps done.
        world_size: number of ranks that wrote it.
        run: the identity of the run, the same at all its starts; a checkpoint of another run is never removed.
        config: the resolved configuration, as JSON.
        files: by name.
        best: the step of the run's best checkpoint at that time; None: the run selects none.
        written_by: None in format 4.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = Field(ge=OLDEST, le=FORMAT)
    step: int = Field(ge=0, le=MAX_STEPS)
    world_size: int = Field(ge=1)
    run: Annotated[str, Field(max_length=64)]
    config: dict[str, Any]
    files: dict[str, FileEntry]
    best: int | None = Field(None, ge=0, le=MAX_STEPS)
    written_by: Writer | None = None

    @model_validator(mode="after")
    def _has_every_file(self) -> "Manifest":
        # The number first: a forged world_size must not make this list a billion names.
        num_files = NUM_FILES_OF_A_RANK * self.world_size + 1
        if len(self.files) == num_files and all(name in self.files for name in file_names(self.world_size)):
            return self
        if len(self.files) < num_files and self.world_size <= len(self.files):
            missing = next(name for name in file_names(self.world_size) if name not in self.files)
            raise ValueError(f"{missing} is missing")
        raise ValueError(f"it lists {len(self.files):,} files, {num_files:,} expected of {self.world_size:,} ranks")


NUM_FILES_OF_A_RANK = 3


def model_file(rank: int) -> str:
    """Return the name of a rank's pieces of the model."""
    return f"model_{rank:05d}.safetensors"


def optimizer_file(rank: int) -> str:
    """Return the name of a rank's pieces of the optimizer's state, whose tensors are called `<parameter>/<slot>`."""
    return f"optimizer_{rank:05d}.safetensors"


def generators_file(rank: int) -> str:
    """Return the name of a rank's random generators."""
    return f"generators_{rank:05d}.safetensors"


def file_names(world_size: int) -> list[str]:
    """Return the names of all files of a checkpoint of `world_size` ranks, except its manifest."""
    ranks = range(world_size)
    return [STATE, *(file(rank) for rank in ranks for file in (model_file, optimizer_file, generators_file))]


def describe(path: Path) -> FileEntry:
    """Return the size and checksum of a file of a checkpoint; raises as `regular_size`."""
    return FileEntry(bytes=regular_size(path), sha256=sha256(path))


def regular_size(path: Path) -> int:
    """Return the bytes of a file of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file.
        OSError: the disk cannot read it.
    """
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint in `path`.

    Raises:
        DamagedError: it is missing, torn or inconsistent.
        UserError: another version of paretrain wrote it.
    """
    try:
        found = read_json(path / MANIFEST)
    except FileNotFoundError:
        raise DamagedError(f"checkpoint {path} is not complete: it has no {MANIFEST}") from None
    except UserError as error:
        raise DamagedError(f"checkpoint {path} is not complete: no readable {MANIFEST} ({error})") from None
    written_in = found.get("format") if isinstance(found, dict) else None
    if isinstance(written_in, int) and 0 < written_in < 1000 and not OLDEST <= written_in <= FORMAT:
        raise UserError(
            f"checkpoint {path} has format {written_in}, this version of paretrain reads {OLDEST} to {FORMAT}. "
            "Go on with the version that wrote it, which run.json names, or start a new run: name=ANOTHER_NAME"
        )
    try:
        manifest = Manifest.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise DamagedError(f"checkpoint {path} is not complete: {MANIFEST}: {first_fault(error)}") from None
    if path.name.startswith("step_") and path.name != f"step_{manifest.step:08d}":
        raise DamagedError(f"checkpoint {path} is not what its name says: its {MANIFEST} has step {manifest.step}")
    return manifest


def run_of(path: Path) -> str | None:
    """Return the identity of the run that wrote a checkpoint; None if its manifest cannot be read."""
    try:
        return read_manifest(path).run
    except UserError:
        return None


def first_fault(error: ValidationError | RecursionError) -> str:
    """Return in one line the first value that does not fit a schema."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])[:80]
    # Shortened: a forged value may have any length.
    return f"{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')[:200]}" + (
        f", found {str(fault['input'])[:40]!r}" if where else ""
    )
