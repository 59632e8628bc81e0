import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny_data as tiny
from tests.support.loaders import damage, eval_loader, ids, same, train_loader
from tests.support.tiny_data import expected_digits, picture, spec, write_tiny
from trainer.config.sections.data import AugmentConfig
from trainer.data.format.decode import encode
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import MISSING
from trainer.data.reading import shard_files
from trainer.data.reading.augment import Draws
from trainer.data.reading.batch import Batch
from trainer.data.reading.order import Cursor, epoch_order
from trainer.errors import UserError

pytestmark = pytest.mark.processes  # data workers

TASKS = ("digit", "even")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 train and 11 test samples in shards of 5."""
    out = tmp_path_factory.mktemp("data") / "tiny"
    write_tiny(out)
    return out


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


def steps(folder: Path, count: int, **options) -> list[Batch]:
    loader = train_loader(folder, **{"tasks": TASKS, "global_batch": 6, "seed": 3} | options)
    with contextlib.closing(loader):
        return [next(loader) for _ in range(count)]


def joined(slices: Sequence[Batch]) -> Batch:
    """The global batch of which the ranks have their slices."""
    draws = [[getattr(batch.draws, field.name) for batch in slices] for field in dataclasses.fields(Draws)]
    return Batch(
        torch.cat([batch.inputs for batch in slices]),
        {task: torch.cat([batch.targets[task] for batch in slices]) for task in TASKS},
        torch.cat([batch.sample_ids_B for batch in slices]),
        Draws(*(None if drawn[0] is None else torch.cat(drawn) for drawn in draws)),
    )


# Training


def test_a_batch_holds_the_pixels_and_labels_of_its_samples(folder: Path) -> None:
    for batch in steps(folder, 7):
        sample_ids = batch.sample_ids_B.tolist()
        assert batch.inputs.dtype == torch.uint8
        assert np.array_equal(batch.inputs, np.stack([picture(i, spec()) for i in sample_ids]))
        assert list(batch.targets) == list(TASKS)
        assert batch.targets["digit"].tolist() == expected_digits(sample_ids)
        assert batch.targets["even"].tolist() == [1 - i % 2 for i in sample_ids]
        assert batch.targets["even"].dtype == torch.int64


def test_the_order_is_the_canonical_one(folder: Path) -> None:
    found = ids(steps(folder, 6))
    for epoch in (0, 1):
        order = epoch_order(23, seed=3, epoch=epoch)[:18]
        assert found[3 * epoch : 3 * epoch + 3] == order.reshape(3, 6).tolist()


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 0), (3, 2), (6, 0)])
def test_every_layout_gives_the_same_global_batches(folder: Path, world_size: int, workers: int) -> None:
    alone = steps(folder, 5)
    ranks = [steps(folder, 5, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]
    assert same([joined(slices) for slices in zip(*ranks, strict=True)], alone)


def test_resume_at_every_step_and_over_the_epoch_border(folder: Path) -> None:
    whole = steps(folder, 8)
    loader = train_loader(folder, tasks=TASKS, global_batch=6, seed=3)
    for step in range(8):
        saved = json.loads(json.dumps(dataclasses.asdict(loader.streams[0].cursor)))
        assert same(steps(folder, 8 - step, cursor=Cursor(**saved)), whole[step:])
        next(loader)
    loader.close()


AUGMENT = AugmentConfig(flip=True, crop_padding=1, brightness=0.5)


def run_layout(folder: Path, world_size: int, workers: int, cursor: Cursor, count: int) -> tuple[list[Batch], Cursor]:
    """The next global batches of 24, and where the run stands after them."""
    options = {"tasks": TASKS, "global_batch": 24, "seed": 3, "augment": AUGMENT, "group_samples": 40}
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                contextlib.closing(
                    train_loader(folder, **options, rank=rank, world_size=world_size, workers=workers, cursor=cursor)
                )
            )
            for rank in range(world_size)
        ]
        batches = [joined([next(rank) for rank in ranks]) for _ in range(count)]
        assert len({rank.streams[0].cursor for rank in ranks}) == 1
        return batches, Cursor(**json.loads(json.dumps(dataclasses.asdict(ranks[0].streams[0].cursor))))


@pytest.mark.parametrize(
    "layouts",
    [[(2, 2), (4, 1)], [(3, 1), (2, 3)], [(4, 2), (1, 0)], [(6, 0), (8, 1)], [(1, 3), (12, 0), (2, 1)]],
    ids=str,
)
def test_stopped_and_resumed_on_other_layouts(tmp_path: Path, layouts: list[tuple[int, int]]) -> None:
    """100 samples, 4 steps an epoch: each part of 3 steps ends at another place, the second behind the border."""
    write_tiny(tmp_path / "tiny", train=100, test=1, samples_per_shard=9)
    whole, _ = run_layout(tmp_path / "tiny", 1, 0, Cursor(0, 0), 3 * len(layouts))
    found, cursor = [], Cursor(0, 0)
    for world_size, workers in layouts:
        part, cursor = run_layout(tmp_path / "tiny", world_size, workers, cursor, 3)
        found += part
    assert same(found, whole)
    for mine, expected in zip(found, whole, strict=True):
        for field in ("flip_B", "offset_B2", "factors_B3"):
            assert torch.equal(getattr(mine.draws, field), getattr(expected.draws, field))


def test_another_global_batch_loses_and_repeats_nothing(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", train=96, test=1)
    seen, cursor = [], Cursor(0, 0)
    for global_batch, count in ((24, 2), (8, 3), (12, 2)):
        loader = train_loader(tmp_path / "tiny", tasks=TASKS, global_batch=global_batch, seed=3, cursor=cursor)
        with contextlib.closing(loader):
            seen += [i for _ in range(count) for i in next(loader).sample_ids_B.tolist()]
            cursor = loader.streams[0].cursor
    assert cursor == Cursor(1, 0)
    assert sorted(seen) == list(range(96))


def test_the_cursor_counts_what_was_handed_out_and_not_what_workers_prefetched(folder: Path) -> None:
    loader = train_loader(folder, tasks=TASKS, global_batch=6, seed=3, workers=2)
    seen = []
    for _ in range(4):
        seen.append(loader.streams[0].cursor)
        next(loader)
    loader.close()
    assert seen == [Cursor(0, 0), Cursor(0, 6), Cursor(0, 12), Cursor(1, 0)]
    assert loader.streams[0].steps_per_epoch == 3


def test_loaders_leave_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    steps(folder, 2)
    steps(folder, 2, workers=1)
    list(eval_loader(folder, tasks=TASKS, batch_size=4))
    assert torch.equal(torch.rand(1), expected)


def test_the_fingerprint_names_data_and_seed(folder: Path, tmp_path: Path) -> None:
    def fingerprint(where: Path, **options) -> str:
        loader = train_loader(where, **{"tasks": TASKS, "global_batch": 6, "seed": 3} | options)
        loader.close()
        return loader.fingerprint

    write_tiny(tmp_path / "more", train=24)
    assert fingerprint(folder) == fingerprint(folder, global_batch=4, world_size=2, tasks=["even"])
    assert len({fingerprint(folder), fingerprint(folder, seed=4), fingerprint(tmp_path / "more")}) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_keeps_its_slot_and_is_counted(own_folder: Path, workers: int) -> None:
    sound = steps(own_folder, 3)
    first, last = sound[0].sample_ids_B[2].item(), sound[2].sample_ids_B[5].item()
    for sample_id in (first, last):
        damage(own_folder, sample_id)
    loader = train_loader(own_folder, tasks=TASKS, global_batch=6, seed=3, workers=workers)
    found = [next(loader) for _ in range(3)]
    assert ids(found) == ids(sound)
    assert loader.streams[0].bad_samples.total == {"crc32": 2}
    report = loader.streams[0].bad_samples.report()
    assert [news.partition(" (")[0] for news in report.news] == [f"sample {first}", f"sample {last}"]
    assert report.first.endswith("its bytes have changed since conversion")
    loader.close()
    for batch in found:
        bad_B = torch.tensor([i in (first, last) for i in batch.sample_ids_B.tolist()])
        assert all((batch.targets[task][bad_B] == MISSING).all() for task in TASKS)
        assert not batch.inputs[bad_B].any()
        assert (batch.targets["even"][~bad_B] != MISSING).all()


def test_an_image_that_was_bad_when_converted_is_counted_as_such(tmp_path: Path) -> None:
    image = spec("png", height=16, width=16)
    png = encode(picture(0, image), "png")
    samples = [Sample(png, {"digit": 1}), Sample(png[: len(png) // 2], {"digit": 1})]
    write_shards(tmp_path, name="x", made_by={}, inputs=image, tasks=tiny.TASKS, splits={"train": samples})
    loader = train_loader(tmp_path, tasks=["digit"], global_batch=2, seed=0)
    assert sorted(next(loader).targets["digit"].tolist()) == [MISSING, 1]
    assert loader.streams[0].bad_samples.total == {"decode": 1}
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_disappears_or_shrinks_stops_the_run_with_its_name(
    own_folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "RETRY_AFTER_SECONDS", (0.01, 0.01))
    (own_folder / "train-000004.tar").write_bytes(b"short")
    with pytest.raises(UserError) as error:
        steps(own_folder, 4, workers=workers)
    assert str(error.value).startswith(f"{own_folder / 'train-000004.tar'}: expected ")
    assert "Traceback" not in str(error.value)
    (own_folder / "train-000004.tar").unlink()
    with pytest.raises(UserError, match=r"train-000004.tar cannot be read: .*No such file"):
        steps(own_folder, 4, workers=workers)


def test_faults_are_refused_when_the_loader_is_made(own_folder: Path, tmp_path: Path) -> None:
    def make(where: Path = own_folder, **options) -> None:
        train_loader(where, **{"tasks": TASKS, "global_batch": 6, "seed": 3} | options)

    with pytest.raises(UserError, match="no task 'digt'; did you mean 'digit'"):
        make(tasks=["digt"])
    with pytest.raises(UserError, match="cannot be divided equally among 4 processes"):
        make(world_size=4)
    with pytest.raises(UserError, match="has 23 samples, less than one global batch of 24"):
        make(global_batch=24)
    with pytest.raises(UserError, match="No data folder"):
        make(tmp_path / "none")
    (own_folder / "train.labels.npy").unlink()
    with pytest.raises(UserError, match=r"train.labels.npy cannot be read"):
        make()


def test_a_killed_worker_stops_the_loader_with_a_line(folder: Path) -> None:
    before = set(psutil.Process().children())
    loader = train_loader(folder, tasks=TASKS, global_batch=6, seed=3, workers=1)
    next(loader)
    (worker,) = set(psutil.Process().children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    with contextlib.closing(loader), pytest.raises(UserError, match=r"Data worker 1 of 1 .* was killed by SIGKILL"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_epochs_leave_memory_and_descriptors_as_they_were(tmp_path: Path, workers: int) -> None:
    write_tiny(tmp_path / "tiny", test=1, image=spec(height=64, width=64, channels=3))
    loader = train_loader(tmp_path / "tiny", tasks=TASKS, global_batch=6, seed=3, workers=workers)
    with contextlib.closing(loader):
        for _ in range(30):
            next(loader)
        processes = [psutil.Process(), *psutil.Process().children()]
        before = [(process.memory_full_info().uss, process.num_fds()) for process in processes]
        for _ in range(200):
            next(loader)
        after = [(process.memory_full_info().uss, process.num_fds()) for process in processes]
    for (own_before, open_before), (own_after, open_after) in zip(before, after, strict=True):
        # A process that kept its batches would have 15 MB more, each of two workers half of that. What a forked one
        # takes over from the trainer, page by page, is under 1 MB.
        assert own_after - own_before < 3_000_000
        assert open_after == open_before


# Storage


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 8))
def test_the_sharding_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, train: int, samples_per_shard: int, global_batch: int
) -> None:
    global_batch = min(global_batch, train)
    out = tmp_path_factory.mktemp("sharding")
    write_tiny(out / "one", train=train, test=1, samples_per_shard=1000)
    write_tiny(out / "many", train=train, test=1, samples_per_shard=samples_per_shard)
    assert same(steps(out / "one", 4, global_batch=global_batch), steps(out / "many", 4, global_batch=global_batch))
