import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.idx import idx
from tests.support.loaders import eval_loader
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.verify import verify_shards
from trainer.data.sources.digits import load_originals, split_originals, write_digits
from trainer.data.sources.multimnist import write_multimnist
from trainer.data.sources.pairs import compose
from trainer.errors import UserError


def paper_composite(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The authors' loop, with Pillow's resize, which scipy.misc.imresize called."""
    canvas = np.zeros((36, 36), np.uint8)
    for row in range(36):
        for column in range(36):
            inside = [left[row, column]] if row < 28 and column < 28 else []
            inside += [right[row - 6, column - 6]] if 6 <= row < 34 and 6 <= column < 34 else []
            canvas[row, column] = max(inside, default=0)
    return np.asarray(Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST))


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = read_manifest(folder).num_samples(split)
    loader = eval_loader(folder, split=split, tasks=["left", "right"], batch_size=size)
    (batch,) = loader
    loader.close()
    return batch.inputs[:, :, :, 0].numpy(), batch.targets["left"].numpy(), batch.targets["right"].numpy()


def test_composites_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 4, 28, 28), np.uint8)
    expected = np.stack([paper_composite(*pair) for pair in zip(left, right, strict=True)])
    assert np.array_equal(compose(left, right), expected)


def check_statistics(folder: Path, manifest: Manifest) -> None:
    pixels = read_split(folder, "train")[0] / 255
    assert manifest.input.mean[0] == pytest.approx(pixels.mean(), abs=1e-6)
    assert manifest.input.std[0] == pytest.approx(pixels.std(), abs=1e-6)


# digits


def test_originals_are_cut_into_disjoint_parts() -> None:
    train, test = split_originals(1797, 0)
    assert sorted([*train, *test]) == list(range(1797))
    assert len(test) == 359
    assert set(test) != set(split_originals(1797, 1)[1])


@pytest.mark.long
def test_digit_pairs_come_from_the_originals_of_their_own_split(tmp_path: Path) -> None:
    manifest = write_digits(tmp_path, seed=5, train_samples=40, test_samples=20)
    verify_shards(tmp_path, manifest, checksum=True)
    check_statistics(tmp_path, manifest)
    originals, classes = load_originals()
    parts = dict(zip(("train", "test"), split_originals(len(originals), 5), strict=True))

    def can_be_made_of(part: str, image: np.ndarray, left: int, right: int) -> bool:
        lefts, rights = (parts[part][classes[parts[part]] == digit] for digit in (left, right))
        every = compose(originals[np.repeat(lefts, len(rights))], originals[np.tile(rights, len(lefts))])
        return bool((every == image).all(axis=(1, 2)).any())

    for split, other in (("train", "test"), ("test", "train")):
        for image, left, right in list(zip(*read_split(tmp_path, split), strict=True))[:4]:
            assert can_be_made_of(split, image, left, right)
            assert not can_be_made_of(other, image, left, right)


def test_digits_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second, other = (
        write_digits(tmp_path / name, seed=seed, train_samples=30, test_samples=10)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert first == second
    assert first.fingerprint("train") != other.fingerprint("train")


def test_digits_need_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found train 10 and test 0"):
        write_digits(tmp_path, train_samples=10, test_samples=0)


# MultiMNIST


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 12)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return folder


def test_every_mnist_image_is_once_the_left_digit(mnist: Path, tmp_path: Path) -> None:
    manifest = write_multimnist(mnist, tmp_path / "out", seed=3)
    verify_shards(tmp_path / "out", manifest, checksum=True)
    check_statistics(tmp_path / "out", manifest)
    for split, prefix, count in (("train", "train", 30), ("test", "t10k", 12)):
        content = gzip.decompress((mnist / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        originals = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
        images, lefts, rights = read_split(tmp_path / "out", split)
        assert lefts.tolist() == [i % 10 for i in range(count)]
        partners = []
        for i in range(count):
            every = compose(np.repeat(originals[i : i + 1], count, 0), originals)
            (partner,) = np.flatnonzero((every == images[i]).all(axis=(1, 2)))
            assert rights[i] == partner % 10
            partners.append(partner)
        assert len(set(partners)) > count // 2


def test_images_of_val_are_in_no_other_split(mnist: Path, tmp_path: Path) -> None:
    write_multimnist(mnist, tmp_path / "whole", seed=3)
    manifest = write_multimnist(mnist, tmp_path / "out", seed=3, val=0.3)
    assert manifest.num_samples("train") + manifest.num_samples("val") == 30
    assert manifest.num_samples("val") > 3
    assert np.array_equal(read_split(tmp_path / "out", "test")[0], read_split(tmp_path / "whole", "test")[0])
    content = gzip.decompress((mnist / "train-images-idx3-ubyte.gz").read_bytes())
    originals = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    used = {}
    for split in ("train", "val"):
        images = read_split(tmp_path / "out", split)[0]
        every = compose(np.repeat(originals, 30, 0), np.tile(originals, (30, 1, 1)))
        pairs = [divmod(int(np.flatnonzero((every == image).all(axis=(1, 2)))[0]), 30) for image in images]
        used[split] = {image for pair in pairs for image in pair}
    assert not used["train"] & used["val"]
    with pytest.raises(UserError, match="leaves train or val empty"):
        write_multimnist(mnist, tmp_path / "none", val=1e-9)


def test_more_pairs_give_each_train_image_other_right_digits(mnist: Path, tmp_path: Path) -> None:
    write_multimnist(mnist, tmp_path / "once", seed=3)
    manifest = write_multimnist(mnist, tmp_path / "out", seed=3, pairs_per_image=4)
    assert manifest.num_samples("train") == 120
    assert np.array_equal(read_split(tmp_path / "out", "test")[0], read_split(tmp_path / "once", "test")[0])
    images, lefts, rights = read_split(tmp_path / "out", "train")
    first_images, _, first_rights = read_split(tmp_path / "once", "train")
    assert np.array_equal(images[:30], first_images), "the first pairs are those of one pair an image"
    assert np.array_equal(rights[:30], first_rights)
    assert lefts.tolist() == [i % 10 for _ in range(4) for i in range(30)]
    assert len(np.unique(images, axis=0)) > 100, "hardly a pair comes twice"


def test_the_seed_decides_the_partners(mnist: Path, tmp_path: Path) -> None:
    first, second, other = (
        write_multimnist(mnist, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first.fingerprint("test") != other.fingerprint("test")


def test_files_that_are_not_the_original_mnist_are_taken_and_said_so(
    mnist: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = write_multimnist(mnist, tmp_path / "out")
    assert "not the original MNIST (train-images, train-labels, t10k-images, t10k-labels differ)" in caplog.text
    assert manifest.made_by["original_mnist"] is False


@pytest.mark.parametrize(
    ("what", "array", "message"),
    [
        ("labels-idx1-ubyte", np.zeros(29, np.uint8), "expected as many labels as images, found 29 and 30"),
        ("labels-idx1-ubyte", np.full(30, 11, np.uint8), r"expected labels from 0 to 9, found \[11\]"),
        ("images-idx3-ubyte", np.zeros((30, 20, 20), np.uint8), r"expected images of 28 x 28 pixels, found \(20, 20\)"),
    ],
)
def test_files_that_do_not_fit_each_other(
    mnist: Path, tmp_path: Path, what: str, array: np.ndarray, message: str
) -> None:
    (mnist / f"train-{what}").write_bytes(idx(array))
    with pytest.raises(UserError, match=message):
        write_multimnist(mnist, tmp_path / "out")
    assert not (tmp_path / "out").exists()
