"""Pieces: flat ranges of whole tensors, entries in row-major order.

Every strategy leaves each rank some pieces of each tensor. Saved like this, a tensor can be put together again on any
number of ranks, under any strategy. A file of pieces is a safetensors file of 1-dimensional tensors, whose metadata
`pieces` hold the layout of each: {name: [shape of the whole tensor, first entry]}. It has at most one piece of each
tensor.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import UserError
from trainer.files import open_regular, parse_json
from trainer.runtime.checkpoints.manifest import first_fault

PIECES = "pieces"
Entries = Annotated[int, Field(ge=0, lt=2**63)]
Layout = tuple[Annotated[list[Entries], Field(max_length=64)], Entries]
"""The shape of the whole tensor, and the piece's first entry in it."""
LAYOUTS = TypeAdapter(dict[str, Layout])

OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""Parameter name -> slot (exp_avg, momentum_buffer, ...) -> whole tensor. Hyperparameters belong to the configuration,
and the learning rate is set before every step: neither is state."""


class Piece(NamedTuple):
    """A flat range of a tensor.

    Attributes:
        name: the tensor's name.
        shape: the whole tensor's shape.
        start: the index of the first entry.
        values: the entries, 1-dimensional; may be a view of the tensor's own memory.
    """

    name: str
    shape: Sequence[int]
    start: int
    values: Tensor


def piece_of(name: str, tensor: Tensor, rank: int, world_size: int) -> Piece:
    """Return the `rank`-th of `world_size` pieces, of nearly equal size, of a tensor that all ranks have whole."""
    start, stop = (tensor.numel() * index // world_size for index in (rank, rank + 1))
    return Piece(name, tensor.shape, start, tensor.detach().flatten()[start:stop])


def copied(pieces: Iterable[Piece]) -> list[Piece]:
    """Return copies of the pieces in host memory: what they are views of may change afterwards."""
    copies = [piece._replace(values=_copy(piece.values)) for piece in pieces]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copies


def _copy(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values.clone()
    # The GPU writes into pinned memory by itself, several times as fast.
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def write_pieces(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file of pieces.

    Raises:
        OSError: it cannot be written.
    """
    pieces = list(pieces)
    layouts = {piece.name: [list(piece.shape), piece.start] for piece in pieces}
    with suppress(FileNotFoundError):
        path.unlink()  # Left by a save that died; or a link, which would be followed.
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_file({piece.name: piece.values for piece in pieces}, path, {PIECES: json.dumps(layouts)})
    except SafetensorError as error:  # safetensors raises it for a full disk too.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from error
    path.chmod(mode)  # The mode of the user's other files: safetensors makes it readable for the owner alone.


class _Part(NamedTuple):
    start: int
    stop: int
    dtype: torch.dtype
    file: Any
    path: Path


@dataclass(frozen=True)
class Scattered:
    """A tensor whose pieces lie in files.

    Attributes:
        name: its name.
        shape: the whole tensor's shape.
        parts: its pieces in order, without gaps.
    """

    name: str
    shape: Sequence[int]
    parts: Sequence[_Part]

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.parts[0].dtype

    def whole(self) -> Tensor:
        """Return the whole tensor, in memory of its own."""
        pieces = [part.file.get_tensor(self.name) for part in self.parts]
        return (torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()).view(self.shape)


class Tensors(Mapping[str, Tensor]):
    """Tensors by name; each is read when it is asked for, and not kept."""

    def __init__(self, scattered: Mapping[str, Scattered]) -> None:
        self._scattered = scattered

    def form(self, name: str) -> tuple[torch.Size, torch.dtype]:
        """Return a tensor's shape and dtype without reading it."""
        return torch.Size(self._scattered[name].shape), self._scattered[name].dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._scattered[name].whole()

    def __contains__(self, name: object) -> bool:
        return name in self._scattered

    def __iter__(self) -> Iterator[str]:
        return iter(self._scattered)

    def __len__(self) -> int:
        return len(self._scattered)


def read_pieces(paths: Iterable[Path]) -> dict[str, Scattered]:
    """Return the tensors whose pieces lie in some files, which stay open for as long as the result lives.

    Raises:
        ValueError: the pieces of a tensor overlap or leave a gap, or a file is not a file of pieces.
        FileNotFoundError: a file does not exist.
    """
    shapes: dict[str, list[int]] = {}
    parts: dict[str, list[_Part]] = {}
    for path in paths:
        for name, (shape, part) in _open(path).items():
            parts.setdefault(name, []).append(part)
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{path.name} has a piece of a {name} of shape {shape}, others of {shapes[name]}")
    return {name: _scattered(name, shapes[name], parts[name]) for name in parts}


def _open(path: Path) -> dict[str, tuple[list[int], _Part]]:
    """Open a file of pieces. Return the whole tensor's shape and the piece, by name."""
    try:
        open_regular(path).close()
        file = safe_open(path, framework="pt")
        layouts = LAYOUTS.validate_python(parse_json((file.metadata() or {}).get(PIECES, ""), PIECES), strict=False)
        if layouts.keys() != set(file.keys()):
            raise ValueError(f"the tensors are not those that its '{PIECES}' names")
        found = {}
        for name, (shape, start) in layouts.items():
            values = file.get_slice(name)
            if len(values.get_shape()) != 1:
                raise ValueError(f"the piece of {name} has {len(values.get_shape())} dimensions, expected 1")
            found[name] = shape, _Part(start, start + values.get_shape()[0], values[0:0].dtype, file, path)
        return found
    except ValidationError as error:
        raise ValueError(f"{path.name}: {PIECES}: {first_fault(error)}") from None
    except (SafetensorError, UserError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _scattered(name: str, shape: list[int], parts: list[_Part]) -> Scattered:
    # By both ends: an empty piece, as small tensors leave some ranks, comes before the one with the same start.
    ordered = sorted(parts, key=lambda part: (part.start, part.stop))
    reached, num_entries = 0, math.prod(shape)
    for part in ordered:
        if part.start != reached:
            fault = "overlap" if part.start < reached else "leave a gap"
            raise ValueError(
                f"the pieces of {name} {fault}: {part.path.name} goes on at entry {part.start:,}, "
                f"those before it end at {reached:,}"
            )
        if part.dtype != ordered[0].dtype:
            raise ValueError(f"the pieces of {name} are of {ordered[0].dtype} and of {part.dtype}")
        reached = part.stop
    if reached != num_entries:
        raise ValueError(f"the pieces of {name} end at entry {reached:,} of {num_entries:,}")
    return Scattered(name, shape, ordered)
