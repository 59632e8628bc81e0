"""Runs on a real Slurm of two hosts: `paretrain submit`, preemption, cancellation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Command
from tests.launch.cluster.conftest import BOX, STEPS, parameters, steps, wait_until
from tests.launch.cluster.slurm import Slurm, slurm


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slurm]:
    """Two nodes; the test's parameters say how they track processes, and what they send to a job that is preempted."""
    with slurm(BOX / tmp_path.name, *request.param) as cluster:
        yield cluster


def submitted(cluster: Slurm, paretrain: Command, *arguments: object) -> str:
    """Submit a job; its number."""
    done = paretrain("submit", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(":")


def log(run_dir: Path) -> str:
    """What the run's jobs have said."""
    return "\n".join(path.read_text() for path in run_dir.glob("logs/*.out"))


@pytest.mark.parametrize(
    "cluster", [("linuxproc", True), ("pgid", True), ("pgid", False)], indirect=True, ids=["linuxproc", "pgid", "term"]
)
def test_a_preempted_run_comes_back_to_the_same_parameters(
    cluster: Slurm, paretrain: Command, config: Path, expected: bytes, request: pytest.FixtureRequest
) -> None:
    name = f"preempted-{request.node.callspec.id}"
    run_dir = config.parent / "runs" / name
    job = submitted(cluster, paretrain, config, "--nodes", 2, "--processes-per-node", 1, f"name={name}")
    wait_until(lambda: len(steps(run_dir)) >= 5, 120, f"step 5\n{log(run_dir)}")
    # All of both nodes, at a higher priority: the first job must go.
    cluster.run("sbatch", "-p", "high", "-N2", "-c8", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60, f"the requeue\n{log(run_dir)}")
    assert 5 <= steps(run_dir)[-1] < STEPS
    wait_until(lambda: cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), 90, f"the end\n{log(run_dir)}")
    assert cluster.state(job) == "COMPLETED", log(run_dir)
    assert "goes on after step" in log(run_dir)
    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert parameters(run_dir) == expected
    assert not list(run_dir.glob("stop*"))


@pytest.mark.parametrize("cluster", [("pgid",)], indirect=True, ids=["pgid"])
def test_a_cancelled_run_saves_and_stays_away(cluster: Slurm, paretrain: Command, config: Path) -> None:
    run_dir = config.parent / "runs" / "cancelled"
    job = submitted(cluster, paretrain, config, "--nodes", 2, "--processes-per-node", 1, "name=cancelled")
    wait_until(lambda: len(steps(run_dir)) >= 5, 120, f"step 5\n{log(run_dir)}")
    cluster.run("scancel", job)
    wait_until(lambda: cluster.state(job) not in ("RUNNING", "COMPLETING"), 60, f"the end\n{log(run_dir)}")
    wait_until(lambda: (run_dir / "checkpoints" / "LATEST").exists(), 20, f"a checkpoint\n{log(run_dir)}")
    assert cluster.state(job) == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"
    assert not (run_dir / "requeue").exists()


@pytest.mark.parametrize("cluster", [("pgid",)], indirect=True, ids=["pgid"])
def test_what_slurm_refuses_is_said_in_its_own_words(cluster: Slurm, paretrain: Command, config: Path) -> None:
    arguments = ("--nodes", 2, "--processes-per-node", 1, "name=refused")
    done = paretrain("submit", config, *arguments, "--partition", "nowhere")
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr
