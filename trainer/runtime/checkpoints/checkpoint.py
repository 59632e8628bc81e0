"""Checkpoints: written aside, described by a manifest, published by one rename, pointed to by LATEST.

A checkpoint is a folder step_00001000/. Of each rank it holds model_00000.safetensors and optimizer_00000.safetensors,
its pieces of the whole tensors (`pieces`), so that any number of ranks can go on under any strategy; and
generators_00000.safetensors, its random generators. state.safetensors (cursor, weighting) is the same on every rank.
manifest.json (`manifest`) has the step, the run, its configuration, and the size and SHA-256 of each file. The folder
appears under its name only when it is whole. Nothing in it is pickled.
"""

import errno
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import FaultError, UserError
from trainer.files import open_regular, sha256, sync, write_durably
from trainer.runtime.checkpoints.folder import (
    how_to_go_on,
    is_own_folder,
    point_to,
    prune,
    publish_folder,
    published,
    replaced_by,
)
from trainer.runtime.checkpoints.manifest import (
    MANIFEST,
    STATE,
    DamagedError,
    FileEntry,
    Manifest,
    file_names,
    generators_file,
    model_file,
    optimizer_file,
    read_manifest,
    run_of,
)
from trainer.runtime.checkpoints.pieces import Piece, Tensors, read_pieces, write_pieces
from trainer.runtime.checkpoints.plain import read_plain
from trainer.runtime.collectives import Runtime

SEEN_WITHIN_SECONDS = 60.0
"""How long a network file system may take to show one host what another one wrote."""

Sums = Mapping[str, FileEntry]
"""What each file is, by its name."""


def write_files(folder: Path, contents: Mapping[str, bytes | list[Piece]]) -> Sums:
    """Write one rank's files into a folder that is not published yet, and wait until the disk has them.

    Raises:
        OSError: one cannot be written.
    """
    _refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name, content in contents.items():
        path = folder / name
        if isinstance(content, bytes):
            write_durably(path, content)
        else:
            write_pieces(path, content)
            sync(path)
        sums[name] = _described(path)
    return sums


def publish(aside: Path, final: Path, manifest: Manifest, keep: int) -> None:
    """Give a folder that all ranks have written its manifest and its name, and remove checkpoints that are too many.

    Args:
        aside: the folder, beside `final`.
        final: what it is called from now on.
        manifest: lists what all ranks have written.
        keep: how many checkpoints of this run stay.

    Raises:
        OSError: the disk does not let us, or a file that a rank has written is not here.
    """
    if not os.path.lexists(aside) and run_of(final) == manifest.run:
        point_to(final)  # Tried again, after an error behind the rename.
        return
    _refuse_link(aside)
    _wait_for(aside, manifest.files)
    for file in aside.iterdir():
        if file.name not in manifest.files:
            file.unlink()  # Left by a run of another world size that died in the middle of this very save.
    write_durably(aside / MANIFEST, json.dumps(manifest.model_dump(), indent=1).encode())
    sync(aside)
    if os.path.lexists(final):  # The same step, saved again after a resume from an older checkpoint.
        if not is_own_folder(final) or run_of(final) != manifest.run:
            raise FileExistsError(errno.EEXIST, "it exists, and this run did not write it; rename it", str(final))
        final.rename(replaced_by(final))
    publish_folder(aside, final)
    prune(final, keep, manifest.run)


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that was checked. Its tensors are read from its files when they are asked for, and not kept.

    Attributes:
        path: the checkpoint's folder.
        run: the identity of the run that wrote it.
        config: the resolved configuration that it was written under, as JSON.
        model: the whole model's tensors.
        optimizer: the whole optimizer's state.
        state: what else was saved.
        generators: this rank's random generators; None where the checkpoint is of another world size, whose ranks drew
            other numbers.
    """

    path: Path
    run: str
    config: Mapping[str, Any]
    model: Tensors
    optimizer: Mapping[str, Tensors]
    state: Mapping[str, Any]
    generators: dict[str, Tensor] | None

    def restore_generators(self) -> None:
        """Let random numbers go on where the checkpoint left off.

        Raises:
            UserError: what was saved is no generator's state.
        """
        if self.generators is None:
            return
        try:
            torch.set_rng_state(self.generators["torch"])
            if "cuda" in self.generators and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.generators["cuda"])
        except (RuntimeError, TypeError) as error:
            raise UserError(f"checkpoint {self.path} holds no usable random generators: {error}") from None


def generators() -> dict[str, Tensor]:
    """Return this rank's random generators, as `Snapshot` has them."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load(path: Path, runtime: Runtime) -> Snapshot:
    """Check a checkpoint against its manifest, each rank a share of the files, and open it. Collective.

    Raises:
        UserError: a file is missing, incomplete or changed, or the pieces do not make whole tensors.
        FaultError: the disk cannot read a file.
    """
    snapshot = examine(path, runtime)
    if isinstance(snapshot, str):
        before = [other for other in published(path.parent) if other.name < path.name]
        raise UserError(f"{snapshot}. {how_to_go_on(path.parent, before)}")
    return snapshot


