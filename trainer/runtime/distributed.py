"""Processes: start them, check that they are the ones that were asked for, let them agree.

The only file that builds an Accelerator.
"""

import os
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from trainer.config.schema import ParallelConfig
from trainer.config.strategies import STRATEGIES
from trainer.errors import LostPeerError, SharedError, UserError, say_error
from trainer.runtime.agreement import Facts, refuse_differences
from trainer.runtime.faults.guard import FAULTS, guarded
from trainer.runtime.faults.place import reason, tells_of_a_lost_peer
from trainer.runtime.faults.watch import Watch

Value = TypeVar("Value")

NCCL_GRACE_SECONDS = 30.0
"""How much later than the guard's alarm NCCL's watchdog ends a process whose collective hangs."""
START_GRACE_SECONDS = 5.0
"""How much later than torch, which says more, the start gives up."""


@dataclass(frozen=True)
class Runtime:
    """This process among its peers.

    Attributes:
        rank: this process, 0 to world_size - 1.
        world_size: number of processes that share each global batch.
        device: where the model lives.
        balance_group: the process group of the exchange of the Gram matrix, see parallel.exchange_group; None: the
            default group, or one process.
        host_group: the same processes over gloo, for words that never wait for a GPU; None with one process.
        watch: how long this process waits for others; None with one process.
    """

    accelerator: Accelerator
    rank: int
    world_size: int
    device: torch.device
    balance_group: dist.ProcessGroup | None
    host_group: dist.ProcessGroup | None = None
    watch: Watch | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that speaks and writes."""
        return self.rank == 0

    def set_phase(self, what: str, *, patient: bool = False) -> None:
        """Say what begins here, for errors to name; `patient`: processes wait long for one another there."""
        if self.watch:
            self.watch.at(what, patient=patient)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on every rank."""
        total = values.to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.to(values.device)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum over ranks on every rank."""
        if self.world_size == 1:
            return value
        maximum = torch.tensor(value)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=self.host_group)
        if self.watch:
            self.watch.met()
        return int(maximum)

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.all_reduce_max(0)

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Do `work`, which must not communicate, on rank 0; what it returns, or its SharedError, is every rank's."""
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except SharedError as error:
                box[1] = type(error), str(error)
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            kind, message = box[1]
            raise kind(message)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in rank order, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Fail together: a SharedError of any rank inside the block is raised on every rank when all have left it.

        The block itself must not communicate, or a rank that failed would leave the others waiting.
        """
        error: SharedError | None = None
        try:
            yield
        except SharedError as caught:
            error = caught
        faults = self.gather((type(error), str(error)) if error else None)
        broken = [(rank, *fault) for rank, fault in enumerate(faults) if fault is not None]
        if broken:
            ranks = ", ".join(str(rank) for rank, _, _ in broken)
            where = "" if len(broken) == self.world_size else f" (on rank {ranks} only)"
            _, kind, message = broken[0]
            raise kind(f"{message}{where}") from error


@contextmanager
def joined(config: ParallelConfig, run_dir: Path | None = None, facts: Facts | None = None) -> Iterator[Runtime]:
    """Join the other processes, make sure that they are the ones that `config` asks for, and leave them at the end.

    Args:
        config: says which processes.
        run_dir: where to leave, in a folder `faults`, what this process was doing when another one was lost; None:
            nowhere.
        facts: what has to be the same in all processes, see `trainer.runtime.agreement`; None: not compared.

    Raises:
        UserError: another number of processes runs than was asked for, they differ, or the device is not there.
        LostPeerError: another process went away, has failed, or did not answer in time.
    """
    folder = run_dir / FAULTS if run_dir else None
    if folder:
        _make_room(folder)
    try:
        with _time_limit(config.timeout_seconds + START_GRACE_SECONDS):
            runtime = _start(config, facts)
        if runtime.watch is None:
            yield runtime
            return
        on_gpu = runtime.device.type == "cuda"
        with guarded(runtime.rank, runtime.world_size, runtime.watch, folder, waits_on_gpu=on_gpu):
            yield runtime
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not tells_of_a_lost_peer(error):
            raise
        rank, host = os.environ.get("RANK", "0"), socket.gethostname()
        raise LostPeerError(
            f"rank {rank} on {host} stopped: another process of this run is gone or stuck. Found in the start: "
            f"{reason(error)}"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, which waits for others many times, each as long as torch allows."""

    def give_up() -> None:
        where = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
        say_error(
            f"{where} stopped: the processes of this run did not meet within {seconds:g} s. Look for one that hangs, "
            "or raise parallel.timeout_seconds"
        )
        os._exit(LostPeerError.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start(config: ParallelConfig, facts: Facts | None) -> Runtime:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "parallel.device=cuda, but torch finds no GPU here. To run on the CPU, type parallel.device=cpu"
        )
    _refuse_a_second_plan(config)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Before anybody connects: a rank that waits for one that was never started would wait for the whole time-out.
    check_world_size(asked=config.processes, launched=launched, joined=launched)
    _allow_many_connections()
    timeout = timedelta(seconds=config.timeout_seconds)
    if launched == 1 and STRATEGIES[config.strategy].shards:
        # FSDP2 and DeepSpeed want a process group even of one.
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "gloo" if config.device == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        # What a launcher's environment says of these would be done behind the configuration's back.
        mixed_precision="no",
        dynamo_backend="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
    torch.set_num_threads(config.threads)  # Accelerate has its own idea where OMP_NUM_THREADS is not set.
    device = accelerator.device
    counted = torch.ones(1, device=device)
    if dist.is_initialized():
        dist.all_reduce(counted)
    check_world_size(config.processes, launched, joined=accelerator.num_processes)
    check_world_size(config.processes, launched, joined=int(counted))
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if facts is not None:  # Before the configuration decides which groups there are.
        refuse_differences(facts, world_size)
    if world_size == 1:
        return Runtime(accelerator, rank, world_size, device, None)
    host_group = dist.new_group(group_desc="host", timeout=timeout, backend="gloo")
    balance_group = exchange_group(config, host_group)
    grace_seconds = NCCL_GRACE_SECONDS if device.type == "cuda" else 0.0
    step_seconds = min(config.step_timeout_seconds, config.timeout_seconds)
    watch = Watch(config.timeout_seconds, step_seconds, grace_seconds)
    return Runtime(accelerator, rank, world_size, device, balance_group, host_group, watch)


