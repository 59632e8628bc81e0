"""Damaged shards: a fault of their structure is refused before the first step, a bad sample keeps its slot."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support import tiny_data as tiny
from tests.support.loaders import eval_loader, train_loader
from trainer.data.format.decode import encode
from trainer.data.format.index import index_shard
from trainer.data.format.manifest import MANIFEST_NAME, FileSpec, Manifest, ShardSpec, SplitSpec, read_manifest
from trainer.data.format.specs import MISSING
from trainer.data.format.verify import verify_shards
from trainer.data.reading.bad_samples import Report
from trainer.data.reading.batch import Batch
from trainer.errors import UserError
from trainer.files import sha256

SHARD = "train-000000.tar"
"""Five samples: the header of sample k's labels at byte 2048 k, its image's at 2048 k + 1024; 20480 bytes together."""

GOOD = b'{"even": 1, "digit": 4}'


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def flipped(whole: bytes, byte: int) -> bytes:
    return whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :]


def claiming(whole: bytes, size: bytes) -> bytes:
    """With another size in the first header, and the checksum that fits."""
    header = bytearray(whole[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + whole[512:]


Damage = Callable[[bytes], bytes]

STRUCTURE: dict[str, tuple[Damage, str]] = {
    "flipped bit in a header": (
        lambda whole: flipped(whole, 2048),
        ": byte 2048: expected a tar header, found b'100000001.json\\x00\\x00'. Not a tar, or damaged.",
    ),
    "zero block": (
        lambda whole: whole[:2048] + bytes(1024) + whole[3072:],
        ": byte 2048: empty blocks that are not the archive's end. It is damaged.",
    ),
    "cut inside a member": (
        lambda whole: whole[:1600],
        ": member 000000000.npy should end at byte 1676, the file ends at 1600. It is cut short.",
    ),
    "cut between samples": (
        lambda whole: whole[:2048],
        ": byte 2048: the archive has no end marker. It is cut short.",
    ),
    "cut inside a sample": (
        lambda whole: whole[:1024],
        ": byte 1024: the archive has no end marker. It is cut short.",
    ),
    "no end marker": (
        lambda whole: whole[:10240],
        ": byte 10240: the archive has no end marker. It is cut short.",
    ),
    "no bytes": (lambda whole: b"", " is empty."),
    "web page": (
        lambda whole: b"<!DOCTYPE html><html><title>404</title>".ljust(len(whole)),
        ": byte 0: expected a tar header, found b'<!DOCTYPE html><'. Not a tar, or damaged.",
    ),
    "random bytes": (
        lambda whole: np.random.default_rng(0).bytes(len(whole)),
        f": byte 0: expected a tar header, found {np.random.default_rng(0).bytes(16)!r}. Not a tar, or damaged.",
    ),
    "empty tar": (lambda whole: tar(), " contains no sample."),
    "39 labels for 40 tasks, as a list": (
        lambda whole: tar(("a.json", json.dumps([1] * 39).encode()), ("a.npy", b"x")),
        ": sample 'a': its labels should be a JSON object, found b'[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, '.",
    ),
    "label that is no class": (
        lambda whole: tar(("a.json", b'{"even": 2}'), ("a.npy", b"x")),
        ": sample 'a': label of task 'even' should be null or a class number from 0 to 1, found 2.",
    ),
    "label of CelebA's -1": (
        lambda whole: tar(("a.json", b'{"even": -1}'), ("a.npy", b"x")),
        ": sample 'a': label of task 'even' should be null or a class number from 0 to 1, found -1.",
    ),
    "labels nested without end": (
        lambda whole: tar(("a.json", b"[" * 100_000), ("a.npy", b"x")),
        ": sample 'a': its labels are not JSON: maximum recursion depth exceeded",
    ),
    "key twice": (
        lambda whole: tar(*[(f"{key}.{end}", GOOD) for key in "aba" for end in ("json", "npy")]),
        ": key 'a' appears twice; a sample's members must be adjacent.",
    ),
    "member twice": (
        lambda whole: tar(("a.json", GOOD), ("a.npy", b"x"), ("a.npy", b"y")),
        ": member 'a.npy' appears twice.",
    ),
    "members apart": (
        lambda whole: tar(*[(f"{key}.{end}", GOOD) for end in ("json", "npy") for key in "ab"]),
        ": sample 'a' has members ['json'], expected ['json', 'npy'].",
    ),
    "dot in a key": (
        lambda whole: tar(("00.0004.json", GOOD), ("00.0004.npy", b"x")),
        ": sample '00' has members ['0004.json', '0004.npy'], expected ['json', 'npy'].",
    ),
    "compressed tar": (
        lambda whole: gzip.compress(whole, mtime=0),
        ": byte 0: expected a tar header, found b'\\x1f\\x8b",
    ),
    "compressed member": (
        lambda whole: tar(("a.json", GOOD), ("a.npy.gz", gzip.compress(bytes(1 << 20)))),
        ": sample 'a' has members ['json', 'npy.gz'], expected ['json', 'npy'].",
    ),
    "member of 8 GiB": (
        lambda whole: claiming(whole, b"77777777777\0"),
        ": byte 0: member '000000000.json' should have at most 268435456 bytes, found 8589934591 bytes.",
    ),
    "member of many TiB": (
        lambda whole: claiming(whole, b"\x80" + bytes(3) + b"\xff" * 8),
        ": byte 0: member '000000000.json' should have at most 268435456 bytes, found more than a tar can contain.",
    ),
    "member of less than nothing": (
        lambda whole: claiming(whole, b"-0000002000\0"),
        ": byte 0: member '000000000.json' should have at most 268435456 bytes, found more than a tar can contain.",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sound"
    tiny.write_tiny(folder, test=1)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """With links for files: a damaged one replaces its link."""
    shutil.copytree(sound, tmp_path / "data", copy_function=lambda source, target: Path(target).symlink_to(source))
    return tmp_path / "data"


def refusal(folder: Path, *, checksum: bool = True) -> str:
    """What is said before the first step, less the folder and what to type."""
    with pytest.raises(UserError) as error:
        verify_shards(folder, read_manifest(folder), checksum=checksum)
    said, remedy = str(error.value).split("\n")
    assert remedy.startswith(f"Copy {folder} again")
    return said.removeprefix(str(folder / SHARD))


@pytest.mark.long
@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_is_refused_with_the_byte_or_the_sample(name: str, folder: Path) -> None:
    damage, said = STRUCTURE[name]
    whole = (folder / SHARD).read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    (folder / SHARD).unlink()
    (folder / SHARD).write_bytes(damaged)
    with pytest.raises(UserError) as error:
        index_shard(folder / SHARD, number=0, members=["npy"], tasks=tiny.TASKS)
    found = str(error.value).removeprefix(str(folder / SHARD))
    assert found == said or (not said.endswith(".") and found.startswith(said))
    if len(damaged) == len(whole):
        assert refusal(folder).startswith(
            f": its content is not that of manifest.json: expected sha256 {sha256_of(folder)}, found "
        )
    else:
        assert refusal(folder, checksum=False) == f": expected 20480 bytes, as in manifest.json, found {len(damaged)}."


def sha256_of(folder: Path) -> str:
    return read_manifest(folder).splits["train"].shards[0].sha256


@pytest.mark.parametrize("what", ["missing", "directory", "dangling link"])
def test_a_shard_that_is_no_file(what: str, folder: Path) -> None:
    (folder / SHARD).unlink()
    if what == "directory":
        (folder / SHARD).mkdir()
    if what == "dangling link":
        (folder / SHARD).symlink_to("nowhere")
    with pytest.raises(UserError, match="is not a regular file" if what == "directory" else "No such file"):
        verify_shards(folder, read_manifest(folder), checksum=False)


IMAGE = tiny.spec("jpg", height=16, width=16, channels=3)
JPEG = encode(tiny.picture(0, IMAGE), "jpg")


def forged(jpeg: bytes) -> bytes:
    """With 60000 x 60000 pixels in its frame header."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + (60_000).to_bytes(2, "big") * 2 + jpeg[frame + 4 :]


