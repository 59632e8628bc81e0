"""The folder of a run's checkpoints: list them, read and move LATEST, which names the newest, and remove old ones."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError
from trainer.files import read_text, sync, write_durably
from trainer.runtime.checkpoints.manifest import Manifest, read_manifest

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints, in a run's folder."""
LATEST = "LATEST"
REPLACED = ".replaced"
MAX_POINTER_BYTES = 1 << 10
_NAME = re.compile(r"step_(\d{8,18})")


def folder_of_step(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`, whether or not it exists."""
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name says."""
    name = _NAME.fullmatch(path.name)
    assert name, f"{path} is no checkpoint's name"
    return int(name[1])


def published(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or damaged, the oldest step first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """Return the checkpoint that LATEST names, which may be missing; None if there is no LATEST.

    Raises:
        UserError: LATEST names no checkpoint.
    """
    path, fault = read_pointer(folder)
    if fault:
        raise UserError(f"{fault}. {how_to_go_on(folder, published(folder))}")
    return path


def read_pointer(folder: Path) -> tuple[Path | None, str | None]:
    """Return the checkpoint that LATEST names, and what is wrong with LATEST; two Nones if it does not exist."""
    try:
        text = read_text(folder / LATEST, MAX_POINTER_BYTES).strip()
    except FileNotFoundError:
        return _interrupted(folder), None
    except UserError as error:
        return None, str(error).rstrip(".")
    if not _NAME.fullmatch(text):
        return None, f"{folder / LATEST} {f'holds {text[:40]!r}, which names no checkpoint' if text else 'is empty'}"
    return folder / text, None


def last_saved(folder: Path) -> str:
    """Return a sentence, without its full stop, about what a run that has ended goes on from."""
    path, _ = read_pointer(folder)
    return "no checkpoint was saved" if path is None else f"the last checkpoint is {path.name}"


def point_to(path: Path) -> None:
    """Make LATEST name a checkpoint, durably.

    Raises:
        OSError: the folder cannot be written.
    """
    _write_aside(path)
    _move_pointer(path.parent)


def publish_folder(aside: Path, final: Path) -> None:
    """Give a finished folder its name and make LATEST name it. A kill at any moment leaves a run that can resume.

    Raises:
        OSError: the folder cannot be written.
    """
    # Written before the rename: a kill between the two renames leaves no LATEST, or an older one. If there is none,
    # this file tells a first checkpoint, just published, from checkpoints whose LATEST was lost.
    _write_aside(final)
    sync(final.parent)
    os.replace(aside, final)
    _move_pointer(final.parent)


def how_to_go_on(folder: Path, whole: list[Path]) -> str:
    """Return what to type when LATEST does not lead to a whole checkpoint.

    Args:
        folder: the folder of the checkpoints.
        whole: the checkpoints that the run can resume from, the best one last.
    """
    anew = "To start a new run, type name=ANOTHER_NAME"
    if not whole:
        return anew
    return f"To go on from {whole[-1].name}: echo {whole[-1].name} > {folder / LATEST}\n{anew}"


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that nothing resumes, replaces or removes it. Return its new path.

    Raises:
        OSError: the folder cannot be written.
    """
    number, free = 1, path.with_name(f"{path.name}.aside")
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.aside-{number}")
    path.rename(free)
    sync(path.parent)
    return free


def is_own_folder(path: Path) -> bool:
    """Return whether `path` is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def prune(newest: Path, keep: int, run: str) -> None:
    """Remove a run's checkpoints beyond `keep`, and what unfinished saves have left.

    The best checkpoint stays, and so does each that was the best one when a checkpoint that stays was written: the run
    may go on from there, when a later one is damaged.

    Args:
        newest: a checkpoint that stays.
        keep: how many of the run's checkpoints stay.
        run: the run's identity. A checkpoint whose manifest has another one, or cannot be read, is never removed.
    """
    folder = newest.parent
    found = {path: _manifest(path) for path in published(folder) if is_own_folder(path)}
    mine = [path for path, manifest in found.items() if path != newest and manifest and manifest.run == run]
    # First those of a branch that was abandoned when a user set the run back to an earlier step.
    mine.sort(key=lambda path: (step_of(path) < step_of(newest), step_of(path)))
    num_old = max(len(mine) - keep + 1, 0)
    stay = [manifest for path in (*mine[num_old:], newest) if (manifest := found.get(path))]
    best = {folder_of_step(folder, manifest.best) for manifest in stay if manifest.best is not None}
    # Unfinished saves first: one may have the name that an old checkpoint is renamed to below.
    for torn in folder.glob("step_*.tmp"):
        if _NAME.fullmatch(torn.name.removesuffix(".tmp").removesuffix(REPLACED)) and is_own_folder(torn):
            shutil.rmtree(torn, ignore_errors=True)
    for old in mine[:num_old]:
        if old in best:
            continue
        torn = old.with_suffix(".tmp")
        with suppress(OSError):  # What cannot be removed now is removed after the next save.
            old.rename(torn)
            shutil.rmtree(torn, ignore_errors=True)


def replaced_by(path: Path) -> Path:
    """Return the name that a checkpoint gets when its step is saved again; `prune` removes it."""
    return path.with_name(f"{path.name}{REPLACED}.tmp")


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except UserError:
        return None


def _aside(folder: Path) -> Path:
    return folder / f"{LATEST}.tmp"


def _write_aside(path: Path) -> None:
    write_durably(_aside(path.parent), path.name.encode())


def _move_pointer(folder: Path) -> None:
    os.replace(_aside(folder), folder / LATEST)
    sync(folder)


def _interrupted(folder: Path) -> Path | None:
    """Return the first checkpoint of a run that was killed between the two renames of `publish_folder`."""
    if _aside(folder).is_symlink():
        return None
    try:
        text = read_text(_aside(folder), MAX_POINTER_BYTES)
    except (FileNotFoundError, UserError):
        return None
    return folder / text if _NAME.fullmatch(text) and (folder / text).is_dir() else None
