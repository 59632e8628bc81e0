"""Several sources as one stream: how many samples of each, in which order, with which labels, on any ranks."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mixed_data import EVEN, THIRD, labels, weight, write_rows
from tests.support.rich_data import write_rich
from tests.support.tiny_data import expected_digits, picture, spec, write_tiny
from trainer.config.sections.data import AugmentConfig, DataConfig, SourceConfig
from trainer.data.format.index import scalar_tasks
from trainer.data.format.manifest import read_manifest
from trainer.data.format.specs import MISSING, ClassificationSpec, RegressionSpec
from trainer.data.reading.batch import Batch, RankOptions, joined
from trainer.data.reading.inputs import shared_inputs
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.mixture import merged
from trainer.data.reading.order import Cursor, epoch_order, order_seed
from trainer.data.reading.shares import divided, samples_per_step
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError

SIZES = {"large": 10_000, "middle": 1_000, "small": 100}
COUNTS = {"large": 20, "middle": 8, "small": 4}
SEED = 3


def source(path: Path, used: tuple[str, ...] | None = None) -> DataFolder:
    return DataFolder(path, read_manifest(path), None, path.name, used)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[DataFolder]:
    """`even` of all three, `third` of the small one, and `weight` of the others, on two scales."""
    root = tmp_path_factory.mktemp("sources")
    tasks = {"large": (EVEN, weight(500, 300)), "middle": (weight(50, 30), EVEN), "small": (EVEN, THIRD)}
    for number, (name, size) in enumerate(SIZES.items()):
        write_rows(root / name, number, tasks[name], train=size, samples_per_shard=700)
    return [source(root / name) for name in SIZES]


@contextlib.contextmanager
def loading(sources: list[DataFolder], **options) -> Iterator[TrainLoader]:
    of_rank = {name: options.pop(name) for name in ("rank", "world_size", "workers") if name in options}
    loader = TrainLoader(
        sources,
        samples_per_step=list(COUNTS.values()),
        tasks=merged(sources).tasks,
        seed=SEED,
        options=RankOptions(**of_rank),
        **options,
    )
    with contextlib.closing(loader):
        yield loader


def by_source(slices: list[Batch]) -> dict[str, dict[str, torch.Tensor]]:
    """What the ranks' slices of a step have of each source, in the order of the ranks."""
    found = {}
    for number, name in enumerate(SIZES):
        parts = []
        for batch in slices:
            own_B = batch.inputs[:, 1] == number
            parts.append({"ids": batch.sample_ids_B[own_B], "rows": batch.inputs[own_B]})
            parts[-1] |= {task: target[own_B] for task, target in batch.targets.items()}
        assert len({len(part["ids"]) for part in parts}) == 1, "every rank has as many of each"
        found[name] = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
    return found


def steps(sources: list[DataFolder], count: int, world_size: int = 1, **options) -> list[dict[str, dict]]:
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(loading(sources, rank=rank, world_size=world_size, **options))
            for rank in range(world_size)
        ]
        return [by_source([next(rank) for rank in ranks]) for _ in range(count)]


def same(left: list[dict[str, dict]], right: list[dict[str, dict]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a[name][field].nan_to_num(-9), b[name][field].nan_to_num(-9))
        for a, b in zip(left, right, strict=True)
        for name in a
        for field in a[name]
    )


@pytest.fixture(scope="module")
def whole(sources: list[DataFolder]) -> list[dict[str, dict]]:
    """The first 52 steps, on one rank: two epochs of the small source and a little of its third."""
    return steps(sources, 52)


@pytest.mark.processes
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 0), (4, 0), (2, 1)])
def test_every_layout_has_the_same_samples_of_each_source(
    sources: list[DataFolder], whole: list[dict[str, dict]], world_size: int, workers: int
) -> None:
    assert same(steps(sources, 30, world_size, workers=workers), whole[:30])


def test_every_source_has_its_own_order_and_epochs(whole: list[dict[str, dict]]) -> None:
    """The small one repeats after 25 steps, whatever the others do."""
    for name, size in SIZES.items():
        ids_N = torch.cat([step[name]["ids"] for step in whole]).numpy()
        orders = [epoch_order(size, seed=order_seed(SEED, name), epoch=epoch) for epoch in range(3)]
        assert np.array_equal(ids_N, np.concatenate(orders)[: len(ids_N)])
        assert all(step[name]["rows"][:, 0].tolist() == step[name]["ids"].tolist() for step in whole)


def test_no_sample_of_an_epoch_is_lost_or_repeated(sources: list[DataFolder]) -> None:
    with loading(sources) as loader:
        for stream, size in zip(loader.streams, SIZES.values(), strict=True):
            ids = stream.sample_ids()
            for _ in range(2):
                epoch_N = np.concatenate(list(islice(ids, stream.steps_per_epoch)))
                assert np.array_equal(np.sort(epoch_N), np.arange(size))


def test_equal_sources_have_different_orders() -> None:
    assert order_seed(7, "") == 7, "the only source of a run has the order that it always had"
    assert order_seed(7, "a") != order_seed(7, "b") != order_seed(8, "b")


