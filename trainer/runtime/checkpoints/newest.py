"""Find the checkpoint that a run goes on from: the one that LATEST names, or the newest whole one before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError
from trainer.runtime.checkpoints.checkpoint import Snapshot, examine
from trainer.runtime.checkpoints.folder import LATEST, how_to_go_on, published, read_pointer, step_of
from trainer.runtime.collectives import Runtime


@dataclass(frozen=True)
class Found:
    """What a run goes on from.

    Attributes:
        snapshot: the checkpoint.
        named: the checkpoint that LATEST names.
        damaged: what is wrong with `named` and those between, which are passed over.
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
            continue  # Somebody has set the run back.
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


def _list(folder: Path) -> tuple[Path | None, str | None, list[Path]]:
    """Return the checkpoint that LATEST names, or what is wrong with LATEST, and all checkpoints."""
    named, fault = read_pointer(folder)
    there = published(folder)
    if named is not None and named not in there:
        fault = f"{folder / LATEST} names {named.name}, which is not there"
        named = None
    if named is None and fault is None and there:
        fault = f"{folder / LATEST} is missing"
    return named, fault, there
