"""A miniature of Cityscapes in its exact layout, against loops over its pixels."""

import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.loaders import eval_loader
from tests.support.raw_cityscapes import H, W, scene, write_raw
from trainer.data.format.specs import UNLABELLED, DenseRegressionSpec, ImageSpec, SegmentationSpec
from trainer.data.format.verify import verify_shards
from trainer.data.reading.batch import Batch
from trainer.data.sources.cityscapes import PACKAGES, class_numbers, disparities, to_centres, write_cityscapes
from trainer.errors import UserError

FRAMES = {"train": ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019"]}
FRAMES["val"] = ["lindau/lindau_000000_000019"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every frame's four files."""
    return write_raw(tmp_path / "cityscapes", FRAMES)


def read(folder: Path, split: str) -> Batch:
    loader = eval_loader(folder, split=split, tasks=["semantic", "instance", "disparity"], batch_size=3)
    (batch,) = loader
    loader.close()
    return batch


def test_the_miniature_becomes_three_tasks(root: Path, tmp_path: Path) -> None:
    manifest = write_cityscapes(root, tmp_path / "data", size=(H, W))
    verify_shards(tmp_path / "data", manifest, checksum=True)
    assert {split: manifest.num_samples(split) for split in manifest.splits} == {"train": 3, "test": 1}
    assert isinstance(manifest.input, ImageSpec)
    semantic, instance, disparity = manifest.tasks
    assert isinstance(semantic, SegmentationSpec)
    assert isinstance(instance, DenseRegressionSpec)
    assert isinstance(disparity, DenseRegressionSpec)
    assert (len(semantic.classes), instance.unit, instance.mean, disparity.mean) == (19, "px", 0.0, 0.0)
    ways = np.concatenate([(found := to_centres(scene(s)["instances"]))[~np.isnan(found)] for s in range(3)])
    assert instance.std == pytest.approx(math.sqrt((ways**2).mean()), rel=1e-5)
    known = np.concatenate([(found := scene(s)["disparity"])[found > 0] for s in range(3)])
    assert disparity.std == pytest.approx(math.sqrt((((known - 1.0) / 256) ** 2).mean()), rel=1e-5)
    batch = read(tmp_path / "data", "train")
    for seed in range(3):
        expected = scene(seed)
        assert np.array_equal(batch.targets["semantic"][seed], class_numbers(expected["labels"]))
        shown_HW2 = batch.targets["instance"][seed].numpy() * instance.std
        np.testing.assert_allclose(shown_HW2, to_centres(expected["instances"]), atol=2e-2)
        shown_HW1 = batch.targets["disparity"][seed].numpy() * disparity.std
        np.testing.assert_allclose(shown_HW1[..., 0], disparities(expected["disparity"]), rtol=1e-3, atol=1e-3)
        off = np.abs(batch.inputs[seed].numpy().astype(int) - expected["image"].astype(int))
        assert off.mean() < 6, "red, green and blue in this order, but for JPEG's loss"


def test_another_size_keeps_ids_whole_and_pixels_those_of_the_original(root: Path, tmp_path: Path) -> None:
    manifest = write_cityscapes(root, tmp_path / "data", size=(H // 2, W // 4))
    batch = read(tmp_path / "data", "test")
    assert batch.inputs.shape == (3, H // 2, W // 4, 3)
    found = set(np.unique(batch.targets["semantic"][0]).tolist())
    assert found == {0, 10, 13, UNLABELLED}, "road, sky and car, no mixture of their ids"
    instance = manifest.tasks[1]
    assert isinstance(instance, DenseRegressionSpec)
    shown_HW2 = batch.targets["instance"][0].numpy() * instance.std
    # Of this half of the rows and quarter of the columns each pixel stands for 2 x 4 of the original's.
    rows, columns = np.meshgrid(np.arange(1, H, 2), np.arange(2, W, 4), indexing="ij")
    expected_HW2 = to_centres(scene(3)["instances"])[rows, columns]
    np.testing.assert_allclose(shown_HW2, expected_HW2, atol=2)
    assert np.nanmax(np.abs(shown_HW2[..., 1])) == pytest.approx(4, abs=2)


def test_classes_are_the_19_that_are_evaluated() -> None:
    ids = np.arange(256, dtype=np.uint8)[None]
    found = class_numbers(ids)[0]
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert found[evaluated].tolist() == list(range(19))
    assert set(found[np.setdiff1d(ids, evaluated)].tolist()) == {UNLABELLED}


def test_the_way_to_the_centre_of_each_instance() -> None:
    ids_HW = scene(3)["instances"]
    ways_HW2 = to_centres(ids_HW)
    for row, column in np.ndindex(ids_HW.shape):
        if not 26_000 <= ids_HW[row, column] < 27_000:
            assert np.isnan(ways_HW2[row, column]).all()
            continue
        rows, columns = np.nonzero(ids_HW == ids_HW[row, column])
        expected = rows.mean() - row, columns.mean() - column
        np.testing.assert_allclose(ways_HW2[row, column], expected, atol=1e-5)
    assert (~np.isnan(ways_HW2)).sum() == 2 * 80
    assert (ids_HW == 29_000).sum() == 24, "a caravan is no class that is evaluated"


def test_disparity_zero_was_not_measured() -> None:
    np.testing.assert_allclose(disparities(np.array([[0, 1, 257, 65535]], np.uint16)), [[np.nan, 0, 1, 65534 / 256]])


@pytest.mark.parametrize(
    ("gone", "tasks"), [("disparity", ["semantic", "instance"]), ("gtFine", ["disparity"])], ids=["disparity", "gtFine"]
)
def test_a_package_may_be_absent(
    root: Path, tmp_path: Path, gone: str, tasks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_cityscapes(root, tmp_path / "whole", size=(H, W))
    shutil.rmtree(root / gone)
    manifest = write_cityscapes(root, tmp_path / "data", size=(H, W))
    assert list(manifest.tasks) == [task for task in whole.tasks if task.name in tasks]
    verify_shards(tmp_path / "data", manifest, checksum=True)
    assert f"train: without the tasks of {gone}" in capsys.readouterr().out
    shutil.rmtree(root / (set(PACKAGES) - {gone}).pop())
    with pytest.raises(UserError, match="neither of gtFine and disparity"):
        write_cityscapes(root, tmp_path / "none", size=(H, W))


def test_missing_and_mistaken_files_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no leftImg8bit/train/CITY/\*_leftImg8bit.png.\nPoint --root"):
        write_cityscapes(tmp_path, tmp_path / "data")
    disparity = root / "disparity/val/lindau/lindau_000000_000019_disparity.png"
    whole = disparity.read_bytes()
    disparity.unlink()
    with pytest.raises(
        UserError, match=r"1 files that belong to the images of val are missing, such as:\n.*_disparity.png"
    ):
        write_cityscapes(root, tmp_path / "data")
    disparity.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"_disparity.png: expected an image of uint16, found"):
        write_cityscapes(root, tmp_path / "data", size=(H, W))
    labels = root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    assert cv2.imwrite(str(labels), scene(0)["instances"])
    with pytest.raises(UserError, match=r"labelIds.png: expected an image of uint8, found uint16"):
        write_cityscapes(root, tmp_path / "data", size=(H, W))
