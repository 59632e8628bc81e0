"""A miniature of Cityscapes in its exact layout, against loops over its pixels."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data.format.members import UNLABELLED
from trainer.data.format.specs import DenseRegressionSpec, ImageSpec, SegmentationSpec
from trainer.data.format.verify import verify_shards
from trainer.data.reading.loader import Batch, EvalLoader
from trainer.data.sources.cityscapes import class_numbers, disparities, to_centres, write_cityscapes
from trainer.errors import UserError

H, W = 24, 48
FRAMES = {"train": ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019"]}
FRAMES["val"] = ["lindau/lindau_000000_000019"]


def scene(seed: int) -> dict[str, np.ndarray]:
    """Sky over road, two cars, a parked row of cars without instances, and the car that carries the camera."""
    labels_HW = np.full((H, W), 23, np.uint8)
    labels_HW[H // 2 :] = 7
    instances_HW = labels_HW.astype(np.uint16)
    for number, (row, column) in enumerate([(12, 4 + seed), (14, 30)]):
        labels_HW[row : row + 5, column : column + 8] = 26
        instances_HW[row : row + 5, column : column + 8] = 26_000 + number
    labels_HW[10:12, 20:28] = instances_HW[10:12, 20:28] = 26
    labels_HW[-3:] = instances_HW[-3:] = 1  # the ego vehicle
    rng = np.random.default_rng(seed)
    disparity_HW = rng.integers(1, 20_000, (H, W)).astype(np.uint16)
    disparity_HW[rng.random((H, W)) < 0.2] = 0
    image_HWC = np.repeat((labels_HW * 7)[..., None], 3, axis=2) + np.arange(3, dtype=np.uint8) * 9
    return {"image": image_HWC, "labels": labels_HW, "instances": instances_HW, "disparity": disparity_HW}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every frame's four files."""
    root = tmp_path / "cityscapes"
    seed = 0
    for split, frames in FRAMES.items():
        for frame in frames:
            found = scene(seed)
            seed += 1
            for name, key in (
                (f"leftImg8bit/{split}/{frame}_leftImg8bit.png", "image"),
                (f"gtFine/{split}/{frame}_gtFine_labelIds.png", "labels"),
                (f"gtFine/{split}/{frame}_gtFine_instanceIds.png", "instances"),
                (f"disparity/{split}/{frame}_disparity.png", "disparity"),
            ):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                pixels = found[key][..., ::-1] if key == "image" else found[key]
                assert cv2.imwrite(str(root / name), pixels)
    return root


def read(folder: Path, split: str) -> Batch:
    loader = EvalLoader(folder, split=split, tasks=["semantic", "instance", "disparity"], batch_size=3)
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
    assert (len(semantic.classes), instance.std, instance.mean, disparity.mean) == (19, 1.0, 0.0, 0.0)
    known = np.concatenate([(found := scene(s)["disparity"])[found > 0] for s in range(3)])
    assert disparity.std == pytest.approx(math.sqrt((((known - 1.0) / 256) ** 2).mean()), rel=1e-5)
    batch = read(tmp_path / "data", "train")
    for seed in range(3):
        expected = scene(seed)
        assert np.array_equal(batch.targets["semantic"][seed], class_numbers(expected["labels"]))
        np.testing.assert_allclose(batch.targets["instance"][seed], to_centres(expected["instances"]), atol=2e-2)
        shown_HW1 = batch.targets["disparity"][seed].numpy() * disparity.std
        np.testing.assert_allclose(shown_HW1[..., 0], disparities(expected["disparity"]), rtol=1e-3, atol=1e-3)
        off = np.abs(batch.inputs[seed].numpy().astype(int) - expected["image"].astype(int))
        assert off.mean() < 6, "red, green and blue in this order, but for JPEG's loss"


def test_another_size_keeps_ids_whole(root: Path, tmp_path: Path) -> None:
    write_cityscapes(root, tmp_path / "data", size=(H // 2, W // 2))
    batch = read(tmp_path / "data", "test")
    assert batch.inputs.shape == (3, H // 2, W // 2, 3)
    found = set(np.unique(batch.targets["semantic"][0]).tolist())
    assert found == {0, 10, 13, UNLABELLED}, "road, sky and car, no mixture of their ids"


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
        if ids_HW[row, column] < 1000:
            assert np.isnan(ways_HW2[row, column]).all()
            continue
        rows, columns = np.nonzero(ids_HW == ids_HW[row, column])
        expected = rows.mean() - row, columns.mean() - column
        np.testing.assert_allclose(ways_HW2[row, column], expected, atol=1e-5)
    assert (ids_HW >= 26_000).sum() == 80


def test_disparity_zero_was_not_measured() -> None:
    np.testing.assert_allclose(disparities(np.array([[0, 1, 257, 65535]], np.uint16)), [[np.nan, 0, 1, 65534 / 256]])


def test_missing_and_mistaken_files_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no leftImg8bit/train/CITY/\*_leftImg8bit.png.\nPoint --root"):
        write_cityscapes(tmp_path, tmp_path / "data")
    disparity = root / "disparity/val/lindau/lindau_000000_000019_disparity.png"
    whole = disparity.read_bytes()
    disparity.unlink()
    with pytest.raises(UserError, match=r"1 files are missing beside the images of val, such as:\n.*_disparity.png"):
        write_cityscapes(root, tmp_path / "data")
    disparity.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"_disparity.png: expected an image of uint16, found"):
        write_cityscapes(root, tmp_path / "data", size=(H, W))
    labels = root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    assert cv2.imwrite(str(labels), scene(0)["instances"])
    with pytest.raises(UserError, match=r"labelIds.png: expected an image of uint8, found uint16"):
        write_cityscapes(root, tmp_path / "data", size=(H, W))
