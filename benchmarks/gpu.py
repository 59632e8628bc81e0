"""Measure what α costs on a GPU:  python -m benchmarks.gpu [--quick] [--device cuda] [--processes 1] [--strategy ddp]

A plain step (forward, backward of the summed loss, optimizer) and a step with α take turns on the same engine, in bf16,
with stacked linear heads and AdamW. On a GPU all times are taken by CUDA events. On a CPU the sizes are tiny: the run
then shows that the script works, and measures nothing. The last line printed is one JSON object. For each row it has

    plain_samples_per_second, balanced_samples_per_second   medians over the turns, of all processes
    ratio                    plain time / time with α, the median over the turns; the aim is 0.97 at T = 40
    exchange_share           part of the step with α in which the Gram matrix is packed, reduced, solved and α sent back
    plain_peak_mib, balanced_peak_mib   peak of allocated GPU memory of either step
    tflops_per_process, mfu_percent     of the plain step
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.ranks import on_every_rank
from models import Classification, build_encoder, build_model, task_losses
from paretrain import Balancer
from paretrain.exchange import exchange
from trainer.config.sections.parallel import ParallelConfig
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine
from trainer.training.cost import StepCost, peak_tflops
from trainer.training.network.trial import try_out

MAX_TURNS = 50
WARM_UPS = 3


@dataclass(frozen=True)
class Row:
    """A network, its tasks, and one process's part of a batch."""

    encoder: str
    image_size: int
    num_tasks: int
    batch: int


FULL = [
    *[Row("resnet18", 64, num_tasks, 256) for num_tasks in (2, 10, 40, 100, 400, 1000)],
    *[Row("resnet18", 64, 40, batch) for batch in (1024, 4096)],
    Row("vit", 224, 40, 128),
]
QUICK = [Row("resnet18", 64, num_tasks, 256) for num_tasks in (2, 40, 1000)]
TRIED = [Row("resnet18", 16, num_tasks, 4) for num_tasks in (2, 40, 1000)] + [Row("vit", 32, 40, 2)]
OPTIONS: dict[str, dict[bool, dict[str, Any]]] = {  # by whether the sizes are tiny
    "resnet18": {True: {}, False: {}},
    "vit": {True: {"embed_dim": 24, "depth": 2}, False: {"embed_dim": 768, "num_heads": 12}},  # ViT-B/16
}


class Stopwatch:
    """Measure times: on a GPU by events in its queue, so that the host need not wait; else by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """Return the present moment."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two moments, of which the GPU has passed the later one."""
        return float(start.elapsed_time(end)) / 1e3 if self._on_gpu else float(end - start)

    def wait(self) -> None:
        """Wait until the GPU has finished its queue."""
        if self._on_gpu:
            torch.cuda.synchronize()


