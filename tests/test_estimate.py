"""The memory estimate, held against what real engines keep and send, and against a forward that can be counted."""

import os
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from models import Classification, MultiTaskModel, build_encoder, build_model, task_losses
from tests.distributed.ranks import run_ranks
from trainer import Balancer
from trainer.config import OptimizerConfig
from trainer.estimate import ZERO_BUCKET_BYTES, Estimate, Sizes, estimate, optimizer_bytes
from trainer.runtime.engine import Engine
from trainer.runtime.setup import Runtime
from trainer.runtime.strategies import build_engine
from trainer.sizes import parts_of_fsdp2, saved_bytes

TASKS = [Classification(name, 2) for name in "abc"]
ADAM = OptimizerConfig(name="adam", learning_rate=0.01)


def small_model() -> MultiTaskModel:
    """Over 100,000 entries in one parameter: ZeRO-3 keeps smaller ones whole."""
    torch.manual_seed(0)
    return build_model(build_encoder("mlp", {"hidden": [400, 300]}, (10,)), TASKS, "linear", {})


def held_bytes(tensors: list[Tensor]) -> int:
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local if tensor.numel() > 1)  # Adam's step


def train_step(engine: Engine, balancer: Balancer) -> None:
    outputs = engine.model(torch.ones(4, 10), balancer=balancer)
    targets = {task.name: torch.arange(4) % 2 for task in TASKS}
    engine.backward(balancer.total(*task_losses(TASKS, outputs, targets)))
    engine.step()


def what_a_rank_holds_and_sends(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world_size}"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    runtime = Runtime(Accelerator(cpu=True), rank, world_size, torch.device("cpu"), dist.new_group())
    found: dict[str, dict[str, Any]] = {}
    for strategy in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
        network = small_model()
        whole = held_bytes(list(network.parameters()))
        engine = build_engine(strategy, network, lambda p: torch.optim.Adam(p, lr=0.01), runtime, None)
        step = partial(train_step, engine, Balancer(3, group=runtime.balance_group))
        for _ in range(2):  # DDP cuts its buckets after the first, ZeRO-3 learns the order of the modules.
            step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            step()
        inner = engine.optimizer.optimizer if strategy.startswith("zero") else engine.optimizer
        parameters = list(inner.state)
        if strategy in ("zero1", "zero2"):
            parameters += list(network.parameters())
        found[strategy] = {
            "sizes": Sizes(
                parameters=whole,
                buffers=0,
                optimizer=optimizer_bytes(whole, ADAM),
                parts=parts_of_fsdp2(network) if strategy == "fsdp2" else (),
                activations=0,
                balancer=0,
            ),
            "parameters": held_bytes(parameters),
            "optimizer": held_bytes([value for slots in inner.state.values() for value in slots.values()]),
            "sent": sent_bytes(recorded.events(), world_size),
            "bucket": 4 * getattr(engine.optimizer, "reduce_bucket_size", 0),
        }
    return found


def sent_bytes(events: Any, world_size: int) -> int:
    """What the ring carries of the gradients and parameters; float32, and longer than anything for α."""
    gathered = scattered = reduced = 0
    for event in events:
        shapes = event.input_shapes
        if event.name == "c10d::_allgather_base_":
            gathered += shapes[0][0]
        elif event.name == "c10d::_reduce_scatter_base_":
            scattered += shapes[1][0]
        elif event.name == "gloo:all_reduce" and shapes[0] and shapes[0][0] > 100:
            reduced += shapes[0][0]  # What gloo does for a reduce-scatter, too.
    return 4 * (gathered + scattered + 2 * (reduced - scattered)) * (world_size - 1) // world_size


def test_what_ranks_hold_and_send_is_what_the_estimate_says() -> None:
    for strategy, found in run_ranks(2, what_a_rank_holds_and_sends, 2, limit_seconds=120)[0].items():
        expected = estimate(found["sizes"], strategy, world_size=2)
        for what in ("parameters", "optimizer", "sent"):
            # Shards are padded to equal lengths.
            assert found[what] == pytest.approx(getattr(expected, what), rel=0.01), (strategy, what)
        assert found["bucket"] == (ZERO_BUCKET_BYTES if strategy.startswith("zero") else 0), strategy


def test_activations_of_an_mlp_are_those_counted_by_hand() -> None:
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    x = torch.randn(7, 4)

    def forward() -> Tensor:
        return second(first(x).relu()).square().sum()

    # Of 7 samples: x for the first weight, the ReLU's output for itself and the second weight, what is squared.
    parameters = [*first.parameters(), *second.parameters()]
    assert saved_bytes(forward, parameters) == 4 * 7 * (4 + 5 + 3)
    assert saved_bytes(forward, []) == 4 * 7 * (4 + 5 + 3) + 4 * 3 * 5, "the second weight, for the hidden layer"


def test_shares_add_up_to_the_whole() -> None:
    sizes = Sizes(parameters=800, buffers=8, optimizer=1600, parts=(100, 300, 400), activations=5000, balancer=70)
    alone = estimate(sizes, "single", 1)
    assert alone == Estimate(808, 800, 1600, 0, 5000, 70, sent=0)
    assert alone.memory == 8278
    for strategy in ("fsdp2", "zero3"):
        shared = estimate(sizes, strategy, 8)
        assert (shared.parameters, shared.gradients, shared.optimizer) == (108, 100, 200)
        assert (shared.activations, shared.balancer) == (5000, 70), "each process has a micro-batch of its own"


def test_a_gpu_needs_room_beyond_the_estimate() -> None:
    needed = estimate(Sizes(100, 0, 200, (), 500, 0), "single", 1)
    assert needed.memory == 900
    assert needed.fits(1000)
    assert not needed.fits(999)
