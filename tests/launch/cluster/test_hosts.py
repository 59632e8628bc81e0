"""Runs on two hosts without Slurm: launch/node/entry.sh, typed on each of them."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launch.diagnose.diagnosis import diagnose
from tests.launch.cluster.conftest import STEPS, TIMEOUT_SECONDS, parameters, steps, wait_until
from tests.support.command import ROOT, environment
from tests.support.slurm import NODES, on_host

Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start entry.sh on both hosts, or on some of them. Nothing of it outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, nodes: Sequence[str] = NODES, **variables: str) -> list["subprocess.Popen[str]"]:
        common = {"HEAD_HOST": "node1", "NUM_NODES": "2", "PROCESSES_PER_NODE": "1", "PYTHON": sys.executable}
        return [_start(node, str(rank), common | variables, arguments) for rank, node in enumerate(nodes)]

    def _start(
        node: str, rank: str, variables: dict[str, str], arguments: tuple[object, ...]
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*on_host(node), "launch/node/entry.sh", *map(str, arguments)],
            cwd=ROOT,
            env=environment() | variables | {"NODE_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            # With its children, which hold the pipe.
            for running in (*psutil.Process(process.pid).children(recursive=True), process):
                running.kill()
        process.communicate()


@contextmanager
def cable_cut(node: str) -> Iterator[None]:
    """Packets to and from the host vanish inside the block."""
    subprocess.run(["ip", "link", "set", node, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", node, "up"], check=True)


def wait_for_step(step: int, run_dir: Path, processes: list["subprocess.Popen[str]"]) -> None:
    """Wait until the run has made a step; not for one that has ended."""
    wait_until(lambda: len(steps(run_dir)) >= step or any(p.poll() is not None for p in processes), 120, f"step {step}")
    for process in processes:
        assert process.poll() is None, process.communicate()[0]


def test_a_cut_cable_ends_both_hosts_and_healed_they_go_on(
    start: Start, config: Path, expected: Callable[[int], bytes]
) -> None:
    run_dir = config.parent / "runs" / "cut"
    arguments = (config, "name=cut", "checkpoint.every_steps=4")
    processes = start(*arguments)
    wait_for_step(6, run_dir, processes)
    with cable_cut("node2"):
        deadline = time.monotonic() + TIMEOUT_SECONDS + 60
        said = [process.communicate(timeout=deadline - time.monotonic())[0] for process in processes]
    for rank, (process, output) in enumerate(zip(processes, said, strict=True)):
        assert process.returncode == 3, output
        assert f"rank {rank} on {NODES[rank]} stopped: another process of this run is gone or stuck" in output
        assert "Traceback" not in output
    assert "every rank lost another one, and none failed by itself: the network" in diagnose(run_dir)
    for process in (processes := start(*arguments)):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert parameters(run_dir) == expected(STEPS)


def test_a_killed_process_is_named_and_both_hosts_start_again_as_often_as_they_may(start: Start, config: Path) -> None:
    run_dir = config.parent / "runs" / "killed"
    processes = start(config, "name=killed", "checkpoint.every_steps=4", MAX_RESTARTS="1")
    killed = []
    for step in (6, 12):
        wait_for_step(step, run_dir, processes)
        found = subprocess.run(
            [*on_host("node2"), "pgrep", "-n", "-f", "trainer.train"], capture_output=True, text=True
        )
        killed.append(found.stdout.strip())
        subprocess.run([*on_host("node2"), "kill", "-9", killed[-1]], check=True)
    said = [process.communicate(timeout=TIMEOUT_SECONDS + 60)[0] for process in processes]
    assert [process.returncode for process in processes] == [3, 137], said
    for worker in killed:
        assert f"rank 1 (process {worker}) was ended by SIGKILL on node2" in said[1]
    for output in said:
        assert re.search("starts again from step_0000000[48], 1 of 1 times", output)
    assert said[0].count("rank 0 on node1 stopped: another process of this run is gone or stuck") == 2
    assert "first cause: rank 1 on node2: was ended by SIGKILL" in diagnose(run_dir)


def test_a_head_that_was_rebooted_meets_the_other_host_again(
    start: Start, config: Path, expected: Callable[[int], bytes]
) -> None:
    run_dir = config.parent / "runs" / "rebooted"
    arguments = (config, "name=rebooted", "checkpoint.every_steps=4")
    head, other = start(*arguments, MAX_RESTARTS="2")
    wait_for_step(6, run_dir, [head, other])
    for running in (*psutil.Process(head.pid).children(recursive=True), head):
        running.kill()
    (head,) = start(*arguments, nodes=NODES[:1], MAX_RESTARTS="2")
    for process in (head, other):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert parameters(run_dir) == expected(STEPS)


def test_a_host_that_nobody_joins_says_so(start: Start, config: Path) -> None:
    (alone,) = start(config, "name=alone", nodes=NODES[:1], START_SECONDS="5")
    output, _ = alone.communicate(timeout=120)
    assert alone.returncode == 3, output
    assert "node 0 on node1 did not meet the other nodes at node1 port 29500: Timed out after" in output
    assert "Traceback" not in output


def test_a_folder_that_is_not_shared_is_found_before_training(start: Start, config: Path) -> None:
    apart = config.parent / "apart"
    apart.mkdir()
    subprocess.run([*on_host("node2"), "mount", "-t", "tmpfs", "apart", str(apart)], check=True)
    first, second = start(config, "name=x", f"output={apart}", MODULE="launch.node.preflight")
    output, _ = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (2, 2), output
    assert "node1 does not see in the run's folder what node2 wrote there" in output
    assert "node2 does not see in the run's folder what node1 wrote there" in output
    assert "GFLOP/s each, receives" in output
