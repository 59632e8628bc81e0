"""A real Slurm on the two hosts of box.sh: munge, a controller, and a daemon on each host, in one folder."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODES = ("node1", "node2")

CONFIG = """\
ClusterName=box
SlurmctldHost=box(10.77.0.254)
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again; 5 is the least
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
PropagateResourceLimits=NONE
ReturnToService=2
# believe this file, not the cores that the machine has
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=600
NodeName=node1 NodeAddr=10.77.0.1 CPUs=8 RealMemory=8000 State=UNKNOWN
NodeName=node2 NodeAddr=10.77.0.2 CPUs=8 RealMemory=8000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preemption}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Slurm:
    """The cluster's commands."""

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to the cluster."""
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.job(job)["JobState"]

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.run("scontrol", "show", "job", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def on_host(name: str) -> list[str]:
    """The words that run a command on one of the hosts."""
    pid = (Path(os.environ["BOX"]) / name).read_text().strip()
    return ["nsenter", "--net", "--uts", "--mount", "--pid", f"--wd={ROOT}", "-t", pid, "--"]


@contextmanager
def slurm(folder: Path, proctrack: str, sends_user_signal: bool = True) -> Iterator[Slurm]:
    """Bring the cluster up, and take it down.

    Args:
        folder: an empty one.
        proctrack: linuxproc, under which a signal to a step reaches all its processes; pgid, under which it reaches
            only the launchers, as with cgroup on most real clusters.
        sends_user_signal: whether a job that is preempted gets the signal that it asked for, or SIGTERM.
    """
    preemption = "SlurmctldParameters=preempt_send_user_signal" if sends_user_signal else ""
    munge = folder / "munge"
    for name in (munge, folder / "state", *(folder / f"spool.{node}" for node in NODES)):
        name.mkdir(parents=True)
    munge.chmod(0o711)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, proctrack=proctrack, preemption=preemption))
    # slurmd loads a cgroup plugin even where nothing uses it; that of version 1 asks for nothing at the start
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    munged = [f"--{name}={munge / file}" for name, file in MUNGE_FILES.items()]
    key_keeper = _start(folder / "munged.log", ["munged", "--foreground", *munged])
    controller = _start(folder / "slurmctld.log", ["slurmctld", "-D", "-f", str(folder / "slurm.conf")])
    workers = [
        _start(folder / f"{node}.log", [*on_host(node), "slurmd", "-D", "-N", node, "-f", folder / "slurm.conf"])
        for node in NODES
    ]
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = Slurm()
    try:
        deadline = time.monotonic() + 60
        while cluster.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D", check=False).stdout.strip() != "2":
            logs = "".join(path.read_text() for path in folder.glob("*.log"))
            assert time.monotonic() < deadline, f"Slurm did not come up:\n{logs}"
            time.sleep(0.2)
        yield cluster
    finally:
        # By hand: one that has just come up may not hear `scontrol shutdown`.
        for node in NODES:
            subprocess.run([*on_host(node), "sh", "-c", f'kill "$(cat {folder}/slurmd.{node}.pid)"'], timeout=30)
        controller.terminate()
        key_keeper.terminate()
        for daemon in (*workers, controller, key_keeper):
            daemon.wait(timeout=30)
        del os.environ["SLURM_CONF"]


MUNGE_FILES = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def _start(log: Path, command: Sequence[object]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as stream:
        return subprocess.Popen([str(word) for word in command], stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
