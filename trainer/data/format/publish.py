"""Write a folder as a whole: it is complete if and only if it has the file that is moved into place last."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError
from trainer.files import sync

PARTIAL_NAME = ".partial"
"""Subfolder in which a conversion writes its files until all are complete."""


@contextmanager
def publishing(out: Path, last: str) -> Iterator[Path]:
    """Yield an empty subfolder of `out` to write into; move its content into place at the end.

    Args:
        out: a folder that does not exist yet, is empty, or contains the work of an interrupted call, which is deleted.
        last: the file that marks the folder as complete; it is moved after all others.

    Raises:
        UserError: the folder contains anything else, or the disk fails.
    """
    try:
        partial = _claim(out, last)
        yield partial
        _move(partial, out, last)
    except OSError as error:
        raise UserError(
            f"Writing {out} failed: {error}.\nIt is unfinished. Fix that and run the same command again."
        ) from error


def _claim(out: Path, last: str) -> Path:
    partial = out / PARTIAL_NAME
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in out.iterdir() if path != partial)
    if others and (partial / last).exists():  # complete, and interrupted while it was moved
        _move(partial, out, last)
    if (out / last).exists():
        raise UserError(f"{out} already contains a data set.\nDelete it, or write to another folder with --out.")
    if others:
        raise UserError(
            f"{out} is not empty (found {', '.join(others[:5])}).\nDelete it, or write to another folder with --out."
        )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


def _move(partial: Path, out: Path, last: str) -> None:
    for path in sorted(partial.iterdir()):
        if path.name != last:
            path.rename(out / path.name)
    sync(out)
    (partial / last).rename(out / last)
    partial.rmdir()
    sync(out)
