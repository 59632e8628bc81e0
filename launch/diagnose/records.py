"""Read the fault records that the processes of a run left; see trainer/runtime/faults/records.py."""

from collections.abc import Iterable
from pathlib import Path

from trainer.errors import UserError
from trainer.files import parse_json, read_json
from trainer.observe.records import validated
from trainer.runtime.faults.records import FAULTS, ON_STDERR, RECORD, FaultRecord, LostPeer, Process

MAX_BYTES = 16 << 20
"""Upper bound of a record, which has some kilobytes, and more where a run of thousands of ranks lost many at once."""


def records_folder(path: Path) -> Path:
    """Return the folder of the records: RUN/faults of a run, or RUN/faults/TIME, an earlier start's, itself."""
    return path if path.absolute().parent.name == FAULTS else path / FAULTS


def last_earlier(folder: Path) -> Path | None:
    """Return the folder in there of the last fault before the last start; None if there was none."""
    # Their names are the times of the faults.
    return max((path.parent for path in folder.glob("*/rank_*.json")), default=None)


def read_records(folder: Path, unread: list[str]) -> dict[int, FaultRecord]:
    """Return the records in a folder, by rank; add to `unread` which of them cannot be read, and why."""
    found = {}
    for path in sorted(folder.glob("rank_*.json")):
        try:
            record = validated(RECORD, read_json(path, MAX_BYTES), str(path))
        except (UserError, FileNotFoundError) as error:
            unread.append(str(error))
        else:
            found[record.rank] = record
    return found


def record_on_stderr(output: str, where: str, unread: list[str]) -> FaultRecord | None:
    """Return the record that a process printed since it could not write it to the run's folder; None if there is none.

    Args:
        output: what the process printed on stderr.
        where: begins the sentence of an error, such as the path of the output.
        unread: gets why the record cannot be read.
    """
    lines = [line for line in output.splitlines() if line.startswith(ON_STDERR)]
    if not lines:
        return None
    try:
        return validated(RECORD, parse_json(lines[-1].removeprefix(ON_STDERR), where), where)
    except UserError as error:
        unread.append(str(error))
        return None


def processes_named(records: Iterable[FaultRecord]) -> dict[int, Process]:
    """Return every process that left a record or is named in one, by rank."""
    return {process.rank: process for record in records for process in (*record.lost, record)}


def failures_told(records: Iterable[FaultRecord]) -> dict[int, LostPeer]:
    """Return the processes that have told others that they failed, by rank."""
    return {peer.rank: peer for record in records for peer in record.lost if peer.failure is not None}
