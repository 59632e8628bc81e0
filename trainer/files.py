"""Read and write files safely: every small file that this project reads or replaces goes through here.

A file that is read back may be missing, torn, replaced or written by somebody else. `read_bytes` and `read_json` accept
a regular file of bounded size and raise a one-sentence error for anything else. `replace` writes a file whole or not at
all.
"""

import hashlib
import json
import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from trainer.errors import UserError

MAX_TEXT_BYTES = 64 << 20
"""Upper bound of text files (manifests, metrics, summaries), far above any that this project writes."""

SEEN_WITHIN_SECONDS = 60.0
"""Upper bound of the time that a network file system takes to show one host what another one wrote."""


def read_bytes(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a whole file that somebody else may have changed.

    Raises:
        FileNotFoundError: there is no such file; the caller decides whether that is an error.
        UserError: it is not a regular file, is larger than `max_bytes`, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise UserError(f"{path} has {size:,} bytes; expected at most {max_bytes:,}.")
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > max_bytes:
        raise UserError(f"{path} grew beyond {max_bytes:,} bytes while it was read.")
    return content


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Refuse a FIFO, a device or a folder in its place, without waiting for it.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is something else, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file.")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a whole UTF-8 file. Raises what `read_bytes` raises, and a UserError if it is not UTF-8."""
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from None


def read_json(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a whole JSON file. Raises what `read_bytes` raises, and a UserError if it is not JSON."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def parse_json(content: bytes | str, where: str) -> Any:
    """Parse JSON that somebody else may have written.

    Args:
        content: the text.
        where: the first words of an error message, such as the file's path.

    Raises:
        UserError: it is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply.") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise UserError(f"{where} is not JSON: {error}.") from None


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all: under another name first, which is then renamed.

    Args:
        path: the file.
        content: all that it holds from now on.
        durable: wait until the disk has it, so that it outlives a crash of the machine.

    Raises:
        UserError: `path` is a folder or a device, its folder is missing or read-only, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be written: it exists and is not a regular file.")
        _write_new(aside, content, durable)
        aside.replace(path)
        if durable:
            sync(path.parent)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            aside.unlink()
        raise UserError(f"{path} cannot be written: {_reason(error)}.") from None


def make_folder(path: Path) -> None:
    """Make a folder, and its parents, where they are missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The folder {path} cannot be written: {_reason(error)}.") from None


def refuse_unwritable(path: Path) -> None:
    """Refuse a file or folder that cannot be made, before the work is done whose result it is to hold.

    Raises:
        UserError: the folder that it would be made in is read-only.
    """
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: the folder {folder} is read-only.")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it. Replace a link in its place rather than follow it.

    Raises:
        OSError: the file cannot be written.
    """
    _write_new(path, content, durable=True)


class Appender:
    """Append text to a regular file, unbuffered: a full disk raises in `append`, not once more in `close`.

    Args:
        path: the file; made if it is missing.
        anew: empty an earlier file first.

    Raises:
        UserError: something else is in its place, or it cannot be opened.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        try:
            # Without O_NONBLOCK, opening a FIFO would block.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be written: {_reason(error)}.") from None
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.close()
            raise UserError(f"{path} cannot be written: it exists and is not a regular file.")
        if anew:
            self._file.truncate(0)

    def append(self, text: str) -> None:
        """Write all of a text.

        Raises:
            OSError: the file cannot be written.
        """
        rest = memoryview(text.encode())
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file; nothing can be written after it."""
        self._file.close()


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's entries: a rename inside the folder is not durable before."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_new(path: Path, content: bytes, durable: bool) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
