"""Measure what one of thousands of ranks computes and holds:  python -m benchmarks.scale [--quick]

Rank 0 runs alone, with torch's fake process group, whose collectives return at once. So the numbers are those of one
rank, without networks, file systems or waiting. The model is ResNet-18 on 64 x 64 images under FSDP2, with shards over
all ranks and over 8; then comes the exchange of α on a given Gram matrix. Each row has a process of its own. The last
line printed is one JSON object.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.testing._internal.distributed.fake_pg import FakeStore

from models import Classification, build_encoder, build_model
from paretrain.exchange import exchange, message_bytes
from paretrain.ranks import Ranks
from paretrain.rules.gradients import MinNormWeighting
from paretrain.solve import solve_step
from trainer.runtime.engines.precision import LossScale

NUM_TASKS = 40
TURNS = 20


def measure(world_size: int, shard_processes: int | None) -> dict[str, Any]:
    """Return the numbers of rank 0 of `world_size`."""
    from trainer.runtime.engines.fsdp import Fsdp2Engine, hybrid_mesh

    torch.set_num_threads(1)
    started = time.perf_counter()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    mesh = hybrid_mesh(torch.device("cpu"), world_size, shard_processes) if shard_processes else None
    groups_seconds = time.perf_counter() - started
    tasks = [Classification(f"{task}", 2) for task in range(NUM_TASKS)]
    network = build_model(build_encoder("resnet18", {}, (3, 64, 64)), tasks, "linear", {})
    started = time.perf_counter()
    engine = Fsdp2Engine(network, lambda parameters: torch.optim.AdamW(parameters), None, LossScale(), mesh)
    engine_seconds = time.perf_counter() - started
    shard = sum(piece.values.nbytes for piece in engine.model_pieces())
    return {
        "ranks": world_size,
        "shards": shard_processes or world_size,
        "groups_seconds": round(groups_seconds, 2),
        "engine_seconds": round(engine_seconds, 2),
        "saved_kib": round(shard / 1024, 1),
        "exchange_bytes": message_bytes(NUM_TASKS, world_size),
        "exchange_ms": round(1e3 * _exchange_seconds(), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _exchange_seconds() -> float:
    """Return rank 0's own time for one exchange: pack, solve, unpack."""
    gradients_TN = np.random.default_rng(0).standard_normal((NUM_TASKS, 1000))
    gram_TT = torch.from_numpy(gradients_TN @ gradients_TN.T)
    losses_T, counts_T = torch.ones(NUM_TASKS), torch.full((NUM_TASKS,), 64)
    rule, taken = MinNormWeighting(), []
    for _ in range(TURNS):
        started = time.perf_counter()
        exchange(gram_TT.clone(), losses_T, counts_T, Ranks(), lambda batch: solve_step(batch, rule))
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 64 ranks")
    numbers = (8, 64) if parser.parse_args().quick else (8, 64, 1024, 10_000)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cases = [(world_size, shards) for world_size in numbers for shards in (None, 8)]
        rows = [pool.apply(measure, case) for case in cases]
    table = Table(*rows[0], title="Rank 0 alone; collectives return at once")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
