"""What may stand in the place of a file that is read: links, FIFOs, endless or binary content."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 60


@contextmanager
def in_time() -> Iterator[None]:
    """A reader that waits for a FIFO would wait for ever."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def nested(path: Path) -> None:
    path.write_text('{"kind": "note", "step": 1, "text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def thousands_of_digits(path: Path) -> None:
    path.write_text('{"kind": "note", "steps": 1, "step": ' + "9" * 5000 + "}\n")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


PUT: tuple[Callable[[Path], Any], ...] = (
    os.mkfifo,
    Path.mkdir,
    loop_of_links,
    nested,
    thousands_of_digits,
    sparse,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.write_bytes(b"\x00\xff\xfe binary\n" * 3),
)
