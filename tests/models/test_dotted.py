"""Code by its dotted path: what is refused before it is called, and how faults in it are told."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models import build_encoder, dotted


class Broken(nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()
        raise KeyError("mine")


class Empty(nn.Linear):
    width = 1

    def __init__(self, shape: Any) -> None:
        super().__init__(0, 1)


class Plain:
    pass


def leaves(shape: Any) -> nn.Module:
    raise SystemExit(0)


def text() -> str:
    raise AssertionError("was called")


def anything(shape: Any):  # type: ignore[no-untyped-def]
    return 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("subprocess.getoutput", "Python's own module subprocess"),
        ("builtins.exit", "Python's own module builtins"),
        ("os.path.join", "Python's own module os.path"),
        ("antigravity.x", "Python's own module antigravity"),
        ("collections.OrderedDict", "expected a torch.nn.Module"),
        # Names that a module of the user's, or of a library, has imported.
        ("tests.models.test_dotted.Path", "Python's own module pathlib"),
        ("tests.models.test_dotted.pytest", "no function and no class, but module"),
        ("tests.models.test_dotted.Plain", "is the class Plain; expected a torch.nn.Module"),
        ("tests.models.test_dotted.text", "returns str; expected a torch.nn.Module"),
        ("tests.models.test_dotted.anything", "gave int; expected a torch.nn.Module"),
        ("tests.models.test_dotted.Broken", f"KeyError: 'mine' ({__file__}:"),
        ("tests.models.test_dotted.leaves", f"SystemExit: 0 ({__file__}:"),
        ("tests.models.test_dotted.Empty", "its parameter weight has no entries"),
        ("tests.models.test_dotted.Missing", "has no attribute 'Missing'"),
        (".", "cannot be imported"),
        ("..a", "cannot be imported"),
        ("a.", "cannot be imported"),
        ("a" + ".a" * 3000, "cannot be imported"),
    ],
)
def test_what_is_no_encoder_is_named(name: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        build_encoder(name, {}, (1, 8, 8))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys\nsys.exit(0)\n", "SystemExit: 0"), ("1 / 0\n", "ZeroDivisionError"), ("def (:\n", "syntax")],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / f"module_{said.partition(':')[0].lower()}.py"
    module.write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        dotted.find(f"{module.stem}.Encoder", nn.Module, named="it", expected="expected another")
    assert f"({module}:{code.count(chr(10))})" in str(error.value)


def test_an_error_that_knows_its_exit_code_is_left_as_it_is() -> None:
    class StopError(Exception):
        exit_code = 143

    def stops() -> None:
        raise StopError

    with pytest.raises(StopError):
        dotted.call(stops, doing="it failed")
