"""What the processes of a run left in RUN/faults when one of them was lost, as trainer/runtime/faults wrote it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError
from trainer.files import read_bytes
from trainer.runtime.faults.guard import FAULTS

MAX_BYTES = 16 << 20
"""Of what one process left: its stacks have some kilobytes."""

_NAME = re.compile(r"rank (\d{1,9}) on (\S+) \(process (\d{1,9})\)")
_HEADER = re.compile(r"rank (\d{1,9}) on (\S+) \(process (\d{1,9})\) of (\d{1,9}) (failed )?(.+)")


@dataclass(frozen=True)
class Left:
    """The word of one process.

    Attributes:
        host: its machine.
        process: its number there.
        world_size: how many processes there were.
        has_failed: it ended by an error of its own.
        has_lost: it lost another one; if neither, it was asked where it is, and answered.
        words: where it was.
    """

    host: str
    process: int
    world_size: int
    has_failed: bool
    has_lost: bool
    words: str


def texts_in(run_dir: Path, unread: list[str]) -> list[str]:
    """What processes left, a text each; says in `unread` which could not be read, and why."""
    texts = []
    for path in sorted(run_dir.glob(f"{FAULTS}/rank_*.txt")):
        try:
            texts.append(read_bytes(path, MAX_BYTES).decode(errors="replace"))
        except (UserError, FileNotFoundError) as error:
            unread.append(str(error))
    return texts


def left_in(texts: Sequence[str]) -> dict[int, Left]:
    """The words of those that left one, by rank."""
    found = {}
    for text in texts:
        if header := _HEADER.match(text):
            rank, host, process, world_size, failed, words = header.groups()
            has_lost = f"rank {rank} on {host} stopped: " in text
            found[int(rank)] = Left(host, int(process), int(world_size), bool(failed), has_lost, words)
    return found


def named_in(texts: Sequence[str]) -> dict[int, tuple[str, int]]:
    """Host and process of every rank that such a word names, its own included."""
    return {int(rank): (host, int(process)) for text in texts for rank, host, process in _NAME.findall(text)}
