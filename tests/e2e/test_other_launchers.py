"""Runs under torchrun, and with the variables of torch's launcher alone, as docs/launchers.md shows them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment
from tests.support.runs import checkpoint, wait_for_rank
from trainer.observe.metrics import read_metrics

TRAIN = ("-m", "trainer.train")
LENGTH = ("parallel.processes=2", "train.steps=40", "train.eval_every_steps=40", "checkpoint.every_steps=10")


@pytest.mark.slow
def test_torchrun_starts_a_run_again_after_a_fault(config: Path, run_dir: Path) -> None:
    options = [
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *TRAIN, str(config), *LENGTH]
    own_store = environment() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(command, cwd=ROOT, env=own_store, stdout=pipe, stderr=pipe, text=True)
    os.kill(wait_for_rank(launcher, rank=1, until=run_dir / "checkpoints" / "LATEST"), 9)
    said, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, errors
    assert "goes on after step" in said
    made = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert made == list(range(1, 41))


@pytest.mark.slow
def test_variables_alone_make_the_run_of_the_command(config: Path, run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, *TRAIN, str(config), *LENGTH]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    _, state, _ = checkpoint(run_dir)
    assert state["step"] == 40
