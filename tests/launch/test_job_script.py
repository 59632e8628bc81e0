"""What `paretrain submit` renders, run by bash with a Slurm of paper. On a real one: cluster/test_slurm.py."""

import os
import subprocess
from pathlib import Path

import pytest

from launch.grid import points
from launch.submit import LAUNCH, Job, render
from tests.support.command import ROOT
from tests.support.shellcheck import shellcheck
from trainer.errors import UserError

PAPER = {
    "srun": 'printf "%s\\n" "$PYTHON" "$HEAD_HOST" "$HEAD_PORT" "$@" >"$SEEN"',
    "scontrol": """case "$2 $3" in
  'hostnames n[1-2]') printf 'n1\\nn2\\n' ;;
  'node n1') echo 'NodeName=n1 NodeAddr=127.0.0.9 NodeHostName=n1' ;;
  'job 12') echo 'JobState=RUNNING PreemptTime=None' ;;
esac""",
}


def seen_by_srun(script: str, folder: Path) -> list[str]:
    """Run a job of two nodes; the interpreter, the head's address and port, and what srun was called with."""
    for name, body in PAPER.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
    paper = {"PATH": f"{folder}:{os.environ['PATH']}", "SEEN": str(folder / "seen")}
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=os.environ | job | paper, check=True, timeout=60)
    return (folder / "seen").read_text().splitlines()


def test_a_job_in_a_container_sees_what_it_needs(config: Path, run_dir: Path, tmp_path: Path) -> None:
    image = "registry.example.com#paretrain:1"
    job = Job(2, 1, container=image, mounts="/shared/faces:/data:ro")
    script = render(config, points(config, job.overrides, []), job)
    (tmp_path / "script").write_text(script)
    assert shellcheck(tmp_path / "script") == ""
    assert seen_by_srun(script, tmp_path) == [
        "python",
        "127.0.0.9",
        "20012",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        f"--container-image={image}",
        f"--container-mounts={ROOT}:{ROOT},{run_dir}:{run_dir},{LAUNCH}:{LAUNCH},/shared/faces:/data:ro",
        f"--container-workdir={ROOT}",
        "--no-container-entrypoint",
        str(LAUNCH / "node" / "entry.sh"),
        str(config),
        "parallel.processes=2",
    ]


def test_mounts_without_a_container_are_refused() -> None:
    with pytest.raises(UserError, match="--container-mounts /a:/b needs --container IMAGE"):
        Job(2, 1, mounts="/a:/b")