@pytest.mark.processes
@pytest.mark.parametrize("stop", [0, 1, 24, 25, 26, 49])
def test_stopped_anywhere_and_continued_on_other_ranks_and_workers(
    sources: list[DataFolder], whole: list[dict[str, dict]], stop: int
) -> None:
    with loading(sources) as loader:
        for _ in range(stop):
            next(loader)
        cursors = {stream.data.name: stream.cursor for stream in loader.streams}
    layouts = [(1, 0), (4, 0), (2, 1)] if stop == 24 else [(2, 0)]
    for world_size, workers in layouts:
        assert same(steps(sources, 52 - stop, world_size, workers=workers, cursors=cursors), whole[stop:])


def test_the_places_of_the_sources_do_not_depend_on_one_another(
    sources: list[DataFolder], whole: list[dict[str, dict]]
) -> None:
    """The small one 10 steps into its second epoch, the others at their start."""
    (found,) = steps(sources, 1, cursors={"small": Cursor(1, 40)})
    assert same([found], [whole[0] | {"small": whole[35]["small"]}])


def test_a_source_without_a_task_has_no_label_of_it(sources: list[DataFolder], whole: list[dict[str, dict]]) -> None:
    spec = merged(sources)
    assert [task.name for task in spec.tasks] == ["even", "weight", "third"]
    scale = spec.select_tasks(["weight"])[0]
    assert isinstance(scale, RegressionSpec)
    for name, seen in whole[0].items():
        expected = [labels(sample_id) for sample_id in seen["ids"].tolist()]
        assert seen["even"].tolist() == [each["even"] for each in expected]
        if name == "small":
            assert seen["third"].tolist() == [each["third"] for each in expected]
            assert seen["weight"].isnan().all()
            assert seen["weight"].dtype == torch.float32
        else:
            assert (seen["third"] == MISSING).all()
            assert seen["third"].dtype == torch.int64
            values = [(each["weight"] - scale.mean) / scale.std for each in expected]
            assert seen["weight"].tolist() == pytest.approx(values)


def test_means_and_deviations_are_those_of_all_samples_together(tmp_path: Path) -> None:
    """As if the train samples lay in one folder; 30 and 10 of them, at 1 ± 2 and 9 ± 6."""
    write_rows(tmp_path / "a", 0, (weight(1.0, 2.0),), train=30, mean=1.0)
    write_rows(tmp_path / "b", 1, (weight(9.0, 6.0),), train=10, mean=9.0)
    spec = merged([source(tmp_path / "a"), source(tmp_path / "b")])
    values = [*([1.0 - 2.0, 1.0 + 2.0] * 15), *([9.0 - 6.0, 9.0 + 6.0] * 5)]
    assert isinstance(spec.tasks[0], RegressionSpec)
    assert (spec.tasks[0].mean, spec.tasks[0].std) == pytest.approx((np.mean(values), np.std(values)))
    assert spec.input.mean[0] == pytest.approx(3.0)
    assert spec.input.std[0] == pytest.approx(np.sqrt(100 + 12))


def test_one_folder_stays_as_it_is(sources: list[DataFolder]) -> None:
    assert merged(sources[:1]) is sources[0].manifest


def test_what_does_not_go_together_is_refused_with_both_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", 0, (EVEN, weight()))
    write_rows(tmp_path / "others", 1, (weight(unit="g"),))
    write_rows(tmp_path / "turned", 1, (EVEN,), columns=("folder", "id"))
    write_rows(tmp_path / "words", 1, (ClassificationSpec(name="even", classes=("yes", "no")),))
    for name, said in {
        "others": "'weight' is a regression in kg in 'rows', and a regression in g in 'others'",
        "turned": "column 1 of 'turned' is 'folder', not 'id'",
        "words": r"\(no, yes\) in 'rows', and .* \(yes, no\) in 'words'",
    }.items():
        with pytest.raises(UserError, match=said):
            merged([source(tmp_path / "rows"), source(tmp_path / name)])
    both = [source(tmp_path / "rows", used=("even",)), source(tmp_path / "others")]
    assert [task.name for task in merged(both).tasks] == ["even", "weight"], "what is not used need not agree"


# Inputs of several shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[DataFolder]:
    """Small images, others of another size, small ones again, and rows; in the order of their names."""
    root = tmp_path_factory.mktemp("shapes")
    for name, width in {"a": 4, "b": 6, "c": 4}.items():
        write_tiny(root / name, image=spec(width=width))
    write_rows(root / "d", 0, (EVEN,), train=20)
    return [source(root / name) for name in "abcd"]


