"""A folder is whole or unfinished, wherever its making is interrupted."""

from pathlib import Path

import pytest

from trainer.data.format.publish import PARTIAL_NAME, publishing
from trainer.errors import UserError


def make(out: Path, *names: str) -> None:
    with publishing(out, "last") as folder:
        for name in names:
            (folder / name).write_text(name)


def there(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_what_is_made_is_moved_into_place(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "b", "last")
    assert there(tmp_path / "out") == ["a", "b", "last"]


def test_what_an_interrupted_call_left_is_thrown_away(tmp_path: Path) -> None:
    def interrupted() -> None:
        with publishing(tmp_path, "last") as folder:
            (folder / "half").write_text("")
            (folder / "last").write_text("torn")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert there(tmp_path) == [PARTIAL_NAME]
    make(tmp_path, "a", "last")
    assert there(tmp_path) == ["a", "last"]
    assert (tmp_path / "last").read_text() == "last"


def test_a_move_that_was_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def until_b(path: Path, target: Path) -> Path:
        if path.name == "b":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until_b)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "a", "b", "last")
    assert there(tmp_path) == [PARTIAL_NAME, "a"]
    with pytest.raises(UserError, match="already contains a data set"):
        make(tmp_path, "c", "last")
    assert there(tmp_path) == ["a", "b", "last"]


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"not empty \(found thesis.tex\)"):
        make(tmp_path, "last")
    assert there(tmp_path) == ["thesis.tex"]
