"""ZeRO-3 with a second copy of the parameters inside groups of processes (hpZ), on 4 processes, against one process."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support import runtimes
from tests.support.averaging import CASE, PLAIN, predicted
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import assert_equal, by_definition, new_engine, train, write
from trainer.runtime.engines import zero

ALONE = replace(runtimes.ALONE, accelerator=SimpleNamespace(prepare_model=lambda network: network))
STEPS = range(6)
"""The first two and the last two on one process."""
RELEASED_AT_ONCE = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
"""With these settings ZeRO-3 gathers a small model again in the backward, as it does a large one."""


def gather_again() -> Counter[int]:
    """Gather in every backward. Returns how many ranks took part in each gather from now on, as they happen."""
    settings, gather, seen = zero.settings, dist.all_gather_into_tensor, Counter[int]()

    def patched(*arguments: Any) -> dict[str, Any]:
        found = settings(*arguments)
        return found | {"zero_optimization": found["zero_optimization"] | RELEASED_AT_ONCE}

    def counted(*arguments: Any, group: Any = None, **options: Any) -> Any:
        seen[dist.get_world_size(group)] += 1
        return gather(*arguments, group=group, **options)

    zero.settings, dist.all_gather_into_tensor = patched, counted
    return seen


def in_groups(rank: int, folder: Path, checkpoint: Path) -> dict[str, Any]:
    runtime, gathers = a_runtime(rank, 4), gather_again()
    engine = new_engine("zero3", CASE, runtime, checkpoint, shard_processes=2)
    alphas = train(engine, CASE, STEPS[2:3], runtime)
    before = predicted(engine.predictor)
    with engine.averaged():
        during = predicted(engine.predictor)
    after = predicted(engine.predictor)
    alphas += train(engine, CASE, STEPS[3:4], runtime)
    write(engine, folder, runtime)
    return {"alphas": alphas, "before": before, "during": during, "after": after, "gathers": gathers}


@pytest.mark.slow
def test_a_run_moves_into_groups_with_a_second_copy_and_back_and_ends_as_one_process_does(tmp_path: Path) -> None:
    engine = new_engine("single", CASE, ALONE)
    alphas = train(engine, CASE, STEPS[:2], ALONE)
    start = write(engine, tmp_path / "single", ALONE)
    first, *others = run_ranks(4, in_groups, tmp_path / "groups", start, limit_seconds=240)
    engine = new_engine("single", CASE, ALONE, tmp_path / "groups" / "step_00000001")
    alphas += [*first["alphas"], *train(engine, CASE, STEPS[4:], ALONE)]
    assert_equal((torch.stack(alphas), engine.predictor.state_dict()), by_definition(PLAIN, STEPS), "moved")
    for found in (first, *others):
        assert found["gathers"].keys() == {2, 4}, (
            "forwards after a step gather from all, the other gathers in the group"
        )
        assert torch.equal(found["before"], found["after"]), "the averages must not stay in the second copy"
        assert not torch.equal(found["before"], found["during"])
