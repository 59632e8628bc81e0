"""Data folders in which something was changed, and then given the right checksum: the same samples, or one sentence.

The cases are drawn from a seed; `mutations` has thousands, of which the test takes a few hundred.
"""

import copy
import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.loaders import data_folder
from tests.support.rich_data import write_rich, write_table
from tests.support.tiny_data import sign, spec, write_tiny
from trainer.data.format.coverage import check_trainable
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.specs import MOST_STDS
from trainer.data.format.verify import verify_shards
from trainer.data.reading.images import to_input
from trainer.data.reading.reader import SplitReader
from trainer.errors import UserError

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e-300, 1e308, -1e308, "", " ", "a",
    "\n", "\x00", "\x1b[31m", "../x", "/etc/passwd", "x" * 300, "ü", "\u202e", "[/b]", "<script>", [], [[]], {},
    {"a": 1}, [None], [0.0], [1e308], [1e-308], [-1.0], ["a"], ["a", "a"], "nan", "0" * 64,
)  # fmt: skip
"""Stand in for each value of a manifest."""


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def changed(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    content = copy.deepcopy(content)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    change(parent, place[-1])
    return content


def manifests(content: Any) -> Iterator[tuple[str, bytes]]:
    """Mutate a manifest: replace every value by every other; leave out, add and repeat keys; and no JSON at all."""
    whole = json.dumps(content)
    for place in places(content):
        for value in VALUES:

            def put(parent: Any, key: Any, value: Any = value) -> None:
                parent[key] = value

            yield f"{place} = {value!r}", json.dumps(changed(content, place, put)).encode()

        def remove(parent: Any, key: Any) -> None:
            del parent[key]

        def repeat(parent: Any, key: Any) -> None:
            if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            else:
                parent[f"{key}2"] = copy.deepcopy(parent[key])

        yield f"without {place}", json.dumps(changed(content, place, remove)).encode()
        yield f"{place} twice", json.dumps(changed(content, place, repeat)).encode()
        if isinstance(place[-1], str):
            member = f"{json.dumps(place[-1])}: "
            yield f"key {place[-1]} twice", whole.replace(member, f"{member}null, {member}", 1).encode()
    for cut in range(0, len(whole), max(len(whole) // 20, 1)):
        yield f"cut at {cut}", whole[:cut].encode()
    for name, text in {
        "nested": "[" * 100_000,
        "long number": whole.replace('"bytes": ', '"bytes": ' + "9" * 5000, 1),
        "NaN": whole.replace('"mean": [', '"mean": [NaN, ', 1),
        "surrogate": whole.replace('"name": "', '"name": "\\ud800', 1),
    }.items():
        yield name, text.encode()
    yield "not UTF-8", whole.encode().replace(b'"name": "', b'"name": "\xff', 1)


def headers(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Mutate the header of an array."""
    end = 10 + int.from_bytes(whole[8:10], "little")
    rows = whole[end:]
    dictionary = whole[10:end].decode().strip()
    shape = dictionary[dictionary.index("'shape'") :]
    others = {
        "huge": dictionary.replace(shape, "'shape': (1000000000000, 1)}"),
        "negative": dictionary.replace(shape, "'shape': (-1, 1)}"),
        "no axis": dictionary.replace(shape, "'shape': ()}"),
        "words": dictionary.replace(shape, "'shape': ('a', 1)}"),
        "truth": dictionary.replace(shape, "'shape': (True, 1)}"),
        "Fortran's order": dictionary.replace("False", "True"),
        "objects": f"{{'descr': '|O', 'fortran_order': False, {shape}",
        "nothing": f"{{'descr': '|V0', 'fortran_order': False, {shape}",
        "big-endian": dictionary.replace("<", ">"),
        "dates": f"{{'descr': '<M8[ns]', 'fortran_order': False, {shape}",
        "no type": f"{{'descr': 'nonsense', 'fortran_order': False, {shape}",
        "nested": "(" * 5000,
        "code": "__import__('os').system('true')",
        "half a text": "{'descr': '",
        "indented": "  if:\n    x\n  y",
        "long number": dictionary.replace(shape, f"'shape': ({'9' * 5000}, 1)}}"),
    }
    for name, text in others.items():
        header = struct.pack("<H", len(text) + 1) + text.encode() + b"\n"
        yield f"header of {name}", b"\x93NUMPY\x01\x00" + header + rows
    yield "version 9", whole[:6] + b"\x09" + whole[7:]
    yield "header beyond the file", whole[:8] + b"\xff\xff" + whole[10:]
    yield "trailing bytes", whole + bytes(8)
    yield "without the last byte", whole[:-1]
    yield "without a row", whole[:end]


def cells(whole: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Mutate the numbers of an array."""
    array = np.load(io.BytesIO(whole))
    for _ in range(40):
        other, row = array.copy(), draw.randrange(len(array))
        if array.dtype.names:
            name = draw.choice(array.dtype.names)
            most = np.iinfo(array.dtype[name]).max
            value = draw.choice([0, 1, most, most // 2, draw.randrange(100_000)])
            other[row, draw.randrange(array.shape[1])][name] = value
        elif array.size:
            name, value = "label", draw.choice([-128, 127, -2, 99, 2, 1e300 if array.dtype.kind == "f" else 50])
            other[row, draw.randrange(array.shape[1])] = value
        else:
            continue
        buffer = io.BytesIO()
        np.save(buffer, other)
        yield f"{name} of row {row} = {value}", buffer.getvalue()
    others = {"rows swapped": array[::-1].copy(), "a row less": array[1:], "rows twice": np.concatenate([array, array])}
    for name, other in others.items():
        buffer = io.BytesIO()
        np.save(buffer, other)
        yield name, buffer.getvalue()


def flips(whole: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Mutate any file: bits, cuts, blocks of zeros and of noise."""
    for _ in range(60):
        byte, length = draw.randrange(len(whole)), draw.choice([1, 1, 1, 16, 512])
        new = draw.choice([draw.randbytes(length), bytes(length), b"\xff" * length])
        yield f"{length} bytes from {new[:1]!r} at {byte}", (whole[:byte] + new + whole[byte + length :])[: len(whole)]
    for _ in range(10):
        byte = draw.randrange(len(whole))
        yield f"cut at {byte}", whole[:byte]
        block = byte // 512 * 512
        yield f"block at {block} left out", whole[:block] + whole[block + 512 :]


def mutations(folder: Path, seed: int) -> Iterator[tuple[str, str, bytes, bool]]:
    """A sound folder's file, what is changed in it, its new content, and whether the manifest is made to fit it."""
    draw = random.Random(seed)
    for name, content in manifests(json.loads((folder / MANIFEST_NAME).read_text())):
        yield MANIFEST_NAME, name, content, False
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        if path.suffix == ".npy":
            for name, content in (*headers(whole), *cells(whole, draw)):
                yield path.name, name, content, True
        if path.name != MANIFEST_NAME:
            for name, content in flips(whole, draw):
                yield path.name, name, content, True
                yield path.name, f"{name}, unsigned", content, False


def read(folder: Path) -> tuple[list[Any], list[str]]:
    """All that training sees of a folder: every input and target of it, and what it says of its bad samples."""
    manifest = read_manifest(folder)
    tables = verify_shards(folder, manifest, checksum=True)
    manifest.split("train")
    check_trainable(folder, manifest, None, tables["train"])
    found: list[Any] = []
    said = []
    for split in ("train", "test"):
        reader = SplitReader(data_folder(folder), split, manifest.tasks)
        sample_ids = np.arange(manifest.num_samples(split))
        buffers = reader.buffers(len(sample_ids))
        bad = reader.read_into(buffers, sample_ids).bad
        found += [*buffers, *reader.targets(sample_ids, buffers, bad).values()]
        found.append(to_input(torch.from_numpy(buffers[0]), manifest.input, "cpu").numpy())
        said += [sample.message for sample in bad]
        reader.close()
    return found, said


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")


NUM_CASES = 250

FOLDERS = {
    "images": lambda folder: write_tiny(folder, train=8, test=3, image=spec("jpg", height=8, width=8, channels=3)),
    "everything": lambda folder: write_rich(folder, train=8, test=3),
    "table": lambda folder: write_table(folder, train=8, test=3),
}


def outcome(sound: Path, place: Path, name: str, content: bytes, *, signed: bool) -> tuple[list[Any], list[str]] | str:
    """What a folder with one other file gives: its samples, or the sentence that refuses it."""
    shutil.copytree(sound, place)
    (place / name).write_bytes(content)
    try:
        if signed:
            sign(place)
        return read(place)
    except UserError as error:
        return str(error)
    finally:
        shutil.rmtree(place)


def is_another(name: str, what: str) -> bool:
    """Whether it is a manifest of another mean or standard deviation, which are anybody's to choose."""
    return name == MANIFEST_NAME and ("'mean'" in what or "'std'" in what)


@pytest.mark.long
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_changed_folder_gives_the_same_samples_or_is_refused(kind: str, tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    FOLDERS[kind](sound)
    expected, nothing = read(sound)
    assert not nothing
    cases = list(mutations(sound, seed=0))
    random.Random(0).shuffle(cases)
    outcomes = {"refused": 0, "the same": 0, "bad samples": 0}
    for name, what, content, signed in cases[:NUM_CASES]:
        found = outcome(sound, tmp_path / "changed", name, content, signed=signed)
        if isinstance(found, str):
            # It says where: the folder, which begins the path of each file in it, or the name of the data.
            assert str(tmp_path) in found or found.startswith("Data "), (what, found)
            assert "\x1b" not in found, what
            outcomes["refused"] += 1
        elif found[1]:
            outcomes["bad samples"] += 1
        elif is_another(name, what):
            assert all(np.nan_to_num(np.abs(values)).max() <= max(255, MOST_STDS) for values in found[0]), (name, what)
        else:
            assert all(map(_equal, found[0], expected)), (name, what)
            outcomes["the same"] += 1
    assert min(outcomes["refused"], outcomes["the same"]) > 0
