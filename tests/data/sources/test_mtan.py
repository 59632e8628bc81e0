"""Miniatures of the preprocessed NYUv2 and Cityscapes in their exact layout."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.loaders import eval_loader
from tests.support.raw_mtan import H, W, scene, write_raw
from trainer.cli import main
from trainer.data.format.specs import UNLABELLED
from trainer.data.sources.mtan import LAYOUTS, write_mtan
from trainer.errors import UserError


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_the_miniature_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    root, data = write_raw(name, tmp_path / "raw", {"train": 11, "val": 2}), tmp_path / "data"
    assert main(["data", name, "--root", str(root), "--out", str(data)]) == 0
    tasks = ["semantic", *LAYOUTS[name].values]
    loader = eval_loader(data, split="train", tasks=tasks, batch_size=11)
    (batch,) = loader
    loader.close()
    for place in range(11):  # 10.npy comes after 9.npy.
        expected = scene(name, place)
        assert np.array_equal(batch.inputs[place], np.rint(255 * expected["image"]))
        labels_HW = expected[LAYOUTS[name].labels]
        assert (labels_HW == -1).any()
        assert np.array_equal(batch.targets["semantic"][place], np.where(labels_HW < 0, UNLABELLED, labels_HW))
        for task in LAYOUTS[name].values:
            found_HWC = batch.targets[task][place].numpy()
            assert np.isnan(found_HWC[0]).all()  # The first row has no label.
            np.testing.assert_allclose(found_HWC[1:], expected[task][1:], atol=1e-3)
    assert batch.inputs.shape == (11, H, W, 3)


def test_missing_and_mistaken_files_are_named(tmp_path: Path) -> None:
    root = write_raw("nyuv2", tmp_path / "raw", {"train": 2, "val": 1})
    with pytest.raises(UserError, match=r"has no image/\*.npy.\nPoint --root"):
        write_mtan("nyuv2", tmp_path, tmp_path / "data")
    with pytest.raises(UserError, match=r"label_7: 2 files of 2 are missing, such as 0.npy"):
        write_mtan("cityscapes2", root, tmp_path / "data")
    for folder, wrong, said in (
        ("label", np.full((H, W), 13), r"label/0.npy: expected the classes 0 to 12, and -1 for none, found \[13\]"),
        ("image", np.full((H, W, 3), 255.0), "image/0.npy: expected colours from 0 to 1, found 255 to 255"),
        ("image", np.full((H, W, 3), np.nan), "image/0.npy: expected colours from 0 to 1"),
        ("depth", np.ones((H, W)), r"depth/0.npy: expected numbers of shape \(H, W, 1\), found float64 of shape"),
    ):
        path = root / "train" / folder / "0.npy"
        right = path.read_bytes()
        np.save(path, wrong)
        with pytest.raises(UserError, match=said):
            write_mtan("nyuv2", root, tmp_path / "data")
        path.write_bytes(right[:-1])
        with pytest.raises(UserError, match=r"0.npy is no .npy file of numbers .*Fetch it again"):
            write_mtan("nyuv2", root, tmp_path / "data")
        path.write_bytes(right)
    assert not (tmp_path / "data" / "manifest.json").exists()
