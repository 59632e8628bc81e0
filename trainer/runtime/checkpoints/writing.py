"""Write a checkpoint: every rank its files, into a folder aside; then rank 0 the manifest, and the folder's name.

A checkpoint is a folder step_00001000/ with these files:

    model_00000.safetensors       a rank's pieces of the model (see `pieces`), so that any number of ranks can resume
    optimizer_00000.safetensors   a rank's pieces of the optimizer's state
    generators_00000.safetensors  a rank's random generators
    state.safetensors             the rest (cursor, weighting, ...), the same on every rank
    manifest.json                 step, run, configuration, and size and SHA-256 of each file (see `manifest`)

The folder gets its name only when it is whole. Nothing in it is pickled.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.files import SEEN_WITHIN_SECONDS, sync, write_durably
from trainer.runtime.checkpoints.folder import is_own_folder, point_to, prune, publish_folder, replaced_by
from trainer.runtime.checkpoints.manifest import MANIFEST, FileEntry, Manifest, describe, run_of
from trainer.runtime.checkpoints.pieces import Piece, write_pieces


def generators() -> dict[str, Tensor]:
    """Return this rank's random generators, as `Snapshot.restore_generators` takes them."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def write_files(folder: Path, contents: Mapping[str, bytes | list[Piece]]) -> dict[str, FileEntry]:
    """Write one rank's files into a folder that is not published yet, and wait until the disk has them.

    Returns:
        The entry of each file for the manifest, by name.

    Raises:
        OSError: a file cannot be written.
    """
    _refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, content in contents.items():
        path = folder / name
        if isinstance(content, bytes):
            write_durably(path, content)
        else:
            write_pieces(path, content)
            sync(path)
        entries[name] = describe(path)
    return entries


def publish(aside: Path, final: Path, manifest: Manifest, keep: int) -> None:
    """Give a folder that all ranks have written its manifest and its name, and remove the oldest checkpoints.

    Args:
        aside: the folder, beside `final`.
        final: its name from now on.
        manifest: lists what all ranks have written.
        keep: how many checkpoints of this run stay, beside the best ones.

    Raises:
        OSError: the folder cannot be written, or a file that a rank has written is not visible here.
    """
    if not os.path.lexists(aside) and run_of(final) == manifest.run:
        point_to(final)  # A retry, after an error that followed the rename.
        return
    _refuse_link(aside)
    _wait_for(aside, manifest.files)
    for file in aside.iterdir():
        if file.name not in manifest.files:
            file.unlink()  # Left by a run with another number of ranks that died in the middle of this very save.
    about = manifest.model_dump(exclude={"best"} if manifest.best is None else None)
    write_durably(aside / MANIFEST, json.dumps(about, indent=1).encode())
    sync(aside)
    if os.path.lexists(final):  # The same step, saved again after a resume from an older checkpoint.
        if not is_own_folder(final) or run_of(final) != manifest.run:
            raise FileExistsError(errno.EEXIST, "it exists, and this run did not write it; rename it", str(final))
        final.rename(replaced_by(final))
    publish_folder(aside, final)
    prune(final, keep, manifest.run)


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a link, which is not followed; remove it", str(folder))


def _wait_for(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Wait until every file has its full size here: a network file system may show it late.

    Raises:
        OSError: one does not get it in time.
    """
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    for name, entry in files.items():
        while (size := _size(folder / name)) != entry.bytes:
            if time.monotonic() > deadline:
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"a rank wrote {entry.bytes} bytes to it, {'it is missing' if size is None else f'{size} are'} "
                    "here: the run's folder must be one that all hosts share",
                    str(folder / name),
                )
            time.sleep(0.1)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None
