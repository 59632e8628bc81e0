"""The memory estimate, held against what real engines keep and send, and against a forward that can be counted."""

import os
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from models import Classification, MultiTaskModel, build_encoder, build_model, task_losses
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.ranks import run_ranks
from trainer.commands.measure import parts_of_fsdp2, saved_bytes
from trainer.commands.memory import (
    ZERO_BUCKET_BYTES,
    MemoryEstimate,
    Sizes,
    estimate_memory,
    optimizer_bytes,
    parameter_gradients_bytes,
)
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.config.sections.parallel import OffloadConfig
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine
from trainer.training.optimizer.build import build_optimizer
from trainer.training.optimizer.settings import parameter_settings

TASKS = [Classification(name, 2) for name in "abc"]
ADAM = OptimizerConfig(name="adam", learning_rate=0.01, ema_decay=0.9)


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
    engine.backward(balancer.total(**by_name(task_losses(TASKS, outputs, targets))))
    engine.step()


CASES = {strategy: (strategy, OffloadConfig()) for strategy in ("ddp", "fsdp2", "zero1", "zero2", "zero3")} | {
    "fsdp2, a copy on each": ("fsdp2", OffloadConfig()),
    "zero2, offloaded": ("zero2", OffloadConfig(optimizer="cpu")),
    "zero3, offloaded": ("zero3", OffloadConfig(optimizer="cpu", parameters="cpu")),
}


SHARD_PROCESSES = {"fsdp2, a copy on each": 1}


def what_a_rank_holds_and_sends(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world_size}"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    runtime = Runtime(Accelerator(cpu=True), rank, world_size, torch.device("cpu"), dist.new_group())
    found: dict[str, dict[str, Any]] = {}
    for name, (strategy, offload) in CASES.items():
        shard_processes = SHARD_PROCESSES.get(name)
        network = small_model()
        sizes = [held_bytes([parameter]) for parameter in network.parameters()]
        settings = parameter_settings(network, ADAM)
        optimizer = partial(build_optimizer, config=ADAM, settings=settings)
        optimizer_size = optimizer_bytes(dict(network.named_parameters()), ADAM, settings)
        engine = build_engine(
            strategy, network, optimizer, runtime, None, offload=offload, shard_processes=shard_processes
        )
        step = partial(train_step, engine, Balancer(3, group=runtime.balance_group))
        for _ in range(2):  # DDP cuts its buckets after the first, ZeRO-3 learns the order of the modules.
            step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            step()
        found[name] = {
            "sizes": Sizes(
                parameters=sum(sizes),
                trained=sum(sizes),
                largest=max(sizes),
                buffers=0,
                optimizer=optimizer_size,
                parts=parts_of_fsdp2(network) if strategy == "fsdp2" else (),
                batch=0,
                activations=0,
                balancer=0,
            ),
            **held(engine, strategy, network, offload),
            "sent": sent_bytes(recorded.events(), world_size),
            "bucket": 4 * getattr(engine.optimizer, "reduce_bucket_size", 0),
        }
    return found


def held(engine: Engine, strategy: str, network: MultiTaskModel, offload: OffloadConfig) -> dict[str, int]:
    """What lies where between two steps; offloaded from a CPU it lies there too, in tensors of its own."""
    outer: Any = engine.optimizer
    inner = outer.optimizer if strategy.startswith("zero") else outer
    stepped, slots = list(inner.state), [value for slots in inner.state.values() for value in slots.values()]
    if strategy in ("ddp", "fsdp2"):
        return {"parameters": held_bytes(stepped), "optimizer": held_bytes(slots), "offloaded": 0}
    if strategy == "zero3":
        computing, others = outer.fp16_partitioned_groups_flat, [outer.grad_partitions_flat_buffer]
    else:
        computing = list(network.parameters())
        others = getattr(outer, "param_buffer_of_bit16_for_cpu_offload_groups", [])
        others = [*others, *filter(None.__ne__, [getattr(outer, "temp_grad_buffer_for_cpu_offload", None)])]
    if offload.optimizer == "none":
        return {"parameters": held_bytes([*computing, *stepped]), "optimizer": held_bytes(slots), "offloaded": 0}
    moved = [*stepped, *(flat.grad for flat in stepped), *slots, *others]
    if offload.parameters != "none":
        computing, moved = [], [*moved, *computing]
    return {"parameters": held_bytes(computing), "optimizer": 0, "offloaded": held_bytes(moved)}


