"""Test every node of a job before training, in less than a minute, and name the faulty ones.

entry.sh starts it like a training: MODULE=launch.node.preflight launch/node/entry.sh CONFIG [a.b=c ...], or
`paretrain submit ... --preflight only`.
"""

import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from trainer.config.file import load_config
from trainer.data.format.manifest import MANIFEST_NAME
from trainer.errors import UserError, run_command
from trainer.runtime.agreement import facts_of, facts_of_data
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.launcher import end_with_launcher

SLOW = 0.5
"""A host below this fraction of the median speed is faulty. Healthy hosts of one kind differ by a tenth."""
MAX_CLOCK_SECONDS = 5.0
"""The largest difference from the median clock. Beyond it, logs and the times of files mislead."""
FOLDER_SECONDS = 10.0
"""How long a network file system may take to show a host the files of another host."""
REPEATS = 5


@dataclass(frozen=True)
class Facts:
    """The measurements of one process.

    Attributes:
        host: name of its machine.
        clock: seconds since the epoch, read by all processes at the same moment.
        gigaflops: 10^9 floating point operations per second in a float32 matrix product.
        receives: GB/s from the previous rank while all ranks send; None with one process.
        misses: hosts whose files in the run's folder it cannot see.
    """

    host: str
    clock: float
    gigaflops: float
    receives: float | None
    misses: frozenset[str]


def preflight(config: Path, overrides: Sequence[str]) -> None:
    """Measure in every process, and print one line for each host. Collective.

    Raises:
        UserError: a host is faulty; raised on every rank.
    """
    end_with_launcher()
    experiment = load_config(config, overrides)
    mine = facts_of(experiment)
    for name, source in experiment.data.folders.items():
        manifest = Path(source.path) / MANIFEST_NAME
        mine |= facts_of_data(manifest, name) if manifest.is_file() else {}
    with joined(experiment.parallel, facts=mine) as runtime:
        runtime.gather(None)
        clock = time.time()
        host = socket.gethostname()
        hosts = runtime.gather(host)
        facts = Facts(
            host=host,
            clock=clock,
            gigaflops=_gigaflops(runtime.device),
            receives=_receives(runtime) if runtime.world_size > 1 else None,
            misses=_misses(experiment.run_dir, runtime, hosts),
        )
        reduced = _all_reduces(runtime) if runtime.world_size > 1 else None
        found = runtime.gather(facts)
        if runtime.is_main:
            print(summary(found, reduced), flush=True)
        problems = faults(found)
        if problems:
            raise UserError("preflight: " + "\n  ".join([f"{len(problems)} problems", *problems]))


def faults(found: Sequence[Facts]) -> list[str]:
    """Return one line for each fault, which begins with the host's name. `found` is in the order of ranks."""
    hosts = list(dict.fromkeys(facts.host for facts in found))
    median_clock = median(facts.clock for facts in found)
    problems = [
        f"{facts.host}: its clock is {facts.clock - median_clock:+.0f} s off: set up NTP there"
        for facts in found
        if abs(facts.clock - median_clock) > MAX_CLOCK_SECONDS
    ]
    for host in hosts:
        missed = sorted(set().union(*(facts.misses for facts in found if facts.host == host)))
        if missed:
            problems.append(
                f"{host} does not see in the run's folder what {', '.join(missed)} wrote there: choose an `output` on "
                "a file system that all nodes share"
            )
    problems += _slow(
        "computes", {host: min(f.gigaflops for f in found if f.host == host) for host in hosts}, "GFLOP/s"
    )
    links = {
        f"{found[rank - 1].host} -> {facts.host}": facts.receives
        for rank, facts in enumerate(found)
        if facts.receives is not None and facts.host != found[rank - 1].host
    }
    return list(dict.fromkeys(problems + _slow("carries", links, "GB/s")))


def summary(found: Sequence[Facts], reduced: float | None) -> str:
    """Return one line for each host."""
    lines = [f"preflight: {len(found)} processes" + (f", all-reduce {reduced:.3g} GB/s" if reduced else "")]
    for host in dict.fromkeys(facts.host for facts in found):
        here = [facts for facts in found if facts.host == host]
        speeds = [facts.receives for facts in here if facts.receives is not None]
        lines.append(
            f"  {host}: {len(here)} processes, {min(facts.gigaflops for facts in here):,.0f} GFLOP/s each"
            + (f", receives {min(speeds):.3g} GB/s" if speeds else "")
        )
    return "\n".join(lines)


def _slow(verb: str, speeds: Mapping[str, float], unit: str) -> list[str]:
    if len(speeds) < 2:
        return []
    usual = median(speeds.values())
    return [
        f"{name} {verb} {speed:.3g} {unit}, the median is {usual:.3g}: leave it out (--sbatch=--exclude=HOST)"
        for name, speed in speeds.items()
        if speed < SLOW * usual
    ]


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of several times: the speed of the machine while nothing disturbs it."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _gigaflops(device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, device) / 1e9


def _all_reduces(runtime: Runtime) -> float:
    """Return the bus bandwidth of an all-reduce in GB/s, as defined by NCCL's tests."""
    payload = _payload(runtime.device)
    seconds = _best_seconds(lambda: dist.all_reduce(payload), runtime.device)
    return 2 * (runtime.world_size - 1) / runtime.world_size * payload.nbytes / seconds / 1e9


def _receives(runtime: Runtime) -> float:
    payload = _payload(runtime.device)
    received = torch.empty_like(payload)
    to, source = (runtime.rank + 1) % runtime.world_size, (runtime.rank - 1) % runtime.world_size

    def pass_on() -> None:
        works = dist.batch_isend_irecv([dist.P2POp(dist.isend, payload, to), dist.P2POp(dist.irecv, received, source)])
        for work in works:
            work.wait()

    return payload.nbytes / _best_seconds(pass_on, runtime.device) / 1e9


def _payload(device: torch.device) -> torch.Tensor:
    return torch.zeros((256 if device.type == "cuda" else 8) * 2**18, device=device)


def _misses(run_dir: Path, runtime: Runtime, hosts: Sequence[str]) -> frozenset[str]:
    """Return the hosts whose files this process cannot see. Collective."""
    mark = runtime.gather(f"{time.time_ns():x}")[0]

    def path(rank: int) -> Path:
        return run_dir / f".preflight-{mark}-{rank}"

    with runtime.raise_together():
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            path(runtime.rank).touch()
        except OSError as error:
            raise UserError(f"{socket.gethostname()} cannot write to the run's folder {run_dir}: {error}") from None
    deadline = time.monotonic() + FOLDER_SECONDS
    missing = set(range(runtime.world_size))
    while missing and time.monotonic() < deadline:
        # List the folder: a network file system may cache that a single name does not exist.
        seen = {entry.name for entry in run_dir.iterdir()}
        missing = {rank for rank in missing if path(rank).name not in seen}
        if missing:
            time.sleep(0.1)
    runtime.gather(None)
    path(runtime.rank).unlink()
    return frozenset(hosts[rank] for rank in missing)


def main() -> None:
    """Run the command line."""
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m launch.node.preflight configs/digits.yaml [a.b=c ...]")
    preflight(Path(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    sys.exit(run_command(main))
