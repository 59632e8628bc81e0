"""Read the last collectives of a process as torch's flight recorder wrote them: a pickle, none of which is executed.

Only opcodes that make dictionaries, lists, pairs, strings and numbers are accepted, so a record can neither call
anything nor allocate more memory than its own size explains.
"""

import pickle
import pickletools
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.errors import UserError
from trainer.files import read_bytes
from trainer.observe.records import validated

MAX_BYTES = 64 << 20
"""Upper bound of a record, which has some thousand collectives."""

_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "TUPLE2"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
}
_OF_TORCH = re.compile(r"/(torch|deepspeed|accelerate)/")


class _Frame(BaseModel):
    filename: str
    line: int
    name: str


class Collective(BaseModel):
    """A collective, and where the process was when it called it."""

    model_config = ConfigDict(strict=True)

    record_id: int
    """Its number among all collectives of this process."""
    profiling_name: str
    state: str
    frames: list[_Frame] | None = None

    @property
    def words(self) -> str:
        """Name, number, state, and the line of our code that called it."""
        ours = [frame for frame in self.frames or [] if not _OF_TORCH.search(frame.filename)]
        where = f" at {ours[0].filename}:{ours[0].line} in {ours[0].name}" if ours else ""
        return f"{self.profiling_name} number {self.record_id}, {self.state}{where}"


class _Record(BaseModel):
    entries: list[Collective] = Field(default_factory=list)


_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


def last_collective(path: Path) -> Collective | None:
    """Return the last collective of a flight record; None if there is no record or it is empty.

    Raises:
        UserError: the record is torn, or is not what torch writes.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    entries = validated(_RECORD, _unpickled(content, path), str(path)).entries
    return max(entries, key=lambda entry: entry.record_id, default=None)


def last_words(path: Path, unread: list[str]) -> tuple[str | None, int | None]:
    """Return the last collective of a flight record, in words, and its number; two Nones if there is none.

    Args:
        path: the record.
        unread: gets why the record cannot be read.
    """
    try:
        last = last_collective(path)
    except UserError as error:
        unread.append(str(error))
        return None, None
    return (None, None) if last is None else (last.words, last.record_id)


def _unpickled(content: bytes, path: Path) -> object:
    try:
        for operation, argument, position in pickletools.genops(content):
            # pickle would allocate a memo as long as this index.
            is_long = operation.name == "LONG_BINPUT" and (argument or 0) > len(content)
            if is_long or operation.name not in _PLAIN:
                raise UserError(f"{path}, byte {position}: {operation.name} is not what torch writes.")
        return pickle.loads(content)
    except UserError:
        raise
    except Exception as error:  # pickle does not document all that torn content can raise
        raise UserError(f"{path} is no flight record of torch: {error}.") from None
