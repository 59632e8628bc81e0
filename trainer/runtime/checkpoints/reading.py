"""Read a checkpoint: find the one to resume from, check its files against its manifest, and open it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import FaultError, UserError
from trainer.files import sha256
from trainer.runtime.checkpoints.folder import LATEST, how_to_go_on, published, read_pointer, step_of
from trainer.runtime.checkpoints.manifest import (
    STATE,
    DamagedError,
    FileEntry,
    Manifest,
    file_names,
    generators_file,
    model_file,
    optimizer_file,
    read_manifest,
    regular_size,
)
from trainer.runtime.checkpoints.pieces import Tensors, read_pieces
from trainer.runtime.checkpoints.values import read_values
from trainer.runtime.collectives import Runtime


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose files were checked. Tensors are read from them when they are asked for, and not kept.

    Attributes:
        path: the checkpoint's folder.
        format: that it was written in.
        run: the identity of the run that wrote it.
        config: the resolved configuration that it was written under, as JSON.
        model: the whole model's tensors.
        optimizer: the whole optimizer's state.
        state: the rest of what was saved.
        generators: this rank's random generators; None if another number of ranks wrote the checkpoint, whose ranks
            drew other numbers.
    """

    path: Path
    format: int
    run: str
    config: Mapping[str, Any]
    model: Tensors
    optimizer: Mapping[str, Tensors]
    state: Mapping[str, Any]
    generators: dict[str, Tensor] | None

    def restore_generators(self) -> None:
        """Set the random generators to where the checkpoint left them.

        Raises:
            UserError: what was saved is not a generator's state.
        """
        if self.generators is None:
            return
        try:
            torch.set_rng_state(self.generators["torch"])
            if "cuda" in self.generators and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.generators["cuda"])
        except (RuntimeError, TypeError) as error:
            raise UserError(f"checkpoint {self.path} holds no usable random generators: {error}") from None


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run resumes from.

    Attributes:
        snapshot: the checkpoint.
        named: the checkpoint that LATEST names.
        damaged: what is wrong with `named` and those between the two, which are passed over.
    """

    snapshot: Snapshot
    named: Path
    damaged: Mapping[Path, str]


def find_newest(folder: Path, runtime: Runtime) -> Found | None:
    """Check and open the checkpoint that LATEST names, or the newest whole one before it. Writes nothing. Collective.

    Returns:
        None if nothing was ever saved.

    Raises:
        UserError: there are checkpoints, but LATEST does not name one of them, or none is whole.
        FaultError: the disk cannot read a file.
    """
    named, fault, there = runtime.on_main(lambda: _list(folder))
    if fault is None and named is None:
        return None
    damaged: dict[Path, str] = {}
    for path in reversed(there):
        if named is not None and step_of(path) > step_of(named):
            continue  # A user set the run back.
        snapshot = examine(path, runtime)
        if isinstance(snapshot, str):
            damaged[path] = snapshot
        elif named is None:
            names = ", ".join(found.name for found in there)
            also = "".join(f"\n{damage}" for damage in damaged.values())
            raise UserError(
                f"{fault}, but there are checkpoints: {names}. The newest whole one is {path.name}. "
                f"{how_to_go_on(folder, [path])}{also}"
            )
        else:
            return Found(snapshot, named, damaged)
    found = "".join(f"\n{damage}" for damage in damaged.values())
    raise UserError(
        f"{fault or 'the run cannot go on'}: no checkpoint in {folder} is whole. {how_to_go_on(folder, [])}{found}"
    )


def load(path: Path, runtime: Runtime) -> Snapshot:
    """Check and open a checkpoint. Each rank checks some of its files. Collective.

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
    """Check and open a checkpoint, or return what is wrong with it. Collective.

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


def _list(folder: Path) -> tuple[Path | None, str | None, list[Path]]:
    """Return the checkpoint that LATEST names, or what is wrong with LATEST; and all checkpoints."""
    named, fault = read_pointer(folder)
    there = published(folder)
    if named is not None and named not in there:
        fault = f"{folder / LATEST} names {named.name}, which is not there"
        named = None
    if named is None and fault is None and there:
        fault = f"{folder / LATEST} is missing"
    return named, fault, there


def _manifest_or_damage(path: Path) -> tuple[Manifest | None, str | None]:
    try:
        return read_manifest(path), None
    except DamagedError as error:
        return None, str(error)


def _first_damage(path: Path, expected: Mapping[str, FileEntry], names: Sequence[str]) -> tuple[str | None, str | None]:
    """Compare files of a checkpoint with its manifest.

    Returns:
        The first difference, and the first reason why a file cannot be read; at most one of them is not None.
    """
    for name in names:
        changed = f"checkpoint {path} has changed since it was written: {name} has"
        try:
            size = regular_size(path / name)
            if size != expected[name].bytes:  # Before it is hashed: a forged file may be of any size.
                return f"{changed} {size} bytes, expected {expected[name].bytes}", None
            found = sha256(path / name)
        except FileNotFoundError:
            return f"checkpoint {path} is not complete: {name} is missing", None
        except UserError as error:
            return f"checkpoint {path} is not complete: {error}", None
        except OSError as error:
            return None, f"checkpoint {path} cannot be read: {error}"
        if found != expected[name].sha256:
            return f"{changed} SHA-256 {found[:12]}…, expected {expected[name].sha256[:12]}…", None
    return None, None


def _open(path: Path, manifest: Manifest, runtime: Runtime) -> tuple[Snapshot | None, str | None]:
    ranks = range(manifest.world_size)
    try:
        state = read_values(path / STATE)
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} holds no dictionary")
        snapshot = Snapshot(
            path=path,
            format=manifest.format,
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
    found = read_values(path)
    if not isinstance(found, dict) or not isinstance(found.get("torch"), Tensor):
        raise ValueError(f"{path.name} holds no random generators")
    return found


def _by_parameter(paths: Iterable[Path]) -> dict[str, Tensors]:
    found: dict[str, dict[str, Any]] = {}
    for key, scattered in read_pieces(paths).items():
        name, slash, slot = key.rpartition("/")
        if not slash:
            raise ValueError(f"the optimizer's state has a tensor '{key[:80]}', expected PARAMETER/SLOT")
        found.setdefault(name, {})[slot] = scattered
    return {name: Tensors(slots) for name, slots in found.items()}
