"""A source of the user's own, by its dotted path."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import rich_data as rich
from trainer.cli import main
from trainer.data.format.manifest import read_manifest
from trainer.data.format.shards import Sample, Source
from trainer.data.format.verify import verify_shards


def waves(count: int = 4, unit: str = "Hz") -> Source:
    """What a user would write."""
    task = rich.TASKS[3].model_copy(update={"unit": unit})
    return Source(
        "waves",
        rich.FEATURES,
        [task],
        {
            split: (Sample(rich.write_npy(np.arange(3, dtype=np.float32)), {"weight": i}) for i in range(count))
            for split in ("train", "test")
        },
    )


def nothing() -> None:
    """No source at all."""


NOT_A_FUNCTION = 3


def leaves() -> Source:
    raise SystemExit(0)


def breaks_later() -> Source:
    source = waves()
    source.splits["train"] = (1 // 0 for _ in range(3))  # type: ignore[index]
    return source


def test_a_function_gives_the_samples(tmp_path: Path) -> None:
    path = f"{__name__}.waves"
    assert main(["data", "from", path, "--out", str(tmp_path / "data"), "count=6", "unit=kHz"]) == 0
    manifest = read_manifest(tmp_path / "data")
    verify_shards(tmp_path / "data", manifest, checksum=True)
    assert manifest.made_by == {"source": path, "count": 6, "unit": "kHz"}
    assert manifest.num_samples("train") == 6


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waves_of_mine.py").write_text(f"from {__name__} import waves as load\n")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "from", "waves_of_mine.load", "--out", "data"]) == 0
    assert read_manifest(tmp_path / "data").num_samples("test") == 4
    assert main(["data", "from", "waves_of_mine.py:load", "--out", "again", "count=5"]) == 0
    assert read_manifest(tmp_path / "again").num_samples("test") == 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["load"], "Expected a function, such as my_data.py:load or my_data.load, found 'load'"),
        (["my.own.load"], "my.own.load cannot be imported: No module named 'my'"),
        ([f"{__name__}.wave"], f"{__name__}.wave cannot be imported: module '{__name__}' has no attribute 'wave'"),
        ([f"{__name__}.waves", "cuont=3"], "waves cannot be called with cuont=3: got an unexpected keyword argument"),
        ([f"{__name__}.waves", "count=3", "count=4"], "waves: 'count' is given twice"),
        ([f"{__name__}.waves", "count"], "Expected key=value, found 'count'"),
        ([f"{__name__}.waves", "count=["], "'count=[' is not YAML"),
        (
            [f"{__name__}.nothing"],
            "returns NoneType; expected a function that returns a trainer.data.format.shards.Source",
        ),
        ([f"{__name__}.leaves"], f"leaves failed: SystemExit: 0 ({__file__}:"),
        (
            [f"{__name__}.breaks_later"],
            f"breaks_later failed: ZeroDivisionError: integer division or modulo by zero ({__file__}:",
        ),
        (["subprocess.getoutput", "cmd=touch harmed"], "of Python's own module subprocess"),
        ([f"{__name__}.NOT_A_FUNCTION"], "is no function and no class, but int"),
    ],
)
def test_what_is_no_source_is_named(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "from", *arguments, "--out", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
