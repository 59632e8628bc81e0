"""Checkpoints: written aside, described by a manifest, published by one rename, pointed to by LATEST.

A checkpoint is a folder step_00001000/ that holds model.safetensors and optimizer.safetensors (whole tensors by
parameter name, whatever the strategy), state.pt (cursor, weighting: the same on every rank), rank_00000.pt (each rank's
random generators) and manifest.json (step, world size, size and SHA-256 of each file). It appears under its name only
when it is whole. Nothing in it is unpickled: torch.load(weights_only=True).
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trainer.errors import UserError
from trainer.files import sha256, sync_folder, write_durably
from trainer.runtime.engine import OptimizerState
from trainer.runtime.setup import Runtime

MANIFEST = "manifest.json"
LATEST = "LATEST"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
"""Tensors `<parameter name>/<slot>`, such as `encoder.project.0.weight/exp_avg`."""
STATE = "state.pt"
FORMAT = 2


def latest(folder: Path) -> Path | None:
    """The checkpoint that LATEST names, or None where none was ever published."""
    pointer = folder / LATEST
    if not pointer.exists():
        return None
    return folder / pointer.read_text().strip()


def folder_of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands, if there is one."""
    return folder / f"step_{step:08d}"


def save(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: OptimizerState,
    state: Mapping[str, Any],
    runtime: Runtime,
    keep: int,
) -> None:
    """Write and publish a checkpoint. Collective: every rank calls it at the same step.

    Args:
        folder: the run's checkpoint folder.
        step: optimizer steps done.
        model: the whole model's tensors; rank 0 writes them.
        optimizer: the whole optimizer's state; rank 0 writes it.
        state: what else is the same on every rank; rank 0 writes it.
        runtime: the processes.
        keep: how many published checkpoints stay.

    Raises:
        UserError: a file could not be written on some rank; the last published checkpoint stands.
    """
    final = folder_of_step(folder, step)
    aside = final.with_suffix(".tmp")
    try:
        with runtime.together(), _disk_errors(step, folder):
            aside.mkdir(parents=True, exist_ok=True)
            write_durably(aside / _rank_file(runtime.rank), _to_bytes(_generators()))
            if runtime.is_main:
                slots = {f"{name}/{slot}": value for name, state in optimizer.items() for slot, value in state.items()}
                write_durably(aside / MODEL, _safe(model))
                write_durably(aside / OPTIMIZER, _safe(slots))
                write_durably(aside / STATE, _to_bytes(dict(state)))
        with runtime.together(), _disk_errors(step, folder):
            if runtime.is_main:
                _publish(aside, final, step, runtime.world_size)
                _prune(folder, keep, newest=final)
    except UserError:
        if runtime.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        path: the checkpoint's folder.
        model: the whole model's tensors.
        optimizer: the whole optimizer's state.
        state: what `save` was given.
        generators: this rank's random generators; None where the checkpoint is of another world size, whose ranks drew
            other numbers.
    """

    path: Path
    model: dict[str, Tensor]
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


def load(path: Path, runtime: Runtime) -> Snapshot:
    """Check a checkpoint against its manifest and read it. Collective.

    Raises:
        UserError: a file is missing, incomplete or changed.
    """
    manifest = runtime.on_main(lambda: verify(path))
    with runtime.together():
        try:
            return Snapshot(
                path=path,
                model=safetensors.torch.load_file(path / MODEL),
                optimizer=_by_parameter(safetensors.torch.load_file(path / OPTIMIZER)),
                state=_from_file(path / STATE),
                generators=_from_file(path / _rank_file(runtime.rank))
                if manifest["world_size"] == runtime.world_size
                else None,
            )
        except OSError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}") from None


def verify(path: Path) -> dict[str, Any]:
    """Compare a checkpoint with its manifest, byte for byte.

    Raises:
        UserError: a file is missing, incomplete or changed; says which, and how to go on from another checkpoint.
    """
    # Not a later one: somebody went back behind it.
    others = sorted(other.name for other in path.parent.glob("step_????????") if other.name < path.name)
    way_out = "To start anew, remove the run's folder."
    if others:
        way_out = f"To go on from {others[-1]}: echo {others[-1]} > {path.parent / LATEST}"
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} is not complete: no readable {MANIFEST} ({error}). {way_out}") from None
    if manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest['format']}, this version of paretrain reads and writes {FORMAT}. "
            "Go on with the version that wrote it, which run.json names, or start a new run: name=ANOTHER_NAME"
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"checkpoint {path} is not complete: {name} is missing. {way_out}")
        found = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        if found != expected:
            what = f"{found['bytes']} bytes, expected {expected['bytes']}"
            if found["bytes"] == expected["bytes"]:
                what = f"SHA-256 {found['sha256'][:12]}…, expected {expected['sha256'][:12]}…"
            raise UserError(f"checkpoint {path} has changed since it was written: {name} has {what}. {way_out}")
    return manifest


def _publish(aside: Path, final: Path, step: int, world_size: int) -> None:
    files = [MODEL, OPTIMIZER, STATE, *(_rank_file(rank) for rank in range(world_size))]
    for file in aside.iterdir():
        if file.name not in files:
            file.unlink()  # Left by a run of another world size that died in the middle of this very save.
    sums = {name: {"bytes": (aside / name).stat().st_size, "sha256": sha256(aside / name)} for name in files}
    manifest = {"format": FORMAT, "step": step, "world_size": world_size, "files": sums}
    write_durably(aside / MANIFEST, json.dumps(manifest, indent=1).encode())
    if final.exists():
        shutil.rmtree(final)  # The same step, saved again after a resume from an older checkpoint.
    os.replace(aside, final)
    pointer = final.parent / f"{LATEST}.tmp"
    write_durably(pointer, final.name.encode())
    os.replace(pointer, final.parent / LATEST)
    sync_folder(final.parent)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    published = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8}", path.name) and path != newest]
    # First those that a run left which was then set back to an earlier step.
    published.sort(key=lambda path: (path < newest, path))
    for old in published[: max(len(published) - keep + 1, 0)]:
        old.rename(old.with_suffix(".tmp"))
    for torn in folder.glob("step_*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)  # What somebody still reads goes next time.


def _generators() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def _safe(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def _by_parameter(slots: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in slots.items():
        name, slot = key.rsplit("/", 1)
        found.setdefault(name, {})[slot] = value
    return found


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_file(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _disk_errors(step: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        stands = latest(folder)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {error}. "
            f"{f'The last one, {stands}, stands' if stands else 'There is none before it'}. "
            "Make room or repair the disk, then type the same command again to go on"
        ) from error
