"""Runs on a real Slurm of two hosts: `paretrain submit`, preemption, the end of a job's time, cancellation."""

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.cluster.conftest import BOX, STEPS, parameters, steps, wait_until
from tests.support.command import ROOT, Command
from tests.support.slurm import Slurm, on_host, slurm

UNDER = {"pgid": ("pgid",), "linuxproc": ("linuxproc",), "linuxproc-term": ("linuxproc", False)}
"""Arguments of `slurm`: how nodes track processes; in the last, a preempted job hears TERM, not USR1 as it asked."""


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slurm]:
    """Two nodes of one of the kinds above."""
    with slurm(BOX / tmp_path.name, *UNDER[request.param]) as cluster:
        yield cluster


class Job:
    """A run that was submitted.

    Args:
        cluster: where.
        submit: the real command.
        config: the run's file.
        name: the run's name.
        overrides: of its configuration.
        nodes: that the two processes are spread over.
    """

    def __init__(
        self, cluster: Slurm, submit: Command, config: Path, name: str, *overrides: str, nodes: int = 2
    ) -> None:
        self.cluster = cluster
        self.run_dir = config.parent / "runs" / name
        size = ("--nodes", nodes, "--processes-per-node", 2 // nodes)
        done = submit("submit", config, *size, f"name={name}", *overrides)
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.split()[1].rstrip(":")

    @property
    def restarts(self) -> int:
        """How often it came back."""
        return int(self.cluster.job(self.number)["Restarts"])

    def log(self) -> str:
        """What it has said."""
        return "\n".join(path.read_text() for path in self.run_dir.glob("logs/*.out"))

    def wait_for_step(self, step: int) -> None:
        """Wait until it has made a step."""
        wait_until(lambda: len(steps(self.run_dir)) >= step, 120, f"step {step}", self.log)

    def preempt(self) -> None:
        """Another job asks for all of both nodes at a higher priority; returns when this one was requeued."""
        before = self.restarts
        self.cluster.run("sbatch", "-p", "high", "-N2", "-c8", "-o", "/dev/null", "--wrap", "sleep 1")
        wait_until(lambda: self.restarts == before + 1, 60, "the requeue", self.log)

    def wait_for_the_end(self, limit_seconds: float = 90) -> None:
        """Wait until it is complete, with every step made once and nothing left over."""
        going = ("PENDING", "RUNNING", "COMPLETING")
        wait_until(lambda: self.cluster.state(self.number) not in going, limit_seconds, "the end", self.log)
        assert self.cluster.state(self.number) == "COMPLETED", self.log()
        assert not list(self.run_dir.glob("stop*"))


@pytest.mark.parametrize(
    ("cluster", "overrides"),
    [
        # Each node holds one copy of the model; gradients alone travel between them.
        pytest.param("pgid", ("parallel.strategy=fsdp2", "parallel.shard_processes=1"), id="hsdp"),
        pytest.param("linuxproc-term", (), id="ddp"),
    ],
    indirect=["cluster"],
)
def test_a_preempted_run_comes_back_to_the_same_parameters(
    cluster: Slurm,
    paretrain: Command,
    config: Path,
    expected: Callable[..., bytes],
    overrides: tuple[str, ...],
    request: pytest.FixtureRequest,
) -> None:
    job = Job(cluster, paretrain, config, f"preempted-{request.node.callspec.id}", *overrides)
    job.wait_for_step(5)
    job.preempt()
    assert 5 <= steps(job.run_dir)[-1] < STEPS
    job.wait_for_the_end()
    assert "goes on after step" in job.log()
    assert steps(job.run_dir) == list(range(1, STEPS + 1))
    assert parameters(job.run_dir) == expected(STEPS, *overrides)


@pytest.mark.parametrize("cluster", ["pgid"], indirect=True)
def test_a_cancelled_run_saves_and_stays_away(cluster: Slurm, paretrain: Command, config: Path) -> None:
    job = Job(cluster, paretrain, config, "cancelled")
    job.wait_for_step(5)
    cluster.run("scancel", job.number)
    wait_until(lambda: cluster.state(job.number) not in ("RUNNING", "COMPLETING"), 60, "the end", job.log)
    wait_until((job.run_dir / "checkpoints" / "LATEST").exists, 20, "a checkpoint", job.log)
    assert cluster.state(job.number) == "CANCELLED"
    assert job.restarts == 0
    assert not (job.run_dir / "requeue").exists()


@pytest.mark.parametrize("cluster", ["pgid"], indirect=True)
def test_a_killed_process_comes_back_on_another_node(
    cluster: Slurm, paretrain: Command, config: Path, expected: Callable[..., bytes]
) -> None:
    job = Job(cluster, paretrain, config, "moved", "checkpoint.every_steps=4", nodes=1)
    job.wait_for_step(6)
    wait_until((job.run_dir / "checkpoints" / "LATEST").exists, 20, "a checkpoint", job.log)
    about = json.loads((job.run_dir / "heartbeat.json").read_text())
    cluster.run(*on_host(about["host"]), "kill", "-9", about["pid"])
    job.wait_for_the_end(limit_seconds=200)
    assert job.restarts == 1
    assert "goes on after step" in job.log()
    assert cluster.job(job.number)["ExcNodeList"] == about["host"]
    (other,) = {"node1", "node2"} - {about["host"]}
    assert cluster.job(job.number)["NodeList"] == other
    assert parameters(job.run_dir) == expected(STEPS)


@pytest.mark.parametrize("cluster", ["pgid"], indirect=True)
def test_what_slurm_refuses_is_said_in_its_own_words(cluster: Slurm, paretrain: Command, config: Path) -> None:
    arguments = ("--nodes", 2, "--processes-per-node", 1, "name=refused")
    done = paretrain("submit", config, *arguments, "--partition", "nowhere")
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cluster", ["linuxproc", "pgid"], indirect=True)
def test_ten_preemptions_at_random_steps_leave_no_trace(
    cluster: Slurm,
    paretrain: Command,
    config: Path,
    expected: Callable[..., bytes],
    request: pytest.FixtureRequest,
) -> None:
    seed, num_steps = random.randrange(2**32), 160
    print(f"seed {seed}")
    draw = random.Random(seed)
    length = (f"train.steps={num_steps}", f"train.eval_every_steps={num_steps}", f"checkpoint.every_steps={num_steps}")
    job = Job(cluster, paretrain, config, f"often-{request.node.callspec.id}", *length)
    for _ in range(10):
        made = len(steps(job.run_dir))
        assert made < num_steps - 10, f"at step {made} after {job.restarts} preemptions: it needs more steps"
        job.wait_for_step(made + draw.randint(1, 8))
        job.preempt()
    job.wait_for_the_end()
    print(f"preempted after steps {re.findall(r'goes on after step ([0-9]+)', job.log())}")
    assert job.restarts == 10
    assert steps(job.run_dir) == list(range(1, num_steps + 1))
    assert parameters(job.run_dir) == expected(num_steps)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cluster", ["pgid"], indirect=True)
def test_a_run_whose_time_ends_comes_back_until_it_is_done(
    cluster: Slurm, config: Path, expected: Callable[..., bytes]
) -> None:
    run_dir, output = config.parent / "runs" / "short", config.parent / "short.out"
    num_steps = 600  # a minute of pauses alone, so one job cannot do it
    length = (f"train.steps={num_steps}", f"train.eval_every_steps={num_steps}", f"checkpoint.every_steps={num_steps}")
    # The script itself, without `paretrain submit`, which refuses so short a time.
    options = ("--nodes=2", "--time=1", "--signal=B:USR1@10", f"--chdir={ROOT}", f"--output={output}")
    export = f"--export=ALL,PROCESSES_PER_NODE=1,PYTHON={sys.executable}"
    command = (ROOT / "launch" / "slurm" / "train.sbatch", config, "name=short", *length, "parallel.processes=2")
    number = cluster.run("sbatch", "--parsable", *options, export, *command).stdout.strip()

    going = ("PENDING", "RUNNING", "COMPLETING")
    wait_until(lambda: cluster.state(number) not in going, 800, "the end", output.read_text)
    said = output.read_text()
    assert cluster.state(number) == "COMPLETED", said
    assert int(cluster.job(number)["Restarts"]) == said.count("asked to make room: saved") >= 1
    assert steps(run_dir) == list(range(1, num_steps + 1))
    assert parameters(run_dir) == expected(num_steps)
