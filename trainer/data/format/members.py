"""The array members of a sample, and how to decode each of them into its slot of a batch.

The first member is the input, followed by the dense tasks' targets, which a sample may lack. A member that does not
decode to exactly what the manifest says is an error. No decoder runs that can execute code (no pickle).

Shapes: B samples, H rows, W columns, C channels, F features; `...` means any of them.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from trainer.data.format.decode import (
    MAX_PIXELS,
    check_header,
    check_whole,
    decode_into,
    decode_many,
    needs_decoding,
)
from trainer.data.format.npy import npy_header, read_npy
from trainer.data.format.png import BadImageError, decode_classes, png_header
from trainer.data.format.specs import (
    MOST_STDS,
    UNLABELLED,
    DenseRegressionSpec,
    DenseTaskSpec,
    FeaturesSpec,
    ImageSpec,
    SegmentationSpec,
    TaskSpec,
)

MemberSpec = ImageSpec | FeaturesSpec | SegmentationSpec | DenseRegressionSpec


class BadMemberError(Exception):
    """A member that cannot be used; its argument says why."""


def dense_tasks(tasks: Iterable[TaskSpec]) -> list[SegmentationSpec | DenseRegressionSpec]:
    """Return the tasks whose targets are array members."""
    return [task for task in tasks if isinstance(task, DenseTaskSpec)]


def extensions(inputs: ImageSpec | FeaturesSpec, tasks: Iterable[TaskSpec]) -> list[str]:
    """Return the extensions of all array members in the order of the index: the input, then the dense tasks."""
    return [inputs.encoding, *(task.extension for task in dense_tasks(tasks))]


def blank(spec: MemberSpec, batch_size: int, inputs: ImageSpec | FeaturesSpec) -> np.ndarray:
    """Return slots for padding and bad samples: zeros for an input, no labels for a target.

    Args:
        spec: the member's spec.
        batch_size: B.
        inputs: the manifest's input; dense targets have its height and width.

    Returns:
        Input: uint8 (B, H, W, C) or float32 (B, F). Segmentation: uint8 (B, H, W). Dense regression: float32
        (B, H, W, C).
    """
    if isinstance(spec, ImageSpec):
        return np.zeros((batch_size, *spec.shape), np.uint8)
    if isinstance(spec, FeaturesSpec):
        return np.zeros((batch_size, *spec.shape), np.float32)
    assert isinstance(inputs, ImageSpec), "a manifest refuses dense tasks of anything else"
    size = (batch_size, inputs.height, inputs.width)
    if isinstance(spec, SegmentationSpec):
        return np.full(size, UNLABELLED, np.uint8)
    return np.full((*size, spec.channels), np.nan, np.float32)


def decode_member(slot: np.ndarray, data: bytes, spec: MemberSpec) -> None:
    """Decode a member into its slot of a batch; the values of a dense regression become (value - mean) / std.

    Raises:
        BadMemberError: the format, shape or content is wrong. The slot's content is then undefined.
    """
    try:
        if isinstance(spec, ImageSpec):
            decode_into(slot, data, spec)
        elif isinstance(spec, SegmentationSpec):
            _read_classes(slot, data, spec)
            _check_classes(slot, spec)
        elif isinstance(spec, FeaturesSpec):
            if faults := _decode_rows(slot[None], {0: data}, spec):
                raise faults[0]
        else:
            slot[...] = _read_map(data, slot.shape, spec)
            slot -= spec.mean
            slot /= spec.std
            if (far := np.abs(slot) > MOST_STDS).any():
                raise _too_far(far)
    except BadImageError as error:
        raise BadMemberError(str(error)) from None


def decode_members(batch: np.ndarray, contents: Mapping[int, bytes], spec: MemberSpec) -> dict[int, BadMemberError]:
    """Decode members into some slots of a batch, as `decode_member` does.

    Args:
        batch: an array as `blank` returns it.
        contents: slot -> encoded member.
        spec: the member's spec.

    Returns:
        slot -> error, for the members that could not be decoded.
    """
    if isinstance(spec, ImageSpec):
        return {slot: BadMemberError(str(fault)) for slot, fault in decode_many(batch, contents, spec).items()}
    if isinstance(spec, FeaturesSpec):
        return _decode_rows(batch, contents, spec)
    faults = {}
    for slot, data in contents.items():
        try:
            decode_member(batch[slot], data, spec)
        except BadMemberError as error:
            faults[slot] = error
    return faults


def check_member(data: bytes, spec: MemberSpec, inputs: ImageSpec | FeaturesSpec, *, whole: bool) -> None:
    """Check that a member will decode, before it is written. Most images are checked by their header, unless `whole`.

    Raises:
        BadMemberError: as `decode_member`.
    """
    if not isinstance(spec, ImageSpec):
        decode_member(blank(spec, 1, inputs)[0], data, spec)
        return
    try:
        (check_whole if whole or needs_decoding(data, spec) else check_header)(data, spec)
    except BadImageError as error:
        raise BadMemberError(str(error)) from None


def _decode_rows(batch_BF: np.ndarray, contents: Mapping[int, bytes], spec: FeaturesSpec) -> dict[int, BadMemberError]:
    faults = {}
    for slot, data in contents.items():
        try:
            batch_BF[slot] = _read_floats(data, spec.shape)
        except BadMemberError as error:
            faults[slot] = error
    slots = np.array([slot for slot in contents if slot not in faults], np.intp)
    far_BF = np.abs(batch_BF[slots] - np.array(spec.mean)) > MOST_STDS * np.array(spec.std)
    return faults | {slots[row].item(): _too_far(far_BF[row]) for row in np.flatnonzero(far_BF.any(1))}


def _too_far(far: np.ndarray) -> BadMemberError:
    return BadMemberError(
        f"expected finite numbers within {MOST_STDS:g} standard deviations of the mean, or NaN if missing; "
        f"found {np.count_nonzero(far)} others of {far.size}"
    )


def _read_floats(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    try:
        found, dtype = npy_header(data)
        if found != shape or dtype not in ("<f2", "<f4"):
            raise BadMemberError(f"expected float16 or float32 of shape {shape}, found {dtype} of shape {found}")
        return read_npy(data)
    except ValueError as error:
        raise BadMemberError(str(error)) from None


def _read_map(data: bytes, shape: tuple[int, ...], spec: DenseRegressionSpec) -> np.ndarray:
    """Return the values of a dense regression, (H, W, C), as stored or resized. One channel may be stored as (H, W)."""
    try:
        found, dtype = npy_header(data)
        if dtype not in ("<f2", "<f4"):
            raise BadMemberError(f"expected float16 or float32 of shape {shape}, found {dtype} of shape {found}")
        flat = len(found) == 2 and spec.channels == 1
        full = (*found, 1) if flat else found
        sizes_fit = full[:2] == shape[:2] or spec.stored_sizes == "any"
        if len(full) != 3 or full[2] != spec.channels or not sizes_fit or 0 in full:
            raise BadMemberError(f"expected float16 or float32 of shape {shape}, found {dtype} of shape {found}")
        return _nearest(read_npy(data).reshape(full), shape[0], shape[1])
    except ValueError as error:
        raise BadMemberError(str(error)) from None


def _read_classes(slot_HW: np.ndarray, data: bytes, spec: SegmentationSpec) -> None:
    height, width, *_ = header = png_header(data)
    if spec.stored_sizes == "exact" and (height, width) != slot_HW.shape:
        raise BadMemberError(
            f"expected height x width x channels {(*slot_HW.shape, 1)}, found {(height, width, header.channels)}"
        )
    if not 0 < height * width <= MAX_PIXELS:
        raise BadMemberError(f"expected from 1 to {MAX_PIXELS:,} pixels, found {height} x {width}")
    slot_HW[...] = _nearest(decode_classes(data), *slot_HW.shape)


def _nearest(map_: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize the first two axes: each pixel gets the value of the stored pixel under its centre."""
    if map_.shape[:2] == (height, width):
        return map_
    rows_H = ((np.arange(height) + 0.5) * map_.shape[0] / height).astype(int)
    columns_W = ((np.arange(width) + 0.5) * map_.shape[1] / width).astype(int)
    return map_[rows_H[:, None], columns_W]


def _check_classes(map_HW: np.ndarray, task: SegmentationSpec) -> None:
    wrong_HW = (map_HW >= len(task.classes)) & (map_HW != UNLABELLED)
    if wrong_HW.any():
        raise BadMemberError(
            f"expected class numbers from 0 to {len(task.classes) - 1}, or {UNLABELLED} for none; "
            f"found {map_HW[wrong_HW].max()}"
        )