def sent_bytes(events: Any, world_size: int) -> int:
    """What a rank sends of the gradients and parameters, by itself or in a ring; float32, and longer than α's."""
    gathered = scattered = reduced = alone = 0
    for event in events:
        shapes = event.input_shapes
        if event.name == "c10d::_allgather_base_":
            gathered += shapes[0][0]
        elif event.name == "c10d::_reduce_scatter_base_":
            scattered += shapes[1][0]
        elif event.name == "gloo:all_reduce" and shapes[0] and shapes[0][0] > 100:
            reduced += shapes[0][0]  # What gloo does for a reduce-scatter, too.
        elif event.name == "gloo:send":
            alone += shapes[0][0]
    return 4 * alone + 4 * (gathered + scattered + 2 * (reduced - scattered)) * (world_size - 1) // world_size


@pytest.mark.slow
@pytest.mark.processes
def test_what_ranks_hold_and_send_is_what_the_estimate_says() -> None:
    for name, found in run_ranks(2, what_a_rank_holds_and_sends, 2, limit_seconds=120)[0].items():
        strategy, offload = CASES[name]
        expected = estimate_memory(found["sizes"], strategy, 2, offload, SHARD_PROCESSES.get(name))
        for what in ("parameters", "optimizer", "offloaded", "sent"):
            # Shards are padded to equal lengths.
            assert found[what] == pytest.approx(getattr(expected, what), rel=0.01), (name, what)
        whole = found["sizes"].parameters
        assert found["bucket"] == (min(whole, ZERO_BUCKET_BYTES) if strategy.startswith("zero") else 0), name


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
    sizes = Sizes(
        800, 800, 400, buffers=8, optimizer=1600, parts=(100, 300, 400), batch=90, activations=5000, balancer=70
    )
    alone = estimate_memory(sizes, "single", 1)
    assert alone == MemoryEstimate(808, 800, 1600, 0, 90, 5000, 70, sent=0)
    assert alone.total == 8368
    for strategy, copies in (("fsdp2", 1), ("zero3", 2)):
        shared = estimate_memory(sizes, strategy, 8)
        assert (shared.parameters, shared.gradients, shared.optimizer) == (8 + 100 * copies, 100, 200)
        assert (shared.activations, shared.balancer) == (5000, 70), "each process has a micro-batch of its own"
    groups = estimate_memory(sizes, "fsdp2", 8, shard_processes=2)
    assert (groups.parameters, groups.gradients, groups.optimizer) == (8 + 400, 400, 800)
    assert groups.communication == estimate_memory(sizes, "fsdp2", 8).communication == 100 + 4 * 400
    # Half of two gathers but the root's second one and of a scatter; two passes of 3 quarters of a shard to the others.
    assert groups.sent == (1500 + 800) // 2 + 2 * 400 * 3 // 4
    halved = estimate_memory(sizes, "fsdp2", 8, shard_processes=2, gather="bf16")
    # Two parts and a gradient in two bytes an entry, a copy of the gradient in four.
    assert (halved.communication, halved.sent) == (50 + 3 * 200 + 400, (750 + 800) // 2 + 600)
    large = replace(sizes, parameters=8 << 30, trained=8 << 30)
    far, near = (estimate_memory(large, "zero3", 64, shard_processes=group) for group in (None, 8))
    assert near.parameters - far.parameters == (8 << 30) // 8, "the second copy"
    # The forward gathers and the gradients are scattered over all 64; the backward's gather stays in a group of 8.
    assert (far.sent, near.sent) == (3 * (8 << 30) * 63 // 64, (2 * (8 << 30) * 63 // 64) + (8 << 30) * 7 // 8)
    frozen = estimate_memory(replace(sizes, trained=80, optimizer=160), "ddp", 2)
    assert (frozen.parameters, frozen.gradients, frozen.communication, frozen.sent) == (808, 80, 80, 80)


def test_a_gpu_needs_room_beyond_the_estimate() -> None:
    needed = estimate_memory(Sizes(100, 100, 10, 0, 200, (), 0, 500, 0), "single", 1)
    assert needed.total == 900
    assert needed.fits(1000)
    assert not needed.fits(999)


def test_gradients_in_parameter_space_are_counted_as_shards() -> None:
    for strategy, world_size in (("ddp", 2), ("fsdp2", 4)):
        few, more = (parameter_gradients_bytes(tasks, 4 << 30, world_size, strategy) for tasks in (10, 11))  # type: ignore[arg-type]
        assert more - few == pytest.approx((4 << 30) / world_size, rel=1e-6)