def measure(row: Row, parallel: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the numbers of one row on this rank."""
    config = ParallelConfig.model_validate(parallel, strict=False)
    with joined(config) as runtime:
        torch.manual_seed(0)
        device, shape = runtime.device, (3, row.image_size, row.image_size)
        tasks = [Classification(f"{task}", 2) for task in range(row.num_tasks)]
        encoder = build_encoder(row.encoder, OPTIONS[row.encoder][device.type == "cpu"], shape)
        network = build_model(encoder, tasks, "linear", {}).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flops = try_out(network, shape, device, config.precision).flops_per_sample
        cost = StepCost(flops, peak_tflops(device, config.precision))
        engine = build_engine(config.strategy, network, torch.optim.AdamW, runtime, None, config.precision)
        images_BCHW = torch.randn(row.batch, *shape, device=device).to(memory_format=torch.channels_last)
        targets = {task.name: torch.randint(0, 2, (row.batch,), device=device) for task in tasks}
        balancer = Balancer(row.num_tasks, group=runtime.balance_group)

        def plain() -> Tensor:
            sums_T, counts_T = task_losses(tasks, engine.model(images_BCHW), targets)
            return (sums_T / counts_T).sum()

        def balanced() -> Tensor:
            sums_T, counts_T = task_losses(tasks, engine.model(images_BCHW, balancer=balancer), targets)
            return balancer.total(sums=sums_T, counts=counts_T)

        return _take_turns(engine, plain, balanced, runtime, seconds) | asdict(cost)


def _take_turns(
    engine: Engine, plain: Callable[[], Tensor], balanced: Callable[[], Tensor], runtime: Runtime, seconds: float
) -> dict[str, Any]:
    watch = Stopwatch(runtime.device)
    exchanged: list[tuple[Any, Any]] = []

    def timed_exchange(*arguments: Any, **named: Any) -> Any:
        start = watch.mark()
        found = exchange(*arguments, **named)
        exchanged.append((start, watch.mark()))
        return found

    def step(loss: Callable[[], Tensor]) -> float:
        if runtime.world_size > 1:
            dist.barrier(runtime.host_group)
        watch.wait()
        start = watch.mark()
        engine.backward(loss())
        engine.step()
        end = watch.mark()
        watch.wait()
        return watch.seconds(start, end)

    turns: list[tuple[float, float]] = []
    peaks: dict[str, float] = {}
    with mock.patch("paretrain.balancer.exchange", timed_exchange):
        for name, loss in (("plain", plain), ("balanced", balanced)):
            for warm_up in range(WARM_UPS):
                if runtime.device.type == "cuda" and warm_up == 1:  # The optimizer's state is there now.
                    torch.cuda.reset_peak_memory_stats()
                step(loss)
            if runtime.device.type == "cuda":
                peaks[f"{name}_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        exchanged.clear()
        started = time.perf_counter()
        goes_on = True
        while goes_on:
            # Alternate which comes first, too: the second one reuses memory that the first has freed.
            if len(turns) % 2:
                turns.append((step(plain), step(balanced)))
            else:
                turns.append((step(balanced), step(plain))[::-1])
            enough = len(turns) == MAX_TURNS or time.perf_counter() - started > seconds
            goes_on = not runtime.all_reduce_max(int(enough))
    shares = [watch.seconds(*pair) / own for pair, (_, own) in zip(exchanged, turns, strict=True)]
    return {
        "plain_seconds": statistics.median(floor for floor, _ in turns),
        "balanced_seconds": statistics.median(own for _, own in turns),
        "ratio": statistics.median(floor / own for floor, own in turns),
        "exchange_share": statistics.median(shares),
        "turns": len(turns),
        **peaks,
    }


def summary(row: Row, of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a row: times and memory of the slowest rank, samples/s of all ranks."""
    slowest = max(of_ranks, key=lambda found: found["balanced_seconds"])
    samples = row.batch * len(of_ranks)
    cost = StepCost(slowest["flops_per_sample"], slowest["peak_tflops"])
    plain, balanced = samples / slowest["plain_seconds"], samples / slowest["balanced_seconds"]
    return {
        **asdict(row),
        "plain_samples_per_second": round(plain, 1),
        "balanced_samples_per_second": round(balanced, 1),
        "ratio": round(slowest["ratio"], 4),
        # The rank that arrives last does not wait for others: only its share is free of their delays.
        "exchange_share": round(min(found["exchange_share"] for found in of_ranks), 5),
        **{key: round(value) for key, value in slowest.items() if key.endswith("_peak_mib")},
        **{key: round(value, 2) for key, value in cost.of_speed(plain, len(of_ranks)).items()},
        "turns": slowest["turns"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rows: two minutes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="one GPU each")
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    rows = (QUICK if arguments.quick else FULL) if on_gpu else TRIED
    # With about 12 s for the start of each row, all rows take at most 8 minutes.
    seconds = (20.0 if arguments.quick else 30.0) if on_gpu else 1.0
    parallel = {key: vars(arguments)[key] for key in ("device", "processes", "strategy", "precision")}
    name = (
        torch.cuda.get_device_name() if on_gpu else "CPU with tiny sizes: shows that the script works, measures nothing"
    )
    found = [summary(row, on_every_rank(arguments.processes, measure, row, parallel, seconds)) for row in rows]
    columns = list(dict.fromkeys(key for one in found for key in one))
    table = Table(*columns, title=f"{name}; {arguments.processes} process(es), {arguments.strategy}")
    for one in found:
        table.add_row(*(str(one.get(key, "-")) for key in columns))
    Console(width=200).print(table)
    print(json.dumps({"device": name, "torch": torch.__version__, **parallel, "rows": found}))


if __name__ == "__main__":
    main()
