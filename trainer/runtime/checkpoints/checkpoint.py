"""Checkpoints: written aside, described by a manifest, published by one rename, pointed to by LATEST.

A checkpoint is a folder step_00001000/. Of each rank it holds model_00000.safetensors and optimizer_00000.safetensors,
its pieces of the whole tensors (`pieces`), so that any number of ranks can go on under any strategy; and rank_00000.pt,
its random generators. state.pt (cursor, weighting) is the same on every rank. manifest.json has the step, the world
size, and the size and SHA-256 of each file. The folder appears under its name only when it is whole. Nothing in it is
unpickled: torch.load(weights_only=True).
"""

import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import UserError
from trainer.files import sha256, sync, write_durably
from trainer.runtime.checkpoints.pieces import OptimizerState, Piece, Tensors, read_pieces, write_pieces
from trainer.runtime.setup import Runtime

MANIFEST = "manifest.json"
LATEST = "LATEST"
STATE = "state.pt"
FORMAT = 3

Sums = Mapping[str, Mapping[str, Any]]
"""File name -> its size in `bytes` and its `sha256`."""


def latest(folder: Path) -> Path | None:
    """The checkpoint that LATEST names, or None where none was ever published."""
    pointer = folder / LATEST
    if not pointer.exists():
        return None
    return folder / pointer.read_text().strip()


def folder_of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands, if there is one."""
    return folder / f"step_{step:08d}"


def model_file(rank: int) -> str:
    """The file of a rank's pieces of the model."""
    return f"model_{rank:05d}.safetensors"


def optimizer_file(rank: int) -> str:
    """The file of a rank's pieces of the optimizer's state, whose tensors are called `<parameter>/<slot>`."""
    return f"optimizer_{rank:05d}.safetensors"


def generators_file(rank: int) -> str:
    """The file of a rank's random generators."""
    return f"rank_{rank:05d}.pt"


def write_files(folder: Path, contents: Mapping[str, bytes | list[Piece]]) -> Sums:
    """Write one rank's files into a folder that is not published yet, and wait until the disk has them.

    Raises:
        OSError: one cannot be written.
    """
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


