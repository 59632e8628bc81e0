"""The record that a process leaves in RUN/faults when it fails, loses another process, or is asked where it is.

Each rank has up to three files there: rank_00000.json, this record, which `launch/diagnose` reads; rank_00000.txt, the
same for people, with the stacks of all threads; and flight_0, its last collectives, as torch's flight recorder writes
them. The next start moves them to a folder in there, named by the time of the fault, and nothing removes that.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.clock import utc
from trainer.files import replace

FAULTS = "faults"
"""The folder of the records, in the run's folder."""
ON_STDERR = "paretrain: fault record: "
"""Begins the line of stderr that holds a record, as JSON, where the folder cannot be written."""

MAX_RANKS = 2**16
"""Upper bound of a run's processes. Each of them has a line in a diagnosis, also where the record is damaged."""

Number = Annotated[int, Field(ge=0, lt=2**53)]


class Process(BaseModel):
    """One process of a run.

    Attributes:
        rank: its rank.
        host: the name of its machine.
        pid: its process id there.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    rank: Number
    host: str
    pid: Number

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


class LostPeer(Process):
    """A process that another one lost.

    Attributes:
        failure: where and why it failed, as it told the others; None: it did not answer.
    """

    failure: str | None = None


class FaultRecord(Process):
    """A fault as one process knows it.

    Attributes:
        format: the version of this schema.
        world_size: number of processes of the run.
        kind: it has failed, it has lost a peer, or others asked where it is and it goes on.
        phase: what it was doing, such as "the evaluation after step 12".
        step: the step that it was in, or that was done last; None before the first one.
        place: the line of code, and the collective that waited there.
        message: the error, in one sentence; empty where there is none.
        lost: the processes that it found failed or silent.
    """

    format: Literal[1] = 1
    world_size: Annotated[int, Field(ge=1, le=MAX_RANKS)]
    kind: Literal["failed", "lost_peer", "asked"]
    phase: str
    step: Number | None
    place: str
    message: str = ""
    lost: list[LostPeer] = Field(default_factory=list)

    @property
    def words(self) -> str:
        """Where the process was, and its error: the part of a sentence that follows "failed" or "was"."""
        where = f"in {self.phase}, {self.place}"
        return f"{where}: {self.message}" if self.message else where


RECORD: TypeAdapter[FaultRecord] = TypeAdapter(FaultRecord)


def record_path(folder: Path, rank: int) -> Path:
    """Return where a rank's record lies in the folder of records."""
    return folder / f"rank_{rank:05d}.json"


def keep_earlier(folder: Path) -> None:
    """Move the records in a folder to one in there that is named by the time of the last of them.

    Raises:
        OSError: the folder cannot be written.
    """
    files = [path for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []
    if files:
        earlier = folder / utc(max(path.lstat().st_mtime for path in files))
        earlier.mkdir()
        for path in files:
            path.rename(earlier / path.name)


def write_record(folder: Path, record: FaultRecord) -> None:
    """Write a record whole or not at all, in place of this rank's last one. Does not wait for the disk.

    Raises:
        UserError: the folder cannot be written.
    """
    text = record.model_dump_json(indent=1)
    replace(record_path(folder, record.rank), f"{text}\n".encode(), durable=False)
