"""Offloading moves memory, not numbers: against the same strategy without it, from a CPU to that same CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.averaging import CASE, everything, overflow, predicted
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CLIP_NORM, SKIPPED, train, write
from trainer.config.sections.parallel import OffloadConfig
from trainer.errors import UserError
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.offload import check_disk
from trainer.runtime.engines.strategies import build_engine
from trainer.runtime.engines.zero import settings

OPTIMIZER, BOTH = OffloadConfig(optimizer="cpu"), OffloadConfig(optimizer="cpu", parameters="cpu")
Offloaded = Sequence[tuple[str, OffloadConfig]]
STEPS = range(SKIPPED - 1, SKIPPED + 3)
"""One is in micro-batches, and dropped."""


def an_engine(strategy: str, offload: OffloadConfig, runtime: Runtime) -> Engine:
    return build_engine(strategy, CASE.trained_model(), CASE.optimizer, runtime, CLIP_NORM, offload=offload)


def trained(engine: Engine, runtime: Runtime) -> dict[str, Tensor]:
    """α, what evaluations see, and everything that is saved, after steps of which one overflows."""
    alphas = train(engine, CASE, STEPS, runtime)
    assert not overflow(engine, runtime)
    alphas += train(engine, CASE, range(2), runtime)
    with engine.averaged():
        seen = predicted(engine.predictor)
    return {"alpha": torch.stack(alphas), "evaluated": seen, **everything(engine)}


def with_and_without(rank: int, world_size: int, cases: Offloaded, folder: Path) -> list[dict[str, Any]]:
    runtime = a_runtime(rank, world_size)
    found = []
    for strategy, offload in cases:
        plain = trained(an_engine(strategy, OffloadConfig(), runtime), runtime)
        engine = an_engine(strategy, offload, runtime)
        offloaded = trained(engine, runtime)
        again = an_engine(strategy, offload, runtime)
        again.load_optimizer(load(write(engine, folder / strategy, runtime), runtime).optimizer)
        resumed = everything(again)
        found.append(
            {
                "plain": plain,
                "offloaded": offloaded,
                "resumed": all(torch.equal(offloaded[name], resumed[name]) for name in resumed if "/" in name),
            }
        )
    return found


@pytest.mark.parametrize(
    "cases",
    [
        [("zero3", BOTH)],
        pytest.param([("zero1", OPTIMIZER), ("zero2", OPTIMIZER), ("zero3", OPTIMIZER)], marks=pytest.mark.slow),
    ],
)
def test_offloading_changes_no_number(cases: Offloaded, tmp_path: Path) -> None:
    for found in run_ranks(2, with_and_without, 2, cases, tmp_path, limit_seconds=150):
        for (strategy, offload), one in zip(cases, found, strict=True):
            assert one["plain"].keys() == one["offloaded"].keys()
            for name, expected in one["plain"].items():
                error = float((one["offloaded"][name] - expected).norm() / expected.norm().clamp(min=1e-30))
                # The norm by which gradients are clipped is rounded otherwise.
                assert error <= 1e-5, (strategy, offload, name, error)
            assert one["resumed"], (strategy, offload)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file/inside", "is not a folder that can be written to"),
        ("folder", "async_io, which cannot be built here: Unable to JIT load the async_io op"),
    ],
)
def test_a_disk_that_cannot_be_used_is_refused_before_the_run(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("Unable to JIT load the async_io op due to it not being compatible\nwith this machine")

    monkeypatch.setattr(AsyncIOBuilder, "load", fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=said):
        check_disk(OffloadConfig(optimizer="nvme", nvme_dir=tmp_path / path))


def test_deepspeed_understands_the_settings(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def understood(offload: OffloadConfig) -> Any:
        return DeepSpeedZeroConfig(**settings(3, 1.0, [700, 301], offload, 4)["zero_optimization"])

    plain, both = understood(OffloadConfig()), understood(BOTH)
    assert (plain.offload_optimizer, plain.offload_param, plain.reduce_bucket_size) == (None, None, 1001)
    assert (both.offload_optimizer.device, both.offload_param.device) == ("cpu", "cpu")
    disk = understood(OffloadConfig(optimizer="nvme", parameters="nvme", nvme_dir=tmp_path))
    assert (disk.offload_optimizer.device, disk.offload_optimizer.nvme_path) == ("nvme", tmp_path)
    assert disk.offload_optimizer.buffer_count == 5
    assert disk.sub_group_size == 100_000_000
    assert (disk.offload_param.device, disk.offload_param.max_in_cpu, disk.offload_param.buffer_size) == (
        "nvme",
        0,
        175,
    )
