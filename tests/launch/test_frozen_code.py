"""A submission keeps the code that it runs: a later change reaches no job that was submitted before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.frozen_code import frozen_code
from launch.grid import points
from launch.submit import Job, render
from tests.support.shellcheck import shellcheck
from trainer.code_version import code_version

NET = """
from .width import WIDTH
from models.encoders.lenet import LeNet

class Net(LeNet):
    width_of_mine = WIDTH
"""
PROBE = """
import launch, paretrain, trainer.user_code as user_code
from trainer.code_version import code_version
from torch import nn
net = user_code.load("nets/tiny.py:Net", nn.Module, named="net", expected="a net")
print(launch.__file__, paretrain.__file__, user_code.__file__, net.width_of_mine, code_version(), sep="\\n")
"""


def test_a_change_after_the_submission_does_not_reach_the_job(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "tiny.py").write_text(NET)
    (tmp_path / "nets" / "width.py").write_text("WIDTH = 7")
    job = Job(1, 2)
    runs = points(config, ["model.encoder.name=nets/tiny.py:Net", *job.overrides], [])
    code = frozen_code(tmp_path / "run", config, [run.experiment for run in runs])
    assert not (tmp_path / "run").exists()
    code.write()
    code.write()
    (copy,) = (tmp_path / "run" / "code").iterdir()
    assert copy == code.folder
    script = render(config, runs, job, code)
    (tmp_path / "script").write_text(script)
    assert shellcheck(tmp_path / "script") == ""
    assert f"set -- {code.config} " in script
    assert code.config.read_bytes() == config.read_bytes()

    (tmp_path / "nets" / "width.py").write_text("WIDTH = 8")
    values, _, _ = script.partition("set -euo pipefail")
    # What entry.sh sets, in the folder of the command, whose code has changed meanwhile.
    probe = f'{values}\nPYTHONPATH=${{PARETRAIN_LAUNCH%/*}} "$PYTHON" -P -c "$PROBE"'
    done = subprocess.run(["bash", "-c", probe], env=os.environ | {"PROBE": PROBE}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *files, width, version = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(copy) for file in files)
    assert width == "7"
    assert version == str(code_version())
    assert os.access(copy / "launch" / "node" / "entry.sh", os.X_OK)

    later = frozen_code(tmp_path / "run", config, [run.experiment for run in runs])
    assert later.folder != code.folder


def test_the_same_code_has_one_copy_and_no_code_of_the_user_is_needed(config: Path, tmp_path: Path) -> None:
    runs = points(config, [], [])
    first, second = (frozen_code(tmp_path, config, [run.experiment for run in runs]) for _ in range(2))
    assert first == second
    assert not any(name.startswith("user_code/") for name in first.files)
    assert Path(sys.executable) not in first.files.values()
