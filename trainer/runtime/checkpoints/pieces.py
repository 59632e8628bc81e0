"""Pieces: flat ranges of whole tensors, entries in row-major order.

A strategy leaves each rank some pieces; what is saved as such can be put together again on any number of ranks, under
any strategy. A file of pieces is a safetensors file of 1-dimensional tensors, whose metadata say under `pieces` where
each belongs: {name: [shape of the whole tensor, first entry]}. It holds no two pieces of one tensor.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PIECES = "pieces"

OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""Parameter name -> what the optimizer remembers of it (exp_avg, momentum_buffer, ...), as a whole tensor. Optimizer
hyperparameters are the configuration's, and the learning rate is set before every step: neither is state."""


class Piece(NamedTuple):
    """Some entries of a tensor.

    Attributes:
        name: the tensor's.
        shape: the whole tensor's.
        start: how many of its entries come before.
        values: 1-dimensional; it may be a view of what the tensor itself lives in.
    """

    name: str
    shape: Sequence[int]
    start: int
    values: Tensor


def cut(name: str, tensor: Tensor, rank: int, world_size: int) -> Piece:
    """The `rank`-th of `world_size` pieces, of nearly equal size, of a tensor that every rank has alike."""
    start, stop = (tensor.numel() * place // world_size for place in (rank, rank + 1))
    return Piece(name, tensor.shape, start, tensor.detach().flatten()[start:stop])


def copied(pieces: Iterable[Piece]) -> list[Piece]:
    """The same pieces in host memory of their own, one after another: what they are views of may change afterwards."""
    copies = [piece._replace(values=_copy(piece.values)) for piece in pieces]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copies


def _copy(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values.clone()
    # Into pinned memory the GPU writes by itself, several times as fast.
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def write_pieces(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file of pieces.

    Raises:
        OSError: it cannot be written.
    """
    there = list(pieces)
    places = {piece.name: [list(piece.shape), piece.start] for piece in there}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({piece.name: piece.values for piece in there}, path, {PIECES: json.dumps(places)})
    except SafetensorError as error:  # Its word for a full disk too.
        raise OSError(f"{path}: {error}") from error
    path.chmod(mode)  # As the user's other files: safetensors leaves it to the owner alone.


class _Part(NamedTuple):
    start: int
    stop: int
    file: Any
    path: Path


@dataclass(frozen=True)
class Scattered:
    """A tensor that lies in pieces, in files.

    Attributes:
        name: its own.
        shape: of the whole.
        parts: its pieces, in order, end to end.
    """

    name: str
    shape: Sequence[int]
    parts: Sequence[_Part]

    def whole(self) -> Tensor:
        """Put it together, in memory of its own."""
        pieces = [part.file.get_tensor(self.name) for part in self.parts]
        return (torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()).view(self.shape)


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for, and not kept."""

    def __init__(self, scattered: Mapping[str, Scattered]) -> None:
        self._scattered = scattered

    def __getitem__(self, name: str) -> Tensor:
        return self._scattered[name].whole()

    def __contains__(self, name: object) -> bool:
        return name in self._scattered

    def __iter__(self) -> Iterator[str]:
        return iter(self._scattered)

    def __len__(self) -> int:
        return len(self._scattered)


def read_pieces(paths: Iterable[Path]) -> dict[str, Scattered]:
    """Find what tensors lie in some files of pieces. The files stay open for as long as the answer lives.

    Raises:
        ValueError: the pieces of a tensor overlap, or some are missing.
        OSError: a file cannot be read.
    """
    shapes: dict[str, list[int]] = {}
    parts: dict[str, list[_Part]] = {}
    for path in paths:
        file, places = _open(path)
        for name, (shape, start) in places.items():
            (num_entries,) = file.get_slice(name).get_shape()
            parts.setdefault(name, []).append(_Part(start, start + num_entries, file, path))
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{path.name} has a piece of a {name} of shape {shape}, others of {shapes[name]}")
    return {name: _scattered(name, shapes[name], parts[name]) for name in parts}


def _open(path: Path) -> tuple[Any, dict[str, tuple[list[int], int]]]:
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    return file, json.loads(file.metadata()[PIECES])


def _scattered(name: str, shape: list[int], parts: list[_Part]) -> Scattered:
    # Those without entries, which small tensors leave some ranks, before the one that begins at the same place.
    ordered = sorted(parts, key=lambda part: (part.start, part.stop))
    reached, num_entries = 0, math.prod(shape)
    for part in ordered:
        if part.start != reached:
            fault = "overlap" if part.start < reached else "leave a gap"
            raise ValueError(
                f"the pieces of {name} {fault}: {part.path.name} goes on at entry {part.start:,}, "
                f"those before it end at {reached:,}"
            )
        reached = part.stop
    if reached != num_entries:
        raise ValueError(f"the pieces of {name} end at entry {reached:,} of {num_entries:,}")
    return Scattered(name, shape, ordered)