def pillow_jpeg(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, "jpeg")
    return buffer.getvalue()


SAMPLES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "expected a JPEG, found an empty file"),
    "text": (b"File not found\n", "expected a JPEG, found b'File not'"),
    "truncated": (JPEG[: len(JPEG) // 2], ""),
    "60000 x 60000 pixels": (
        forged(JPEG),
        "expected height x width x channels (16, 16, 3), found (60000, 60000, 3)",
    ),
    "CMYK": (pillow_jpeg("CMYK"), "expected a grey or RGB JPEG, found "),
    "grey": (pillow_jpeg("L"), "expected height x width x channels (16, 16, 3), found (16, 16, 1)"),
    "PNG": (
        cv2.imencode(".png", tiny.picture(0, IMAGE))[1].tobytes(),
        "expected a JPEG, found a PNG",
    ),
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of other people's shards, indexed as they are: one sample of each kind above between two good ones."""
    folder = tmp_path_factory.mktemp("foreign #1?")
    images = [JPEG, *(data for data, _ in SAMPLES.values()), JPEG]
    members = []
    for number, image in enumerate(images):
        members += [(f"{number:02d}#?.jpg", image), (f"{number:02d}#?.json", GOOD)]
    (folder / SHARD).write_bytes(tar(*members))
    rows, labels, _, _ = index_shard(folder / SHARD, number=0, members=["jpg"], tasks=tiny.TASKS)
    np.save(folder / "train.index.npy", rows)
    np.save(folder / "train.labels.npy", labels)

    def described(name: str) -> dict[str, object]:
        return {"file": name, "bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}

    split = SplitSpec(
        shards=(ShardSpec(samples=len(images), **described(SHARD)),),
        index=FileSpec(**described("train.index.npy")),
        labels=FileSpec(**described("train.labels.npy")),
    )
    manifest = Manifest(name="foreign", made_by={}, input=IMAGE, tasks=tiny.TASKS, splits={"train": split})
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    verify_shards(folder, manifest, checksum=True)
    return folder


@pytest.fixture(scope="module")
def read(foreign: Path) -> tuple[Batch, Report]:
    """All of them as one batch, and what there is to tell of it."""
    count = len(SAMPLES) + 2
    with closing(train_loader(foreign, tasks=["even", "digit"], global_batch=count, seed=0)) as loader:
        return next(loader), loader.streams[0].bad_samples.report()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_that_cannot_be_decoded_keeps_its_slot_and_is_told(name: str, read: tuple[Batch, Report]) -> None:
    batch, report = read
    sample_id = 1 + list(SAMPLES).index(name)
    slot = batch.sample_ids_B.tolist().index(sample_id)
    assert not batch.inputs[slot].any()
    assert [target[slot].item() for target in batch.targets.values()] == [MISSING, MISSING]
    (line,) = [line for line in report.news if line.startswith(f"sample {sample_id} (")]
    assert f"{SHARD}, byte " in line
    assert f"): {SAMPLES[name][1]}" in line


def test_the_good_ones_beside_them_are_whole(read: tuple[Batch, Report]) -> None:
    batch, report = read
    assert report.total == {"decode": len(SAMPLES)}
    for sample_id in (0, 1 + len(SAMPLES)):
        slot = batch.sample_ids_B.tolist().index(sample_id)
        assert batch.inputs[slot].any()
        assert (batch.targets["even"][slot], batch.targets["digit"][slot]) == (1, 4)


def test_evaluation_refuses_them(foreign: Path) -> None:
    loader = eval_loader(foreign, split="train", tasks=["even"], batch_size=4)
    with closing(loader), pytest.raises(UserError, match=r"Evaluation needs every sample. Bad sample 1 \("):
        list(loader)
