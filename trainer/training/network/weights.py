"""model.encoder.weights: read the tensors that an encoder starts from.

They are in a safetensors file, such as an export; in a checkpoint of a run; or in a folder of Hugging Face.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import UserError
from trainer.files import read_json, sha256
from trainer.run_folder import checkpoint_of
from trainer.run_path import CONFIG
from trainer.runtime.checkpoints.manifest import MANIFEST
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.averaging import averaged_weights

HUGGING_FACE = "model.safetensors"
HUGGING_FACE_INDEX = f"{HUGGING_FACE}.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Weights:
    """Tensors to start from.

    Attributes:
        path: what was read.
        tensors: by name; those of a file are read when they are asked for.
        sha256: of each file; for a checkpoint, of its manifest, which has those of the others.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: Mapping[str, str]


def open_weights(path: Path, runtime: Runtime) -> Weights:
    """Open what a user has named. Collective.

    Raises:
        UserError: it is nothing that can be read.
        FaultError: the disk cannot read a checkpoint.
    """
    checkpoint = runtime.on_main(lambda: _checkpoint(path))
    if checkpoint is not None:
        snapshot = load(checkpoint, runtime)
        tensors = averaged_weights(snapshot.model, snapshot.optimizer)
        hashes = runtime.on_main(lambda: {MANIFEST: sha256(checkpoint / MANIFEST)})
        return Weights(checkpoint, tensors, hashes)
    files = runtime.on_main(lambda: _files(path))
    hashes = runtime.on_main(lambda: {file.name: sha256(file) for file in files})
    with runtime.raise_together():
        return Weights(path, _Tensors(files), hashes)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of some safetensors files, read when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._file_of: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"model.encoder.weights: {path} is not a safetensors file: {error}") from None
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._file_of[name].get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that a path stands for; None if it is no run and no checkpoint."""
    if (path / CONFIG).is_file():
        return checkpoint_of(path, None)
    return path if (path / MANIFEST).is_file() else None


def _files(path: Path) -> list[Path]:
    """Return the safetensors files that a path stands for."""
    if path.is_file():
        if path.suffix in PICKLES:
            raise UserError(
                f"model.encoder.weights: {path} is a pickle, which is not read: it could run code. To make a "
                "safetensors file of its tensors: import torch; from safetensors.torch import save_file; "
                f'save_file(torch.load("{path.name}", weights_only=True), "{path.stem}.safetensors")'
            )
        return [path]
    index = path / HUGGING_FACE_INDEX
    if index.is_file():
        found = read_json(index)
        names = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"model.encoder.weights: {index} has no `weight_map` from tensors to files")
        files = [path / Path(name).name for name in sorted(set(names.values()))]
        for file in files:
            if not file.is_file():
                raise UserError(f"model.encoder.weights: {index} names {file.name}, which is not there")
        return files
    if (path / HUGGING_FACE).is_file():
        return [path / HUGGING_FACE]
    there = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    found_there = f"it holds {', '.join(there[:5]) or 'nothing'}" if path.is_dir() else "no such file or folder"
    raise UserError(
        f"model.encoder.weights: {path}: {found_there}. Expected a safetensors file, the folder of a run or of one of "
        f"its checkpoints, or a folder with {HUGGING_FACE}"
    )
