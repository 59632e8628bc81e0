"""Start: join the other processes, check that they are those that were asked for, and leave them at the end.

The only file that builds an Accelerator.
"""

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from trainer.config.sections.parallel import ParallelConfig
from trainer.config.strategies import STRATEGIES
from trainer.errors import LostPeerError, UserError, say_error
from trainer.runtime.agreement import Facts, refuse_differences
from trainer.runtime.binding import bind_cores
from trainer.runtime.collectives import Runtime
from trainer.runtime.faults.guard import guarded, leave_start
from trainer.runtime.faults.place import reason, tells_of_a_lost_peer
from trainer.runtime.faults.records import FAULTS, keep_earlier
from trainer.runtime.faults.watch import Watch

NCCL_GRACE_SECONDS = 30.0
"""How much later than our own alarm NCCL's watchdog ends a process whose collective hangs."""
START_GRACE_SECONDS = 5.0
"""How much later than torch, whose message says more, we give up the start."""


@contextmanager
def joined(config: ParallelConfig, run_dir: Path | None = None, facts: Facts | None = None) -> Iterator[Runtime]:
    """Join the other processes, check that they are those that `config` asks for, and leave them at the end.

    Args:
        config: the number of processes, their device and their time limits.
        run_dir: where to leave, in a folder `faults`, a record of what this process was doing when another one was
            lost; None: nowhere.
        facts: what must be equal in all processes, see `trainer.runtime.agreement`; None: not compared.

    Raises:
        UserError: another number of processes runs than was asked for, they differ, or the device is missing.
        LostPeerError: another process went away, has failed, or did not answer in time.
    """
    folder = run_dir / FAULTS if run_dir else None
    if folder:
        _set_records_aside(folder)
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
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1 or not tells_of_a_lost_peer(error):
            raise
        rank = int(os.environ.get("RANK", "0"))
        leave_start(folder, rank, world_size, error)
        raise LostPeerError(
            f"rank {rank} on {socket.gethostname()} stopped: another process of this run is gone or stuck. Found in "
            f"the start: {reason(error)}"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer.

    The start waits for other processes several times, and torch's limit counts for each wait alone.
    """

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
    _refuse_accelerate_plugins(config)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Before anybody connects: waiting for a rank that was never started would take the whole time limit.
    check_world_size(asked=config.processes, launched=launched, joined=launched)
    if config.bind_cores:
        bind_cores()
    _allow_many_connections()
    timeout = timedelta(seconds=config.timeout_seconds)
    if launched == 1 and STRATEGIES[config.strategy].shards:
        # FSDP2 and DeepSpeed need a process group even for a single process.
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "gloo" if config.device == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        # Given, so that a launcher's environment cannot override the configuration.
        mixed_precision="no",
        dynamo_backend="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
    torch.set_num_threads(config.threads)  # Accelerate sets another number where OMP_NUM_THREADS is not set.
    device = accelerator.device
    counted = torch.ones(1, device=device)
    if dist.is_initialized():
        dist.all_reduce(counted)
    check_world_size(config.processes, launched, joined=accelerator.num_processes)
    check_world_size(config.processes, launched, joined=int(counted))
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if facts is not None:  # Before the configuration decides which process groups to make.
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
    """Return the group that parallel.exchange_group asks for, connected; None: the default group. Collective."""
    if config.exchange_group == "default":
        return None
    if config.exchange_group == "gloo":
        return host_group
    group = dist.new_group(group_desc="balance", timeout=timedelta(seconds=config.timeout_seconds))
    # NCCL connects at the first message, which would otherwise be one inside a backward.
    dist.all_reduce(torch.zeros(1, device=config.device), group=group)
    return group


def _set_records_aside(folder: Path) -> None:
    """Move the records of an earlier start to a folder of their own, and let NCCL's watchdog leave new ones here."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # They must not keep the run from starting.
            keep_earlier(folder)
    # Defaults: a launcher may have set a better place.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "flight_"))


def _allow_many_connections() -> None:
    # Gloo connects every two processes, once for each group. The usual soft limit, 1,024 open files, is reached near
    # 1,000 processes, or near 500 on CPUs.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refuse_accelerate_plugins(config: ParallelConfig) -> None:
    for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"accelerate was launched with its own way to shard the model ({variable}=true), but "
                f"parallel.strategy={config.strategy} decides that here. Use launch/accelerate/processes.yaml, or your "
                "own file with distributed_type: MULTI_GPU"
            )


def check_world_size(asked: int, launched: int, joined: int) -> None:
    """Compare the three numbers of processes, which must be equal.

    A launcher that starts N processes which never meet trains N models, each of which takes itself for the only one.
    `accelerate launch --cpu`, or `--multi_gpu` on a machine without a GPU, do so silently.

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
