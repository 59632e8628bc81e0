"""Saving in pieces, by a thread: any strategy goes on from any other's pieces, a step waits for no disk, and whatever
happens to a save, the checkpoint before it stands.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import MultiTaskModel
from models.heads.task_heads import SeparateHeads
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import whole, write
from trainer.errors import PublicError, RankError, UserError
from trainer.runtime.checkpoints import saving
from trainer.runtime.checkpoints.folder import folder_of_step, latest
from trainer.runtime.checkpoints.pieces import piece_of
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


class Odd(nn.Module):
    """An encoder whose tensors no number of ranks divides: some have fewer rows than there are ranks, one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(5)
        self.scale = nn.Parameter(torch.ones(1, 5))
        self.offset = nn.Parameter(torch.arange(7.0), requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD: Tensor = self.norm(self.linear(self.conv(x_BCHW).flatten(1)))
        return z_BD * self.scale + self.offset[:5]


def odd_engine(strategy: str, runtime: Runtime, checkpoint: Path | None = None) -> Engine:
    torch.manual_seed(0)
    network = MultiTaskModel(Odd(), SeparateHeads([nn.Sequential(nn.Linear(5, 2))]))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if checkpoint is None:
        return build_engine(strategy, network, torch.optim.AdamW, runtime, clip_norm=None)
    snapshot = load(checkpoint, runtime)
    for parameter in network.parameters():
        nn.init.constant_(parameter, torch.nan)
    network.load_state_dict(snapshot.model)
    engine = build_engine(strategy, network, torch.optim.AdamW, runtime, clip_norm=None)
    engine.load_optimizer(snapshot.optimizer)
    return engine


def everything(engine: Engine, runtime: Runtime) -> dict[str, Tensor]:
    return whole(itertools.chain(engine.model_pieces(), engine.optimizer_pieces()), runtime)


def saved(rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Two steps on three ranks under each strategy, and a checkpoint of each."""
    runtime = a_runtime(rank, 3)
    found = {}
    for strategy in STRATEGIES:
        engine = odd_engine(strategy, runtime)
        for step in range(2):
            (output_BC,) = engine.model(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(step)))
            engine.backward(output_BC.square().mean())
            engine.step()
        write(engine, folder / strategy, runtime)
        found[strategy] = everything(engine, runtime)
    return found


def restored(
    rank: int, world_size: int, moves: Sequence[tuple[str, str]], folder: Path
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Some of those checkpoints, each under another strategy on fewer ranks."""
    runtime = a_runtime(rank, world_size)
    return {
        (source, strategy): everything(odd_engine(strategy, runtime, folder / source / "step_00000001"), runtime)
        for source, strategy in moves
    }


def test_what_any_strategy_saves_on_three_ranks_any_other_has_exactly_on_two_and_on_one(tmp_path: Path) -> None:
    expected = run_ranks(3, saved, tmp_path)[0]
    by_ddp = expected["ddp"]
    assert {"encoder.offset", "encoder.norm.running_var", "encoder.scale/exp_avg", "encoder.scale/step"} < set(by_ddp)
    assert "encoder.offset/exp_avg" not in by_ddp
    for strategy, found in expected.items():
        assert found.keys() == by_ddp.keys(), strategy
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, by_ddp[name], rtol=1e-4, atol=1e-6, msg=f"{name} under {strategy}")
    on_two = run_ranks(2, restored, 2, list(zip(STRATEGIES, [*STRATEGIES[2:], *STRATEGIES[:2]], strict=True)), tmp_path)
    on_one = run_ranks(1, restored, 1, [("zero3", "single"), ("fsdp2", "zero3"), ("zero1", "fsdp2")], tmp_path)
    for (source, strategy), found in (*on_two[0].items(), *on_one[0].items()):
        torch.testing.assert_close(found, expected[source], rtol=0, atol=0, msg=f"{source} -> {strategy}")


FULL = OSError(28, "No space left on device")


def under_way(rank: int, folder: Path) -> dict[str, Any]:
    """What two ranks see of saves that are slow, fail, hang, or are left by an error."""
    runtime = a_runtime(rank, 2)
    saving.RETRY_AFTER_SECONDS = ()
    saver = Saver(folder, 9, runtime, "a run", {})
    weights = torch.arange(10.0)
    gates = [threading.Event() for _ in range(2)]
    write_files, publish = saving.write_files, saving.publish
    found: dict[str, Any] = {}

    def begin(step: int) -> None:
        saver.begin(step, [piece_of("w", weights, rank, 2)], [], {"step": step})

    def slow(*arguments: Any) -> Any:
        gates[0].wait(60)
        return write_files(*arguments)

    def fails(*arguments: Any, **options: Any) -> Any:
        raise FULL

    def hangs(*arguments: Any) -> Any:
        gates[1].wait(60)
        return {}

    if rank == 0:
        saver.advance()  # With nothing under way nobody waits for rank 1, which does not come by here.
    if rank == 1:
        saving.write_files = slow
    begin(1)
    weights.zero_()
    for _ in range(3):
        saver.advance()
    found["while rank 1 writes"] = latest(folder)
    gates[0].set()
    saver.finish()
    found["saved"] = load(folder / "step_00000001", runtime).model["w"]

    saving.write_files = fails if rank == 1 else write_files
    begin(2)
    found["full on rank 1"] = _said(saver.finish)
    saving.write_files, saving.publish = write_files, fails
    begin(3)
    found["full on rank 0"] = _said(saver.finish)
    saving.publish = publish
    dist.barrier()
    found["left"] = sorted(path.name for path in folder.iterdir())
    dist.barrier()

    def broken() -> None:
        with saver.finished():
            begin(4)
            raise UserError("a loss is not finite")

    found["error"] = _said(broken), latest(folder)

    saving.PATIENCE_SECONDS, saving.write_files = 0.5, hangs
    begin(5)
    found["hung"] = _said(saver.finish)
    gates[1].set()

    def broken_here() -> None:
        with saver.finished():
            begin(6)
            raise RankError("the run's records cannot be written")

    if rank == 0:
        found["error of rank 0"] = _said(broken_here)
    return found


def _said(work: Callable[[], None]) -> str:
    try:
        work()
    except PublicError as error:
        return str(error)
    return "nothing"


def test_a_step_waits_for_no_disk_and_a_save_that_fails_fails_on_every_rank(tmp_path: Path) -> None:
    both = run_ranks(2, under_way, tmp_path)
    stands = f"The last checkpoint is {tmp_path / 'step_00000001'}. "
    for found in both:
        assert found["while rank 1 writes"] is None
        assert torch.equal(found["saved"], torch.arange(10.0))
        for name, step in (("full on rank 1", 2), ("full on rank 0", 3)):
            assert f"the checkpoint of step {step} could not be written: [Errno 28] No space left" in found[name]
            assert stands in found[name]
            assert found[name].endswith(f"({name.removeprefix('full ')} only)")
        assert found["left"] == ["LATEST", "step_00000001"]
        assert found["error"] == ("a loss is not finite", tmp_path / "step_00000004")
        assert "the disk has not answered for 0.5 s" in found["hung"]
        assert f"The last checkpoint is {tmp_path / 'step_00000004'}. " in found["hung"]
    assert both[0]["error of rank 0"] == "the run's records cannot be written"


def killed(rank: int, folder: Path) -> list[int]:
    """A process that saves without end is killed, again and again. Returns the last step saved each time."""
    runtime = a_runtime(rank, 1)
    steps: list[int] = []
    for turn in range(8):
        first = steps[-1] + 1 if steps else 1
        child = os.fork()
        if child == 0:
            saver = Saver(folder, 2, runtime, "a run", {})
            for step in itertools.count(first):
                values = torch.full((100_000,), float(step))
                saver.begin(step, [piece_of("w", values, 0, 1)], [piece_of("w/exp_avg", values, 0, 1)], {"step": step})
                saver.advance()
        while latest(folder) is None or (turn and latest(folder) == folder_of_step(folder, steps[-1])):
            time.sleep(0.001)
        time.sleep(0.002 * turn)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        path = latest(folder)
        assert path is not None
        snapshot = load(path, runtime)
        steps.append(snapshot.state["step"])
        for tensor in (snapshot.model["w"], snapshot.optimizer["w"]["exp_avg"]):
            assert tensor.eq(steps[-1]).all()
    return steps


def test_whenever_it_is_killed_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    (steps,) = run_ranks(1, killed, tmp_path)
    assert steps == sorted(set(steps)), "each turn went on from the one before"
    assert len(steps) == 8
