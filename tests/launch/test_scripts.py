"""The shell scripts: what shellcheck says, and what they refuse before they start anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.node.interface import interface_to
from tests.support.command import ROOT, environment
from tests.support.shellcheck import shellcheck
from trainer.errors import UserError

ENTRY = ROOT / "launch" / "node" / "entry.sh"


@pytest.mark.parametrize("name", ["launch/node/entry.sh", "launch/slurm/train.sbatch", "tests/launch/cluster/box.sh"])
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    assert shellcheck(ROOT / name) == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "PROCESSES_PER_NODE='', expected a number"),
        ({"PROCESSES_PER_NODE": "two"}, "PROCESSES_PER_NODE='two', expected a number"),
        ({"PROCESSES_PER_NODE": "1", "NUM_NODES": "2"}, "HEAD_HOST='' with 2 nodes"),
        ({"PROCESSES_PER_NODE": "1", "NUM_NODES": "2", "HEAD_HOST": "localhost"}, "each would wait for itself"),
        ({"PROCESSES_PER_NODE": "1", "NUM_NODES": "2", "NODE_RANK": "2", "HEAD_HOST": "a"}, "ranks count from 0"),
        ({"PROCESSES_PER_NODE": "1", "PYTHON": "/no/python"}, "no '/no/python' here"),
        ({"PROCESSES_PER_NODE": "1", "PROLOGUE": "/no/script"}, "PROLOGUE='/no/script' is no file here"),
        ({"PROCESSES_PER_NODE": "3"}, "train.global_batch=256 cannot be divided among parallel.processes=3"),
    ],
)
def test_a_node_refuses_what_would_wait_for_ever(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [ENTRY, ROOT / "configs" / "digits.yaml", f"output={tmp_path}"],
        cwd=ROOT,
        env=environment() | {"PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_this_machine_as_head_of_several_is_refused() -> None:
    with pytest.raises(UserError, match=r"leads to 127\.0\.0\.1, which no other host can reach"):
        interface_to("127.0.0.1")
    with pytest.raises(UserError, match="cannot reach HEAD_HOST=nohost"):
        interface_to("nohost.invalid")
