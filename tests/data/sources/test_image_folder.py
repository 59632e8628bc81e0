"""Images with a CSV file of their labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.loaders import eval_loader
from trainer.cli import main
from trainer.data.format.decode import encode
from trainer.data.format.manifest import read_manifest
from trainer.data.format.specs import ClassificationSpec, ImageSpec, RegressionSpec
from trainer.data.format.verify import verify_shards
from trainer.data.sources.image_folder import write_image_folder
from trainer.data.sources.tables.options import Columns, SplitBy
from trainer.errors import UserError

ROWS = ("red/a.png,0.5,cat,train", "b.png,1.5,dog,train", "c.png,,cat,train", "d.png,7.25,,test")


def pixels(number: int, height: int = 6, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four pictures and labels.csv."""
    images = tmp_path / "images"
    (images / "red").mkdir(parents=True)
    for number, row in enumerate(ROWS):
        (images / row.partition(",")[0]).write_bytes(encode(pixels(number), "png"))
    (tmp_path / "labels.csv").write_text("file,age,kind,part\n" + "\n".join(ROWS))
    return tmp_path


def write(raw: Path, **options):
    return write_image_folder(
        raw / "images", raw / "labels.csv", raw / "data", Columns(**{"split": SplitBy("part")} | options)
    )


def test_images_and_labels_as_they_are(raw: Path) -> None:
    manifest = write(raw, units={"age": "years"})
    verify_shards(raw / "data", manifest, checksum=True)
    shown = np.stack([pixels(number) for number in range(3)]) / 255
    assert manifest.input == ImageSpec(
        height=6,
        width=8,
        channels=3,
        encoding="png",
        mean=tuple(shown.mean((0, 1, 2)).round(6).tolist()),
        std=tuple(shown.std((0, 1, 2)).round(6).tolist()),
    )
    assert manifest.tasks == (
        RegressionSpec(name="age", unit="years", mean=1.0, std=0.5),
        ClassificationSpec(name="kind", classes=("cat", "dog")),
    )
    loader = eval_loader(raw / "data", split="train", tasks=["age", "kind"], batch_size=3)
    (batch,) = loader
    loader.close()
    assert np.array_equal(batch.inputs, np.stack([pixels(number) for number in range(3)]))
    np.testing.assert_allclose(batch.targets["age"], [-1, 1, np.nan])
    assert batch.targets["kind"].tolist() == [0, 1, 0]


def test_the_command_with_a_size_and_some_targets(raw: Path) -> None:
    (raw / "images" / "b.png").write_bytes(encode(pixels(1, 12, 5), "png"))
    grey = encode(pixels(2, channels=1), "png")
    (raw / "images" / "c.png").write_bytes(grey)
    command = ["data", "folder", "--images", raw / "images", "--csv", raw / "labels.csv", "--split", "part"]
    assert main([*map(str, command), "--out", str(raw / "data"), "--size", "4x10", "--targets", "k*"]) == 0
    manifest = read_manifest(raw / "data")
    assert isinstance(manifest.input, ImageSpec)
    assert (manifest.input.shape, manifest.input.stored_sizes) == ((4, 10, 3), "any")
    assert [task.name for task in manifest.tasks] == ["kind"]
    loader = eval_loader(raw / "data", split="train", tasks=["kind"], batch_size=3)
    (batch,) = loader
    loader.close()
    assert batch.inputs.shape == (3, 4, 10, 3)


def test_what_does_not_fit_is_named(raw: Path) -> None:
    def refusal(**options) -> str:
        with pytest.raises(UserError) as error:
            write(raw, **options)
        return str(error.value)

    csv, images = raw / "labels.csv", raw / "images"
    (images / "b.png").write_bytes(encode(pixels(1, 9, 8), "png"))
    assert "images of 2 sizes, height x width: 6 x 8 (red/a.png), 9 x 8 (b.png)" in refusal()
    (images / "b.png").write_bytes(b"<html>")
    assert f"labels.csv:3: {images / 'b.png'}: expected a JPEG or PNG, found HTML, SVG or XML; convert" in refusal()
    (images / "b.png").write_bytes(encode(pixels(1), "jpg")[:200])
    assert f"labels.csv:3: {images / 'b.png'}: the JPEG is damaged" in refusal()
    for format, mode, said in (
        ("WEBP", "RGB", "found a WebP image; convert it"),
        ("GIF", "RGB", "found a GIF; convert it"),
        ("TIFF", "RGB", "found a TIFF image; convert it"),
        ("JPEG", "CMYK", "expected a grey or RGB JPEG, found CMYK"),
    ):
        Image.fromarray(pixels(1)).convert(mode).save(images / "b.png", format)
        assert said in refusal()
    (images / "b.png").write_bytes(b"")
    assert "expected a JPEG or PNG, found an empty file" in refusal()
    (images / "b.png").unlink()
    assert "labels.csv:3: image 'b.png' is not in " in refusal()
    csv.write_text(csv.read_text().replace("b.png", "b.webp"))
    assert "labels.csv:3: expected the name of a JPEG or PNG file" in refusal()
    assert "has no column 'colour'" in refusal(targets=["colour"])
    csv.write_text("file,part\na.png,train\n")
    assert "labels.csv has no column to predict: its columns are file, part" in refusal()


def test_files_that_are_named_twice_are_counted(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (raw / "labels.csv").open("a") as file:
        file.write("\nb.png,2.5,cat,train\nb.png,3.5,cat,train\n")
    assert write(raw).num_samples("train") == 5
    assert "2 rows name a file that a row above names, too" in capsys.readouterr().out


def test_pictures_of_one_colour(raw: Path) -> None:
    for row in ROWS:
        (raw / "images" / row.partition(",")[0]).write_bytes(encode(np.full((6, 8, 1), 7, np.uint8), "png"))
    with pytest.raises(UserError, match="all have one single colour"):
        write(raw)