def examine(path: Path, runtime: Runtime) -> Snapshot | str:
    """Check and open a checkpoint. Returns what is wrong where it is not as it was written. Collective.

    Raises:
        UserError: another version of paretrain wrote it.
        FaultError: the disk cannot read a file.
    """
    manifest, damage = runtime.on_main(lambda: _manifest_or_damage(path))
    if manifest is None:
        return damage or ""
    names = file_names(manifest.world_size)[runtime.rank :: runtime.world_size]
    damage, fault = _first_damage(path, manifest.files, names)
    found = runtime.gather((damage, fault))
    for _, fault in found:
        if fault:
            raise FaultError(fault)
    for damage, _ in found:
        if damage:
            return damage
    snapshot, damage = _open(path, manifest, runtime)
    damages = [found for found in runtime.gather(damage) if found]
    if damages or snapshot is None:
        return damages[0]
    return snapshot


def _manifest_or_damage(path: Path) -> tuple[Manifest | None, str | None]:
    try:
        return read_manifest(path), None
    except DamagedError as error:
        return None, str(error)


def _first_damage(path: Path, expected: Sums, names: Sequence[str]) -> tuple[str | None, str | None]:
    """Compare some of a checkpoint's files with its manifest. Returns what is wrong with one; why it cannot be read."""
    for name in names:
        try:
            found = _described(path / name)
        except FileNotFoundError:
            return f"checkpoint {path} is not complete: {name} is missing", None
        except UserError as error:
            return f"checkpoint {path} is not complete: {error}", None
        except OSError as error:
            return None, f"checkpoint {path} cannot be read: {error}"
        if found != expected[name]:
            what = f"{found.bytes} bytes, expected {expected[name].bytes}"
            if found.bytes == expected[name].bytes:
                what = f"SHA-256 {found.sha256[:12]}…, expected {expected[name].sha256[:12]}…"
            return f"checkpoint {path} has changed since it was written: {name} has {what}", None
    return None, None


def _open(path: Path, manifest: Manifest, runtime: Runtime) -> tuple[Snapshot | None, str | None]:
    ranks = range(manifest.world_size)
    try:
        state = read_plain(path / STATE)
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} holds no dictionary")
        snapshot = Snapshot(
            path=path,
            run=manifest.run,
            config=manifest.config,
            model=Tensors(read_pieces(path / model_file(rank) for rank in ranks)),
            optimizer=_by_parameter([path / optimizer_file(rank) for rank in ranks]),
            state=state,
            generators=_generators(path / generators_file(runtime.rank)) if len(ranks) == runtime.world_size else None,
        )
    except (OSError, UserError, ValueError) as error:
        return None, f"checkpoint {path} cannot be read: {error}"
    return snapshot, None


def _generators(path: Path) -> dict[str, Tensor]:
    found = read_plain(path)
    if not isinstance(found, dict) or not isinstance(found.get("torch"), Tensor):
        raise ValueError(f"{path.name} holds no random generators")
    return found


def _described(path: Path) -> FileEntry:
    open_regular(path).close()
    return FileEntry(bytes=path.stat().st_size, sha256=sha256(path))


def _by_parameter(paths: Iterable[Path]) -> dict[str, Tensors]:
    found: dict[str, dict[str, Any]] = {}
    for key, scattered in read_pieces(paths).items():
        name, slash, slot = key.rpartition("/")
        if not slash:
            raise ValueError(f"the optimizer's state has a tensor '{key[:80]}', expected PARAMETER/SLOT")
        found.setdefault(name, {})[slot] = scattered
    return {name: Tensors(slots) for name, slots in found.items()}


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a link, which is not followed; remove it", str(folder))


def _wait_for(folder: Path, files: Sums) -> None:
    """Wait until every file is here in its whole length, as a network file system may show it late.

    Raises:
        OSError: one is not.
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
