"""The command itself: what it imports, what it shows, and that every configuration of the project passes it."""

import configparser
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import paretrain
from tests.support.command import ROOT
from tests.support.raw_cityscapes import write_raw
from trainer.cli import TRAIN_EXTRA, main
from trainer.data.sources.cityscapes import write_cityscapes

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_help_waits_for_no_heavy_import() -> None:
    program = (
        "import sys; from trainer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'accelerate', 'matplotlib', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("train", "check", "eval", "report", "data"):
        assert f"  {name} " in done.stdout


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from trainer.cli import main
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(
    ("arguments", "blocked"),
    [
        (["train", "configs/digits.yaml"], TRAIN_EXTRA),
        (["train", "configs/digits.yaml"], {"yaml"}),
        (["check", "configs/digits.yaml"], {"rich"}),
        (["sweep", "configs/digits.yaml", "--grid", "seed=0,1"], {"pydantic"}),
        (["data", "digits", "--out", "nowhere"], {"sklearn"}),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(arguments: list[str], blocked: set[str]) -> None:
    program = WITHOUT.format(blocked=sorted(blocked), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("Type: pip install 'paretrain[train]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_extra_is_the_one_that_setup_cfg_declares() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"]["train"].splitlines()
    declared = {re.split(r"[>=\[]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    distributions = metadata.packages_distributions()
    assert {name.lower() for module in TRAIN_EXTRA for name in distributions[module]} == declared


def test_the_version_is_printed_without_torch() -> None:
    program = (
        "import sys; from trainer.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"paretrain {paretrain.__version__}\nFalse\n"


SMALLER = {"celeba": ["train.global_batch=16"], "cityscapes": ["model.head.options.hidden=64"]}
"""Networks that take their time."""

TABLES = {"tox21": [], "toxcast": [], "qm9": ["--kinds", "*=regression"]}
"""Configurations of tables -> how theirs is converted."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_passes_check(
    config: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On small data, with the processes and the batch that it states."""
    data = digits
    if config.stem == "cityscapes":
        frames = {"train": [f"ulm/ulm_{number}" for number in range(8)], "val": ["jena/jena_0"]}
        data = tmp_path / "scenes"
        write_cityscapes(write_raw(tmp_path / "raw", frames), data, size=(24, 48))
    if config.stem in TABLES:
        rows = [f"{number},{number % 7},{number % 2},{number % 3 % 2}" for number in range(1000)]
        (tmp_path / "assays.csv").write_text("\n".join(["a,b,NR-AR,SR-p53", *rows]))
        data = tmp_path / "assays"
        columns = ["--targets", "NR-AR,SR-p53", "--val", "0.2", *TABLES[config.stem]]
        assert main(["data", "table", "--csv", f"{data}.csv", *columns, "--out", str(data)]) == 0
    sources = yaml.safe_load(config.read_text())["data"].get("sources", {})
    folders = [f"data.sources.{name}.path" for name in sources] or ["data.path"]
    elsewhere = [*(f"{folder}={data}" for folder in folders), f"output={tmp_path / 'runs'}"]
    assert main(["check", str(config), *elsewhere, *SMALLER.get(config.stem, [])]) == 0
    shown = capsys.readouterr().out
    assert "ready to train" in shown
    assert "duality gap" in shown


def test_overrides_may_stand_on_both_sides_of_an_option(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config), "name=before", "--processes", "2", "train.global_batch=48"]) == 0
    shown = capsys.readouterr().out
    assert "before: ready to train" in shown
    assert "48 samples per step = 2 processes x 24" in shown


def test_an_unknown_option_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(config), "--proceses", "2"])
    assert "unrecognized arguments: --proceses" in capsys.readouterr().err


def test_what_is_required_is_named_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for command, required in {"train": "CONFIG", "sweep": "CONFIG, --grid", "study": "NAME|FILE"}.items():
        with pytest.raises(SystemExit, match="2"):
            main([command])
        assert capsys.readouterr().err.endswith(f"the following arguments are required: {required}\n")


def test_reports_of_several_runs_side_by_side(config: Path, run_dir: Path, tmp_path: Path) -> None:
    for weighting in ("min_norm", "uniform"):
        assert main(["train", str(config), f"name={weighting}", f"balance.weighting={weighting}", "train.steps=3"]) == 0
    page = tmp_path / "both.html"
    assert (
        main(["report", *(str(run_dir.with_name(name)) for name in ("min_norm", "uniform")), "--out", str(page)]) == 0
    )
    assert "min_norm" in page.read_text()
    assert "uniform" in page.read_text()


def test_an_unknown_argument_is_shown_without_its_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", "data", "name=\x1b[31m"])
    assert "unrecognized arguments: name=\\x1b[31m" in capsys.readouterr().err
