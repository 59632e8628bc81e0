"""CelebA as it comes: what is written, and what is refused. One file, as all tests cut or damage one small raw copy."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.loaders import eval_loader
from tests.support.raw_celeba import NAMES, SAMPLES, arrange, write_raw
from trainer.cli import main
from trainer.data.format.manifest import read_manifest
from trainer.data.format.verify import verify_shards
from trainer.data.sources.celeba import convert as celeba
from trainer.data.sources.celeba.annotations import ATTRIBUTES
from trainer.data.sources.celeba.convert import write_celeba
from trainer.data.sources.synthetic.generate import attributes, split_codes
from trainer.errors import UserError

LAYOUTS = (
    "flat",
    "official",
    "official, packed",
    "torchvision",
    "torchvision, packed",
    "kaggle",
    "kaggle, packed",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("original") / "raw")


@pytest.fixture(scope="module")
def shards(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "celeba"
    write_celeba(original, out)
    return out


@pytest.fixture
def raw(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "raw")


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, (N, H, W, C) and (N, T)."""
    loader = eval_loader(folder, split=split, tasks=ATTRIBUTES, batch_size=read_manifest(folder).num_samples(split))
    (batch,) = loader
    loader.close()
    return batch.inputs.numpy(), np.stack([batch.targets[name].numpy() for name in ATTRIBUTES], axis=1)


# What is written


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_shards(layout: str, raw: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = write_celeba(arrange(raw, layout), out)
    verify_shards(out, manifest, checksum=True)
    assert {path.name for path in out.iterdir()} == {path.name for path in shards.iterdir()}
    for path in out.iterdir():
        if path.name != "manifest.json":  # which names the text files
            assert path.read_bytes() == (shards / path.name).read_bytes(), path.name


def test_the_splits_and_labels_are_those_of_the_text_files(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert [(task.name, task.classes) for task in manifest.tasks] == [(name, ("no", "yes")) for name in ATTRIBUTES]
    codes = split_codes(SAMPLES)
    assert {split: manifest.num_samples(split) for split in manifest.splits} == {
        split: codes.count(code) for code, split in enumerate(("train", "val", "test"))
    }
    found_NT = np.concatenate([read_split(shards, split)[1] for split in ("train", "val", "test")])
    assert np.array_equal(found_NT, attributes(0, np.arange(SAMPLES)))


def test_resized_images_are_close_to_pillows_antialiased_ones(original: Path, shards: Path) -> None:
    images_NHWC, _ = read_split(shards, "train")
    for name, image_HWC in zip(NAMES, images_NHWC, strict=False):
        picture = Image.open(original / "img_align_celeba" / name)
        theirs = np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).astype(int)
        assert np.abs(theirs - image_HWC).mean() < 1.5


def test_jpegs_are_kept_byte_for_byte_and_resized_when_read(original: Path, shards: Path, tmp_path: Path) -> None:
    write_celeba(original, tmp_path / "out", size=48, store="jpeg")
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.input.height, manifest.input.stored_sizes) == (48, "any")
    tar = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert all((original / "img_align_celeba" / name).read_bytes() in tar for name in NAMES[:9])
    resized, kept = read_split(shards, "train")[0], read_split(tmp_path / "out", "train")[0]
    assert kept.shape[1:] == (48, 48, 3)
    assert abs(resized.mean() - kept.mean()) < 1


@pytest.mark.parametrize("store", ["resized", "jpeg"])
def test_mean_and_std_are_those_of_the_train_images(original: Path, tmp_path: Path, store: str) -> None:
    manifest = write_celeba(original, tmp_path / "out", store=store)  # type: ignore[arg-type]
    pixels = read_split(tmp_path / "out", "train")[0] / 255
    assert manifest.input.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
    assert manifest.input.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)


