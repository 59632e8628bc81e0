"""Commands in a folder of the user's own code, whatever that is called, and the user's own encoder in them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment

NET = """\
from torch import nn

from .layers import project

class Net(nn.Module):
    def __init__(self, shape, width=8):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Flatten(), project(shape, width))

    def forward(self, x):
        return self.layers(x)
"""
LAYERS = """\
import math

from torch import nn

def project(shape, width):
    return nn.Linear(math.prod(shape), width)
"""


@pytest.fixture
def folder(tmp_path: Path, config: Path) -> Path:
    """A research repository, which has all names of ours too; each of these files ends a process that imports it."""
    for name in ("models", "launch", "paretrain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} of the user')\n")
    for name in ("trainer", "data", "utils"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the user')\n")
    (tmp_path / "models" / "tiny.py").write_text(NET)
    (tmp_path / "models" / "layers.py").write_text(LAYERS)
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "tiny.py").write_text(NET)
    (tmp_path / "my_nets" / "layers.py").write_text(LAYERS)
    return tmp_path


def run(folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with our packages installed, as it were."""
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )


def paretrain(folder: Path, *commands: str) -> str:
    """Run commands one after another in one process; return what they print.

    The installed command is a file in bin/, so the current folder is not on its path; nor is it with -P.
    """
    program = "import paretrain_command as p, sys; sys.exit(max(p.main(words.split()) for words in sys.argv[1:]))"
    done = run(folder, sys.executable, "-P", "-c", program, *commands)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of(run_dir: Path) -> dict[str, str]:
    """The user's files that a run says it has loaded."""
    found: dict[str, str] = json.loads((run_dir / "run.json").read_text())["user_code"]
    return found


def network(folder: Path) -> dict[str, str]:
    """The files of the network in a folder, as a run should name them."""
    paths = (folder / "layers.py", folder / "tiny.py")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


FROM_FILE = "model.encoder.name=models/tiny.py:Net model.encoder.options={}"
DOTTED = "model.encoder.name=my_nets.tiny.Net model.encoder.options={}"


def test_one_process_works_in_a_folder_that_has_our_names(folder: Path) -> None:
    said = paretrain(
        folder,
        "data digits --out data/digits",
        f"check config.yaml {DOTTED}",
        f"train config.yaml {DOTTED} train.steps=2 data.workers=1",
        "eval runs/run",
        "report runs/run",
        "export runs/run --out model.safetensors",
    )
    assert "ready to train" in said
    assert code_of(folder / "runs" / "run") == network(folder / "my_nets")
    assert "from my_nets.tiny import Net as own_encoder" in (folder / "model.md").read_text()


def test_processes_that_we_start_work_in_such_a_folder(folder: Path) -> None:
    paretrain(
        folder,
        f"train config.yaml {FROM_FILE} train.steps=2 --processes 2",
        "export runs/run --out model.safetensors",
        f"sweep config.yaml {FROM_FILE} --grid seed=3 train.steps=1",
    )
    assert code_of(folder / "runs" / "run") == code_of(folder / "runs" / "run-seed-3") == network(folder / "models")
    assert 'own_encoder = runpy.run_path("models/tiny.py")["Net"]' in (folder / "model.md").read_text()


def test_the_scripts_of_a_node_work_in_such_a_folder(folder: Path) -> None:
    entry = ROOT / "launch" / "node" / "entry.sh"
    arguments = ["config.yaml", "model.encoder.name=my_nets/tiny.py:Net", "model.encoder.options={}", "train.steps=1"]
    done = run(folder, entry, *arguments, PYTHON=sys.executable, PROCESSES_PER_NODE="1")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "run" / "summary.json").exists()


def test_a_bare_accelerate_launch_says_what_hides_ours(config: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    options = ["--config_file", ROOT / "launch" / "accelerate" / "processes.yaml", "--num_processes", 2]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "trainer.train", config]
    done = run(tmp_path, *launch)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("paretrain: error: ")]
    assert len(said) == 1
    assert (
        f"{tmp_path}/models/__init__.py hides the package `models` of paretrain. Type PYTHONSAFEPATH=1 before"
        in said[0]
    )
    assert 'File "' not in done.stderr.partition(said[0])[0]
    done = run(tmp_path, *launch, "train.steps=1", "parallel.processes=2", PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("trainer.py", ".", "It is found by PYTHONPATH: type env -u PYTHONPATH before the command"),
        ("launch/__init__.py", "ros", "It is found by PYTHONPATH"),
    ],
)
def test_what_pythonpath_puts_before_ours_is_named(name: str, path: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    python_path = f"{path}{os.pathsep}{ROOT}"
    done = run(tmp_path, sys.executable, "-P", "-m", "paretrain_command", "--help", PYTHONPATH=python_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    package = name.partition("/")[0].removesuffix(".py")
    assert f" hides the package `{package}` of paretrain. {said}" in line
    assert str(file) in line


def test_a_folder_without_an_init_hides_ours_where_we_are_installed_as_editable(tmp_path: Path) -> None:
    """Such an installation is asked last, after every folder on the path."""
    (tmp_path / "models").mkdir()
    program = (
        f"import paretrain_command as p, sys; sys.path.remove({str(ROOT)!r}); sys.path.insert(0, ''); "
        "sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith('__editable')]; print(p.hidden())"
    )
    said = run(tmp_path, sys.executable, "-P", "-c", program).stdout
    assert f"{tmp_path}/models hides the package `models` of paretrain. Type PYTHONSAFEPATH=1" in said


def test_another_installed_package_is_named(tmp_path: Path) -> None:
    """As Coqui's `trainer` would be, before ours on the path."""
    (tmp_path / "site-packages" / "trainer").mkdir(parents=True)
    (tmp_path / "site-packages" / "trainer" / "__init__.py").write_text("")
    program = "import sys; sys.path.insert(0, 'site-packages'); import paretrain_command as p; print(p.hidden())"
    said = run(tmp_path, sys.executable, "-P", "-c", program).stdout
    assert f"{tmp_path}/site-packages/trainer/__init__.py hides the package `trainer`" in said
    assert "install paretrain in an environment of its own" in said


def test_a_launcher_that_ends_all_ranks_at_once_does_not_silence_rank_0() -> None:
    """Rank 1 is first at an error that both have. It does not end before rank 0 has said it; alone, it says it."""
    program = (
        "import paretrain_command as p; p.SECONDS_FOR_RANK_0 = {}; "
        "print('here', flush=True); p.say_by_one_rank('no data')"
    )

    def rank(number: int, seconds: float) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", program.format(seconds)]
        variables = environment() | {"PYTHONPATH": str(ROOT), "RANK": str(number)}
        return subprocess.Popen(line, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with rank(1, 1e6) as waits:
        assert waits.stdout
        assert waits.stdout.readline() == "here\n"
        with rank(0, 1e6) as says:
            assert says.communicate(timeout=60)[1] == "paretrain: error: no data\n"
        waits.terminate()  # As a launcher does when rank 0 has ended.
        assert waits.communicate(timeout=60)[1] == ""
    with rank(1, 0) as alone:
        assert alone.communicate(timeout=60)[1] == "paretrain: error: no data\n"