def publish(aside: Path, final: Path, *, step: int, world_size: int, sums: Sums, keep: int) -> None:
    """Give a folder that all ranks have written its manifest and its name, and remove checkpoints that are too many.

    Args:
        aside: the folder, beside `final`.
        final: what it is called from now on.
        step: optimizer steps done.
        world_size: number of ranks that wrote.
        sums: of all their files.
        keep: how many published checkpoints stay.

    Raises:
        OSError: the disk does not let us.
    """
    for file in aside.iterdir():
        if file.name not in sums:
            file.unlink()  # Left by a run of another world size that died in the middle of this very save.
    manifest = {"format": FORMAT, "step": step, "world_size": world_size, "files": sums}
    write_durably(aside / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync(aside)
    if final.exists():
        shutil.rmtree(final)  # The same step, saved again after a resume from an older checkpoint.
    os.replace(aside, final)
    pointer = final.parent / f"{LATEST}.tmp"
    write_durably(pointer, final.name.encode())
    os.replace(pointer, final.parent / LATEST)
    sync(final.parent)
    _prune(final.parent, keep, newest=final)


def to_bytes(value: Any) -> bytes:
    """What of a checkpoint is no tensor of the model's or the optimizer's, as a file of torch.

    Raises:
        ValueError: it holds something that could not be read back; names it.
    """
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # Objects of any kind, which may refuse in any way.
        for key, inner in value.items() if isinstance(value, dict) else ():
            try:
                to_bytes(inner)
            except ValueError as found:
                raise ValueError(f"['{key}']{found}") from error
        kind = type(value)
        raise ValueError(f" is a {kind.__module__}.{kind.__qualname__}") from error
    return buffer.getvalue()


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that was checked. Its tensors are read from its files when they are asked for, and not kept.

    Attributes:
        path: the checkpoint's folder.
        model: the whole model's tensors.
        optimizer: the whole optimizer's state.
        state: what else was saved.
        generators: this rank's random generators; None where the checkpoint is of another world size, whose ranks drew
            other numbers.
    """

    path: Path
    model: Mapping[str, Tensor]
    optimizer: OptimizerState
    state: dict[str, Any]
    generators: dict[str, Tensor] | None

    def restore_generators(self) -> None:
        """Let random numbers go on where the checkpoint left off."""
        if self.generators is None:
            return
        torch.set_rng_state(self.generators["torch"])
        if "cuda" in self.generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.generators["cuda"])


def generators() -> dict[str, Tensor]:
    """This rank's random generators, as `Snapshot` has them."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load(path: Path, runtime: Runtime) -> Snapshot:
    """Check a checkpoint against its manifest, each rank a share of the files, and open it. Collective.

    Raises:
        UserError: a file is missing, incomplete or changed, or the pieces do not make whole tensors.
    """
    manifest = runtime.on_main(lambda: _read_manifest(path))
    ranks = range(manifest["world_size"])
    names = [STATE, *(file(rank) for rank in ranks for file in (model_file, optimizer_file, generators_file))]
    found = runtime.gather(_first_fault(path, manifest["files"], names[runtime.rank :: runtime.world_size]))
    for fault in filter(None, found):
        raise UserError(f"{fault}. {_way_out(path)}")
    with runtime.together():
        try:
            return Snapshot(
                path=path,
                model=Tensors(read_pieces(path / model_file(rank) for rank in ranks)),
                optimizer=_by_parameter([path / optimizer_file(rank) for rank in ranks]),
                state=_from_file(path / STATE),
                generators=_from_file(path / generators_file(runtime.rank))
                if len(ranks) == runtime.world_size
                else None,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}. {_way_out(path)}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is not complete: no readable {MANIFEST} ({error}). {_way_out(path)}"
        ) from None
    if manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest['format']}, this version of paretrain reads and writes {FORMAT}. "
            "Go on with the version that wrote it, which run.json names, or start a new run: name=ANOTHER_NAME"
        )
    return manifest


def _first_fault(path: Path, expected: Sums, names: Sequence[str]) -> str | None:
    """What is wrong with some of a checkpoint's files, compared with its manifest byte for byte; None: nothing."""
    for name in names:
        file = path / name
        if name not in expected or not file.is_file():
            return f"checkpoint {path} is not complete: {name} is missing"
        try:
            found = _described(file)
        except OSError as error:
            return f"checkpoint {path} cannot be read: {error}"
        if found != expected[name]:
            what = f"{found['bytes']} bytes, expected {expected[name]['bytes']}"
            if found["bytes"] == expected[name]["bytes"]:
                what = f"SHA-256 {found['sha256'][:12]}…, expected {expected[name]['sha256'][:12]}…"
            return f"checkpoint {path} has changed since it was written: {name} has {what}"
    return None


def _way_out(path: Path) -> str:
    # Not a later one: somebody went back behind it.
    others = sorted(other.name for other in path.parent.glob("step_????????") if other.name < path.name)
    if others:
        return f"To go on from {others[-1]}: echo {others[-1]} > {path.parent / LATEST}"
    return "To start anew, remove the run's folder."


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _by_parameter(paths: Sequence[Path]) -> OptimizerState:
    found: dict[str, dict[str, Any]] = {}
    for key, scattered in read_pieces(paths).items():
        name, slot = key.rsplit("/", 1)
        found.setdefault(name, {})[slot] = scattered
    return {name: Tensors(slots) for name, slots in found.items()}


def _from_file(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    published = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8}", path.name) and path != newest]
    # First those that a run left which was then set back to an earlier step.
    published.sort(key=lambda path: (path < newest, path))
    # What a process left that died is first to go: it may have the name that an old checkpoint gets.
    for torn in folder.glob("step_*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)  # What somebody still reads goes next time.
    for old in published[: max(len(published) - keep + 1, 0)]:
        torn = old.with_suffix(".tmp")
        old.rename(torn)
        shutil.rmtree(torn, ignore_errors=True)