def test_a_part_of_celeba_is_taken_with_a_warning(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_celeba(original, tmp_path / "out")
    assert "not the whole CelebA, found {'train': 10, 'val': 1, 'test': 1}" in caplog.text


def test_an_interrupted_conversion_is_no_data_and_starts_afresh(
    original: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, reads = tmp_path / "out", []

    def interrupted(folder: Path) -> tuple[set[str], Callable[[str], bytes]]:
        names, read = list_images(folder)

        def load(name: str) -> bytes:
            reads.append(name)
            if len(reads) > SAMPLES + 10 + 5:  # checked, measured, and some of them written
                raise KeyboardInterrupt
            return read(name)

        return names, load

    list_images = celeba.list_images
    with monkeypatch.context() as patch:
        patch.setattr(celeba, "list_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_celeba(original, out)
    with pytest.raises(UserError, match="contains an unfinished conversion"):
        read_manifest(out)
    write_celeba(original, out)
    assert (out / "manifest.json").read_bytes() == (shards / "manifest.json").read_bytes()


# What is refused


def test_parts_that_do_not_fit_each_other_are_all_named_at_once(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = raw / "img_align_celeba"
    (images / NAMES[0]).unlink()
    (images / NAMES[3]).rename(images / "extra.jpg")
    jpeg = (images / NAMES[1]).read_bytes()
    damage = {1: b"", 2: b"<html>", 4: jpeg[:-500], 5: png(178, 218), 6: grey_jpeg(178, 218), 7: rgb_jpeg(100, 120)}
    for number, content in damage.items():
        (images / NAMES[number]).write_bytes(content)
    with pytest.raises(UserError) as error:
        write_celeba(raw, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert lines[:4] == [
        f"{raw} is not complete:",
        "  2 images that are missing: 000001.jpg, 000004.jpg",
        "  1 images without attributes: extra.jpg",
        "  1 images without a split: extra.jpg",
    ]
    assert lines[4].startswith("  5 damaged images: 000002.jpg (expected a JPEG, found an empty file")
    assert "000003.jpg (expected a JPEG, found HTML, SVG or XML" in lines[4]
    assert "000005.jpg (it is truncated: it has no end marker), 000006.jpg (expected a JPEG, found a PNG" in lines[4]
    assert "000007.jpg (expected height x width x channels (218, 178, 3), found (218, 178, 1))" in lines[4]
    assert lines[5] == "Complete it, or leave these out with --skip-missing."
    assert not (tmp_path / "out").exists()

    manifest = write_celeba(raw, tmp_path / "out", skip_missing=True)
    assert manifest.made_by["left_out"] == {
        "images that are missing": 2,
        "images without attributes": 1,
        "images without a split": 1,
        "damaged images": 5,
    }
    assert sum(manifest.num_samples(split) for split in manifest.splits) == SAMPLES - 7
    assert "Left out: 5 damaged images: 000002.jpg" in caplog.text
    assert "1 images are not 178 x 218, such as 000008.jpg, of 100 x 120" in caplog.text


def test_a_part_of_celeba_with_the_first_line_of_the_whole(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = raw / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace(f"{SAMPLES}\n", "202599\n", 1))
    with pytest.raises(UserError, match="says 202599 images, found 12 rows"):
        write_celeba(raw, tmp_path / "out")
    manifest = write_celeba(raw, tmp_path / "out", skip_missing=True)
    assert sum(manifest.num_samples(split) for split in manifest.splits) == SAMPLES
    assert "says 202599 images, found 12 rows, which are used" in caplog.text


def test_images_of_another_size_are_resized_too(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "img_align_celeba").iterdir():
        Image.open(path).resize((96, 128)).save(path, quality=95)
    write_celeba(raw, tmp_path / "out", size=16)
    images, _ = read_split(tmp_path / "out", "train")
    name = NAMES[0]
    expected = Image.open(raw / "img_align_celeba" / name).resize((16, 16), Image.Resampling.BOX)
    assert np.abs(images[0].astype(int) - np.asarray(expected).astype(int)).mean() < 2


def test_a_picture_that_only_decoding_shows_to_be_damaged(raw: Path, tmp_path: Path) -> None:
    path = raw / "img_align_celeba" / NAMES[2]
    jpeg = bytearray(path.read_bytes())
    jpeg[-1500:-2] = bytes(1498)
    path.write_bytes(jpeg)
    with pytest.raises(UserError, match=r"000003.jpg is damaged: .*\nFetch it again, or delete it and add --skip"):
        write_celeba(raw, tmp_path / "out")
    path.unlink()
    assert write_celeba(raw, tmp_path / "out", skip_missing=True).num_samples("train") == 9


def test_a_member_of_a_zip_that_would_unpack_to_much_is_not_unpacked(raw: Path, tmp_path: Path) -> None:
    arrange(raw, "official, packed")
    path = raw / "Img" / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as old:
        members = {member.filename: old.read(member) for member in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, bytes(2 << 20) if name.endswith("000005.jpg") else content)
    with pytest.raises(UserError, match=r"1 damaged images: 000005.jpg \(unpacks to 2,097,152 bytes\)"):
        write_celeba(raw, tmp_path / "out")


def test_a_folder_for_a_text_file(raw: Path, tmp_path: Path) -> None:
    (raw / "list_eval_partition.txt").unlink()
    (raw / "list_eval_partition.txt").mkdir()
    with pytest.raises(UserError, match=r"list_eval_partition.txt is not a regular file"):
        write_celeba(raw, tmp_path / "out")


def test_faces_of_one_colour(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "img_align_celeba").iterdir():
        path.write_bytes(rgb_jpeg(178, 218))
    with pytest.raises(UserError, match="all have one single colour"):
        write_celeba(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_that_is_none(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "img_align_celeba")
    (raw / "img_align_celeba.zip").write_text("<html>Quota exceeded</html>")
    with pytest.raises(UserError, match=r"img_align_celeba.zip cannot be read as a zip: "):
        write_celeba(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("gone", "looked_for"),
    [
        ("list_attr_celeba.txt", "list_attr_celeba.txt, list_attr_celeba.csv, Anno/list_attr_celeba.txt"),
        ("list_eval_partition.txt", "list_eval_partition.txt, list_eval_partition.csv, Eval/list_eval_partition.txt"),
        ("img_align_celeba", "img_align_celeba/img_align_celeba, img_align_celeba, Img/img_align_celeba/img_align"),
    ],
)
def test_a_part_that_is_not_there(raw: Path, tmp_path: Path, gone: str, looked_for: str) -> None:
    (raw / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as error:
        write_celeba(raw, tmp_path / "out")
    assert str(error.value).startswith(f"{raw} has none of {looked_for}")
    assert "\nPoint --root at CelebA as it was downloaded: the folder with list_attr_celeba.txt" in str(error.value)


def test_a_split_that_would_be_empty(raw: Path, tmp_path: Path) -> None:
    (raw / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in NAMES))
    with pytest.raises(UserError, match=r"expected images of the train and the test split, found {'train': 12, 'val'"):
        write_celeba(raw, tmp_path / "out")
    (raw / "list_eval_partition.txt").write_text("".join(f"{name} {2 * (name > '000006')}\n" for name in NAMES))
    assert list(write_celeba(raw, tmp_path / "out").splits) == ["train", "test"]


def test_the_command(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["data", "celeba", "--out", str(out), "--size", "32", "--jpeg"]
    assert main([*command, "--root", str(tmp_path / "nowhere")]) == 2
    assert f"error: {tmp_path / 'nowhere'} has none of list_attr_celeba.txt" in capsys.readouterr().err
    for size in ("0", "8193", "x"):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--root", str(original), "--size", size])
        assert f"argument --size: expected a whole number from 1 to 8192, found '{size}'" in capsys.readouterr().err
    assert main([*command, "--root", str(original)]) == 0
    made_by = json.loads((out / "manifest.json").read_text())["made_by"]
    assert (made_by["size"], made_by["store"]) == (32, "jpeg")


def png(width: int, height: int) -> bytes:
    return saved(Image.new("RGB", (width, height)), "png")


def grey_jpeg(width: int, height: int) -> bytes:
    return saved(Image.new("L", (width, height)), "jpeg")


def rgb_jpeg(width: int, height: int) -> bytes:
    return saved(Image.new("RGB", (width, height)), "jpeg")


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()
