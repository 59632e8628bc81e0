"""What a job whose step has failed does next. On a real Slurm: cluster/test_slurm.py."""

from pathlib import Path

import pytest

from launch.after_fault import bad_node, is_fault, next_action
from launch.diagnose.rank import Blame, Rank
from trainer.runtime.checkpoints.folder import CHECKPOINTS

KILLED, LOST_PEER, BY_SRUN = 137, 3, 143


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        ([KILLED, BY_SRUN], True),
        ([LOST_PEER, KILLED], True),
        ([1, BY_SRUN], True),
        ([2, BY_SRUN], False),
        ([2, LOST_PEER], False),
        ([75, BY_SRUN], False),
        ([BY_SRUN, BY_SRUN], False),
        ([0, 0], False),
        ([], False),
    ],
)
def test_faults_are_told_from_mistakes_and_requests(codes: list[int], fault: bool) -> None:
    assert is_fault(codes) is fault


def ranks(*blames: Blame) -> list[Rank]:
    return [Rank(number, f"host{number // 2}", blame, "") for number, blame in enumerate(blames)]


V, S, F, K = Blame.VICTIM, Blame.SILENT, Blame.FAILED, Blame.KILLED


@pytest.mark.parametrize(
    ("blames", "node"),
    [
        ((V, V, K, V), 1),
        ((V, V, S, S), 1),
        ((K, K), 0),
        ((K, V, K, V), None),  # Two nodes at once: the job or the network.
        ((S, S, S, S), None),
        ((F, V, V, V), None),  # A Python exception is the program's.
        ((), None),
    ],
)
def test_a_node_is_bad_where_its_processes_alone_have_failed(blames: tuple[Blame, ...], node: int | None) -> None:
    assert bad_node(ranks(*blames), processes_per_node=2) == node


def test_a_start_that_saved_nothing_is_not_repeated_unless_a_node_is_to_blame(tmp_path: Path) -> None:
    start = tmp_path / "logs" / "12.0" / "trainer.train"
    for number, host in enumerate(("alpha", "beta")):
        node = start / f"node{number}" / "2026-01-01T01:00:00.000000"
        (node / "1_x" / "attempt_0" / "0").mkdir(parents=True)
        said = "" if number else "paretrain: error: rank 0 on alpha stopped: another process of this run is gone\n"
        (node / "1_x" / "attempt_0" / "0" / "stderr.log").write_text(said)
        (node / "host").write_text(f"{host}\n")
        (node / "exit_code").write_text(f"{(LOST_PEER, KILLED)[number]}\n")
    assert next_action(tmp_path, start, 1, "") == "end"
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "LATEST").write_text("step_00000004")
    assert next_action(tmp_path, start, 1, "") == "requeue"
    (start / "node1" / "2026-01-01T01:00:00.000000" / "launcher.log").write_text(
        "error: rank 1 (process 77) was ended by SIGKILL on beta; the other processes were stopped\n"
    )
    assert next_action(tmp_path, start, 1, "step_00000004") == "end 1"
    assert next_action(tmp_path, start, 1, "step_00000002") == "requeue 1"
    assert next_action(tmp_path, tmp_path / "logs" / "13.0" / "trainer.train", 1, "") == "end", "it left no logs"
