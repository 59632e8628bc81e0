import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.loaders import damage, eval_loader, ids, same
from tests.support.tiny_data import expected_digits, write_tiny
from trainer.data.format.specs import MISSING
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


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 2), (4, 1), (6, 1)])
def test_evaluation_is_exact_on_every_layout(folder: Path, world_size: int, workers: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        options = {"batch_size": 2, "rank": rank, "world_size": world_size, "workers": workers}
        with contextlib.closing(eval_loader(folder, split="train", tasks=TASKS, **options)) as loader:
            seen += [i for batch in loader for i in batch.sample_ids_B.tolist() if i >= 0]
    assert sorted(seen) == list(range(23))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 5))
def test_evaluation_sees_every_sample_exactly_once(folder: Path, batch_size: int, world_size: int) -> None:
    seen, lengths = [], set()
    for rank in range(world_size):
        loader = eval_loader(folder, tasks=TASKS, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        loader.close()
        lengths |= {len(batches), len(loader)}
        for batch in batches:
            sample_ids = batch.sample_ids_B.tolist()
            assert len(sample_ids) == len(batch.inputs) == batch_size
            assert batch.targets["digit"].tolist() == expected_digits(sample_ids)
            assert [even == MISSING for even in batch.targets["even"].tolist()] == [i < 0 for i in sample_ids]
            seen += [i for i in sample_ids if i >= 0]
    assert sorted(seen) == list(range(11))
    assert len(lengths) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_can_be_repeated(folder: Path, workers: int) -> None:
    loader = eval_loader(folder, split="train", tasks=TASKS, batch_size=4, workers=workers)
    first, second = list(loader), list(loader)
    loader.close()
    assert same(first, second)
    assert ids(first)[-1] == [20, 21, 22, -1]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_refuses_a_bad_sample(own_folder: Path, workers: int) -> None:
    damage(own_folder, 13)
    with pytest.raises(UserError, match=r"Bad sample 13 \(.*train-000002\.tar, byte \d+\): its bytes have changed"):
        list(eval_loader(own_folder, split="train", tasks=TASKS, batch_size=4, workers=workers))