def exchange_group(config: ParallelConfig, host_group: dist.ProcessGroup) -> dist.ProcessGroup | None:
    """The group that parallel.exchange_group asks for, connected; None: the default group. Collective."""
    if config.exchange_group == "default":
        return None
    if config.exchange_group == "gloo":
        return host_group
    group = dist.new_group(group_desc="balance", timeout=timedelta(seconds=config.timeout_seconds))
    # NCCL connects at the first message, which would else be one inside a backward.
    dist.all_reduce(torch.zeros(1, device=config.device), group=group)
    return group


def _make_room(folder: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(folder, ignore_errors=True)  # What an earlier start has left.
    # NCCL's watchdog writes the last collectives there when it gives up; a launcher may know a better place.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "flight_"))


def _allow_many_connections() -> None:
    # Gloo connects every two processes, in each group anew: the usual soft limit, of 1,024 files, ends near 1,000 of
    # them, or near 500 on CPUs.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refuse_a_second_plan(config: ParallelConfig) -> None:
    for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"accelerate was launched with a plan of its own to spread the model ({variable}=true), but "
                f"parallel.strategy={config.strategy} is what counts. Use launch/accelerate/processes.yaml, or your "
                "own file with distributed_type: MULTI_GPU"
            )


def check_world_size(asked: int, launched: int, joined: int) -> None:
    """Compare the three numbers of processes that must be one.

    A launcher that starts N processes which never meet trains N models that all believe to be the only one
    (`accelerate launch --cpu`, or `--multi_gpu` on a machine without a GPU, do so without a word).

    Args:
        asked: parallel.processes of the configuration.
        launched: WORLD_SIZE in the environment, as the launcher set it; 1 without a launcher.
        joined: processes that take part in a collective.

    Raises:
        UserError: they differ.
    """
    if asked == launched == joined:
        return
    raise UserError(
        f"{asked} processes were asked for (parallel.processes), {launched} launched (WORLD_SIZE), and {joined} joined "
        f"on {socket.gethostname()}: they must be the same.\n"
        f"  to run {asked} on this machine: paretrain train CONFIG --processes {asked}\n"
        f"  under your own launcher: accelerate launch --config_file launch/accelerate/processes.yaml "
        f"--num_processes {asked} -m trainer.train CONFIG\n"
        f"  to run as launched: add parallel.processes={launched}"
    )