def test_sources_of_one_shape_share_an_input(shapes: list[DataFolder]) -> None:
    inputs = shared_inputs(shapes)
    assert [each.sources for each in inputs] == [("a", "c"), ("b",), ("d",)]
    assert inputs[0].words == "images of 3 x 4 x 1 (a, c)"
    assert inputs[1].spec is shapes[1].manifest.input, "its own mean and deviation"
    assert merged(shapes).input == inputs[0].spec


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
def test_each_sample_is_read_into_the_input_of_its_source(shapes: list[DataFolder], workers: int) -> None:
    a, b, c, d = shapes
    loader = TrainLoader(
        [a, c, b, d],
        samples_per_step=[4, 2, 6, 4],
        tasks=merged(shapes).tasks,
        seed=SEED,
        augment=AugmentConfig(),
        options=RankOptions(rank=1, world_size=2, workers=workers),
    )
    with contextlib.closing(loader):
        batch = next(loader)
    assert loader.samples_of_inputs == [3, 3, 2]
    ids = batch.sample_ids_B.tolist()
    parts = batch.by_shape()
    assert [part.sample_ids_B.tolist() for part in parts] == [ids[:3], ids[3:6], ids[6:]]
    for part, width in zip(parts, (4, 6), strict=False):
        expected = [picture(sample_id, spec(width=width)) for sample_id in part.sample_ids_B.tolist()]
        assert np.array_equal(part.only_inputs, np.stack(expected))
    assert parts[2].only_inputs[:, 0].tolist() == ids[6:]
    assert batch.targets["even"].tolist() == [1 - sample_id % 2 for sample_id in ids]
    assert batch.targets["digit"].tolist() == [*expected_digits(ids[:6]), MISSING, MISSING]
    whole = joined(parts)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.inputs, batch.inputs, strict=True))
    assert torch.equal(whole.targets["digit"], batch.targets["digit"])


def test_draws_stay_with_their_images(shapes: list[DataFolder]) -> None:
    augment = AugmentConfig(flip=True, crop_padding=1)
    together, alone = (
        TrainLoader(sources, samples_per_step=[4] * len(sources), tasks=(EVEN,), seed=SEED, augment=augment)
        for sources in (shapes[:2], shapes[1:2])
    )
    with contextlib.closing(together), contextlib.closing(alone):
        second, expected = next(together).by_shape()[1], next(alone)
    assert torch.equal(second.draws.flip_B, expected.draws.flip_B)
    assert torch.equal(second.draws.offset_B2, expected.draws.offset_B2)


def test_a_target_for_every_pixel_needs_images_of_one_size(tmp_path: Path, shapes: list[DataFolder]) -> None:
    write_rich(tmp_path / "rich")
    rich = source(tmp_path / "rich")
    with pytest.raises(UserError, match=r"has a target for every pixel, and there are images of .* \(a\) and images"):
        merged([shapes[0], rich])
    scalar = tuple(task.name for task in scalar_tasks(rich.manifest.tasks))
    merged([shapes[3], source(tmp_path / "rich", used=scalar)])


# How many samples of each


@settings(max_examples=50)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8), st.integers(1, 500), st.integers(1, 9))
def test_parts_are_in_proportion_and_sum_to_the_whole(weights: list[float], units: int, unit: int) -> None:
    parts = divided(weights, units * unit, unit)
    assert sum(parts) == units * unit
    for share, part in zip(weights, parts, strict=True):
        assert part % unit == 0
        assert abs(part - share / sum(weights) * units * unit) < unit * (1 + 1e-9)


def test_the_largest_remainders_are_rounded_up() -> None:
    assert divided([3, 1], 64, 1) == [48, 16]
    assert divided([47_000, 16_000, 15_800, 12_000, 6_100, 3_100], 10, 1) == [5, 2, 1, 1, 1, 0]
    assert divided([1, 1, 1], 4, 1) == [2, 1, 1], "of equal remainders the first"


def config(temperature: float | None = None, multiple_of: int = 1, **shares: float) -> DataConfig:
    named = {name: SourceConfig(path=name, share=shares.get(name, 1.0)) for name in SIZES}
    return DataConfig(sources=named, temperature=temperature, multiple_of=multiple_of)


def test_shares_and_temperatures(sources: list[DataFolder]) -> None:
    assert samples_per_step(config(large=3, small=2), sources, 60, 2) == [30, 10, 20]
    assert samples_per_step(config(temperature=0), sources, 60, 2) == [20, 20, 20]
    assert samples_per_step(config(temperature=1), sources, 222, 2) == [200, 20, 2]
    assert samples_per_step(config(temperature=0.5), sources, 64, 1) == [45, 14, 5]
    assert samples_per_step(config(temperature=0.5, multiple_of=4), sources, 64, 4) == [44, 16, 4]
    only = [DataFolder(sources[0].path, sources[0].manifest)]
    assert samples_per_step(DataConfig(path="x"), only, 64, 4) == [64]


@pytest.mark.parametrize(
    ("asked", "global_batch", "world_size", "said"),
    [
        (config(temperature=0.5), 64, 2, r"45 samples of source 'large'.*\n?.*data.multiple_of=2"),
        (config(multiple_of=3, temperature=0.5), 66, 2, "data.multiple_of=6"),
        (config(small=1e-3), 64, 1, "'small' gets none of the 64 samples"),
        (config(small=9), 256, 1, "210 samples of source 'small', whose train split has 100"),
        (config(multiple_of=5), 64, 1, "type train.global_batch=65"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    sources: list[DataFolder], asked: DataConfig, global_batch: int, world_size: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        samples_per_step(asked, sources, global_batch, world_size)
