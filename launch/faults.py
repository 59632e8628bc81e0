"""What the processes of a run left in RUN/faults when one of them was lost, as trainer/runtime/faults wrote it."""

import re
from dataclasses import dataclass
from pathlib import Path

from trainer.runtime.faults.guard import FAULTS

_NAME = re.compile(r"rank (\d+) on (\S+) \(process (\d+)\)")
_HEADER = re.compile(r"rank (\d+) on (\S+) \(process (\d+)\) of (\d+) (failed )?(.+)")


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


def left_in(run_dir: Path) -> dict[int, Left]:
    """The words of those that left one, by rank."""
    found = {}
    for path in sorted(run_dir.glob(f"{FAULTS}/rank_*.txt")):
        text = path.read_text(errors="replace")
        if header := _HEADER.match(text):
            rank, host, process, world_size, failed, words = header.groups()
            has_lost = f"rank {rank} on {host} stopped: " in text
            found[int(rank)] = Left(host, int(process), int(world_size), bool(failed), has_lost, words)
    return found


def named_in(run_dir: Path) -> dict[int, tuple[str, int]]:
    """Host and process of every rank that such a word names, its own included."""
    texts = [path.read_text(errors="replace") for path in run_dir.glob(f"{FAULTS}/rank_*.txt")]
    return {int(rank): (host, int(process)) for text in texts for rank, host, process in _NAME.findall(text)}
