"""Every kind of input and target, from its bytes in a shard to its slot in a batch."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset

from models import tasks
from tests.support import rich_data as rich
from tests.support.loaders import eval_loader, train_loader
from tests.support.rich_data import FEATURES, IMAGE, SIDE, TASKS, write_rich, write_table
from tests.support.tiny_data import picture
from trainer.data.format import specs
from trainer.data.format.decode import encode
from trainer.data.format.index import INDEX_DTYPE
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import MISSING, UNLABELLED, SegmentationSpec
from trainer.data.format.tables import load_index
from trainer.data.format.verify import verify_shards
from trainer.data.reading.batch import Batch
from trainer.data.reading.images import to_input
from trainer.errors import UserError

NAMES = [task.name for task in TASKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rich") / "data"
    write_rich(out)
    return out


def read(folder: Path, tasks: list[str], split: str = "train", batch_size: int = 12) -> Batch:
    loader = eval_loader(folder, split=split, tasks=tasks, batch_size=batch_size)
    (batch,) = loader
    loader.close()
    return batch


def check_slot(batch: Batch, slot: int, sample_id: int) -> None:
    """What the sample was made of."""
    assert np.array_equal(batch.inputs[slot], picture(sample_id, IMAGE))
    assert batch.targets["even"][slot] == 1 - sample_id % 2
    assert np.array_equal(batch.targets["parts"][slot], rich.parts(sample_id))
    depth_HWC = rich.depth(sample_id) if sample_id % 3 else np.full((SIDE, SIDE, 2), np.nan)
    np.testing.assert_allclose(batch.targets["depth"][slot], (depth_HWC - 1) / 4, rtol=1e-6)
    weight = math.nan if sample_id % 4 == 0 else (0.5 * sample_id - 10) / 5
    np.testing.assert_allclose(batch.targets["weight"][slot], weight, rtol=1e-6)


def check_blank(batch: Batch, slot: int) -> None:
    """Nothing to see, nothing to learn."""
    assert not batch.inputs[slot].any()
    assert batch.targets["even"][slot] == MISSING
    assert (batch.targets["parts"][slot] == UNLABELLED).all()
    assert batch.targets["depth"][slot].isnan().all()
    assert batch.targets["weight"][slot].isnan()


def test_a_batch_holds_every_kind_of_target(folder: Path) -> None:
    batch = read(folder, NAMES, batch_size=14)
    assert list(batch.targets) == NAMES
    kinds = {name: (target.dtype, target.shape[1:]) for name, target in batch.targets.items()}
    assert kinds == {
        "parts": (torch.uint8, (SIDE, SIDE)),
        "even": (torch.int64, ()),
        "depth": (torch.float32, (SIDE, SIDE, 2)),
        "weight": (torch.float32, ()),
    }
    for sample_id in range(12):
        check_slot(batch, sample_id, sample_id)
    for padding in (12, 13):
        check_blank(batch, padding)


def test_some_tasks_in_another_order(folder: Path) -> None:
    batch = read(folder, ["weight", "depth"])
    whole = read(folder, NAMES)
    assert list(batch.targets) == ["weight", "depth"]
    for name, target in batch.targets.items():
        torch.testing.assert_close(target, whole.targets[name], equal_nan=True)


@pytest.mark.processes
def test_the_train_loader_and_its_padding(folder: Path) -> None:
    loader = train_loader(folder, tasks=NAMES, global_batch=6, seed=1, rank=1, world_size=2, workers=1)
    padding, batch = loader.padding_batch(), next(loader)
    loader.close()
    assert loader.streams[0].bad_samples.total.total() == 0
    for slot, sample_id in enumerate(batch.sample_ids_B.tolist()):
        check_slot(batch, slot, sample_id)
        check_blank(padding, slot)
    assert padding.sample_ids_B.tolist() == [-1] * 3
    assert {name: (t.dtype, t.shape) for name, t in padding.targets.items()} == {
        name: (t.dtype, t.shape) for name, t in batch.targets.items()
    }


@pytest.mark.parametrize("member", [0, 1, 2])
def test_one_bad_member_leaves_the_sample_without_any_label(tmp_path: Path, member: int) -> None:
    manifest = write_rich(tmp_path)
    row = load_index(tmp_path, manifest, "train")[0][7, member]
    path = tmp_path / manifest.splits["train"].shards[row["shard"]].file
    content = bytearray(path.read_bytes())
    content[row["offset"] + row["bytes"] // 2] ^= 4
    path.write_bytes(content)
    loader = train_loader(tmp_path, tasks=NAMES, global_batch=12, seed=1)
    batch = next(loader)
    loader.close()
    assert loader.streams[0].bad_samples.total == {"crc32": 1}
    for slot, sample_id in enumerate(batch.sample_ids_B.tolist()):
        if sample_id == 7:
            check_blank(batch, slot)
        else:
            check_slot(batch, slot, sample_id)
    without = train_loader(tmp_path, tasks=["even"], global_batch=12, seed=1)
    next(without)
    without.close()
    assert without.streams[0].bad_samples.total.total() == (member == 0), (
        "a member that nobody asks for is not even read"
    )


def test_a_whole_folder_passes_its_own_verification(folder: Path) -> None:
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, checksum=True)
    index_NM, labels_NT = load_index(folder, manifest, "train")
    assert index_NM.shape == (12, 3)
    assert (index_NM["bytes"][:, 2] == 0).tolist() == [sample_id % 3 == 0 for sample_id in range(12)]
    assert labels_NT.shape == (12, 2)
    assert INDEX_DTYPE.itemsize * 3 <= 64


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_all_members(folder: Path) -> None:
    shard = read_manifest(folder).splits["train"].shards[0]
    read = list(webdataset.WebDataset(str(folder / shard.file), shardshuffle=False))
    members = [sorted(name for name in sample if not name.startswith("_")) for sample in read]
    assert members[:2] == [["json", "parts.png", "png"], ["depth.npy", "json", "parts.png", "png"]]


def test_only_dense_tasks(tmp_path: Path) -> None:
    tasks = [SegmentationSpec(name="parts", classes=("a", "b", "c"))]
    samples = [Sample(rich.sample(i).inputs, {}, {"parts": rich.sample(i).maps["parts"]}) for i in range(3)]
    manifest = write_shards(tmp_path, name="x", made_by={}, inputs=IMAGE, tasks=tasks, splits={"train": samples})
    verify_shards(tmp_path, manifest, checksum=True)
    batch = read(tmp_path, ["parts"], batch_size=3)
    assert np.array_equal(batch.targets["parts"], np.stack([rich.parts(i) for i in range(3)]))


# Tables


def test_a_table_of_features_and_numbers(tmp_path: Path) -> None:
    manifest = write_table(tmp_path)
    verify_shards(tmp_path, manifest, checksum=True)
    batch = read(tmp_path, ["t2", "t0"])
    rows_BF = np.stack([rich.row(i) for i in range(12)])
    np.testing.assert_array_equal(batch.inputs, rows_BF)
    for t in (2, 0):
        expected = [(i * t - t) / (t + 1) if (i + t) % 5 else math.nan for i in range(12)]
        np.testing.assert_allclose(batch.targets[f"t{t}"], expected, rtol=1e-6)
    standardised_BF = to_input(batch.inputs, manifest.input, "cpu")
    expected_BF = np.nan_to_num((rows_BF - np.array(FEATURES.mean)) / np.array(FEATURES.std))
    np.testing.assert_allclose(standardised_BF, expected_BF, rtol=1e-5, atol=1e-6)
    assert read_manifest(tmp_path) == manifest


# What is refused before it is written

GREY = cv2.imencode(".png", np.zeros((SIDE, SIDE), np.uint8))[1].tobytes()
COLOURED = encode(np.zeros((SIDE, SIDE, 3), np.uint8), "png")
SMALL = cv2.imencode(".png", np.zeros((SIDE, 4), np.uint8))[1].tobytes()
CLASS_3 = cv2.imencode(".png", np.full((SIDE, SIDE), 3, np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"parts": COLOURED}, "parts.png: expected a PNG of class numbers, grey or with a palette, found RGB colours"),
        ({"parts": SMALL}, "parts.png: expected height x width x channels (8, 8, 1), found (8, 4, 1)"),
        ({"parts": CLASS_3}, "parts.png: expected class numbers from 0 to 2, or 255 for none; found 3"),
        ({"parts": b"GIF89a"}, "parts.png: expected a PNG, found a GIF"),
        ({"parts": GREY[:-30]}, "parts.png: "),
        ({"depth": write_npy(np.zeros((SIDE, SIDE, 1), np.float32))}, "expected float16 or float32 of shape (8, 8, 2)"),
        ({"depth": write_npy(np.zeros((SIDE, SIDE, 2)))}, "found float64 of shape (8, 8, 2)"),
        ({"depth": write_npy(np.full((SIDE, SIDE, 2), np.inf, np.float16))}, "expected finite numbers"),
        (
            {"depth": write_npy(np.zeros((SIDE, SIDE, 2), np.float32))[:-4]},
            "expected 128 numbers in 512 bytes, found 508 bytes",
        ),
        (
            {"depth": write_npy(np.zeros((SIDE, SIDE, 2), np.float32))[:-1]},
            "expected 128 numbers in 512 bytes, found 511 bytes",
        ),
        ({"depth": b""}, "depth.npy: expected a .npy array, found b''"),
        ({"even": GREY}, "expected targets of ['depth', 'parts'], found ['even']"),
    ],
)
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, maps: dict[str, bytes], message: str) -> None:
    samples = [Sample(rich.sample(0).inputs, {}, maps)]
    with pytest.raises(UserError) as error:
        write_shards(tmp_path, name="x", made_by={}, inputs=IMAGE, tasks=TASKS, splits={"train": samples})
    assert str(error.value).startswith("Sample 000000000")
    assert message in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "3", True, [1.0], 1e39, -(10**400)])
def test_a_number_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    samples = [Sample(rich.sample(0).inputs, {"weight": value})]  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"label of task 'weight' should be null or a finite number .*, found "):
        write_shards(tmp_path, name="x", made_by={}, inputs=IMAGE, tasks=TASKS, splits={"train": samples})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.zeros(2, np.float32), "expected float16 or float32 of shape (3,), found float32 of shape (2,)"),
        (np.zeros(3, np.int64), "found int64 of shape (3,)"),
        (np.array([0, np.inf, 0], np.float32), "expected finite numbers"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, row: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as error:
        write_shards(
            tmp_path,
            name="x",
            made_by={},
            inputs=FEATURES,
            tasks=TASKS[1:2],
            splits={"train": [Sample(write_npy(row), {})]},
        )
    assert message in str(error.value)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    samples = [Sample((tmp_path / "bomb.npy").read_bytes(), {})]
    with pytest.raises(UserError, match=r"expected an array of numbers, found object"):
        write_shards(
            tmp_path / "data", name="x", made_by={}, inputs=FEATURES, tasks=TASKS[1:2], splits={"train": samples}
        )


def test_dense_targets_need_images_and_names_that_can_be_extensions(folder: Path) -> None:
    values = read_manifest(folder).model_dump()
    with pytest.raises(ValueError, match="tasks with a target per pixel need images, found features: parts, depth"):
        Manifest.model_validate(values | {"input": FEATURES.model_dump()})
    with pytest.raises(ValueError, match="should match pattern"):
        SegmentationSpec(name="Parts.2", classes=("a", "b"))


def test_the_models_know_the_same_labels_for_none() -> None:
    """Two definitions, because the models must not import the trainer, nor this format torch."""
    assert (specs.MISSING, specs.UNLABELLED) == (tasks.MISSING, tasks.UNLABELLED)
