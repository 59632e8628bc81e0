"""The user's own code: how it is found, what is refused before it is called, and how its faults are told."""

import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models import build_encoder
from trainer.user_code import call, is_user_code, load, loaded_files, placed, python_files

ENCODER = """\
from dataclasses import dataclass

from torch import nn

@dataclass
class Options:
    width: int = 3

class Net(nn.Linear):
    def __init__(self, shape, width=3):
        super().__init__(shape[0], width)
        self.width = width
"""


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


def build(name: str) -> nn.Module:
    """Load and build an encoder as a run does."""
    encoder = load(name, nn.Module, named=f"encoder '{name}'", expected="expected a torch.nn.Module")
    try:
        return build_encoder(encoder, {}, (8,))
    except ValueError as error:
        raise ValueError(placed(error)) from error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the command, with a network in a folder of its own. What is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "tiny.py").write_text(ENCODER)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_short_names_are_ours() -> None:
    assert not is_user_code("resnet18")
    assert all(map(is_user_code, ("my_nets.tiny.Net", "tiny.py:Net", "/home/me/tiny.py:Net", "./tiny", "a:b")))


@pytest.mark.long
@pytest.mark.parametrize("name", ["my_nets.tiny.Net", "my_nets/tiny.py:Net", "./my_nets/tiny.py:Net", "{}/tiny.py:Net"])
def test_a_dotted_path_and_a_file_are_found_from_the_folder_of_the_command(name: str, folder: Path) -> None:
    net = build(name.format(folder / "my_nets"))
    assert net.width == 3
    assert type(pickle.loads(pickle.dumps(net))) is type(net)
    file = folder / "my_nets" / "tiny.py"
    assert loaded_files([name.format(folder / "my_nets")])[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_neither_hides_a_module_nor_is_hidden_by_one(folder: Path) -> None:
    """Even with the name of an installed package, of one of ours, or of Python's own."""
    import einops

    for name in ("einops", "models", "json"):
        (folder / f"{name}.py").write_text(ENCODER)
        assert build(f"{name}.py:Net").width == 3
    assert sys.modules["einops"] is einops
    sys.modules.pop("einops")
    import einops as again

    assert again.__file__ == einops.__file__, "what is installed comes first, also once the folder is searched"
    sys.modules["einops"] = einops


@pytest.mark.long
def test_a_file_imports_what_lies_beside_it(folder: Path) -> None:
    nets = folder / "my_nets"
    (nets / "layers.py").write_text(ENCODER)
    for line in ("from .layers import Net", "from layers import Net", "from my_nets.layers import Net"):
        file = nets / f"deep{len(line)}.py"
        file.write_text(f"{line}\n")
        assert build(f"my_nets/{file.name}:Net").width == 3
        assert {str(file), str(nets / "layers.py")} <= loaded_files([f"my_nets/{file.name}:Net"]).keys()


def test_a_module_that_our_package_hides_is_named_as_a_file(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "tiny.py").write_text(ENCODER)
    (folder / "models" / "deep.py").write_text("from models.tiny import Net\n")
    assert build("models/tiny.py:Net").width == 3
    for name in ("models.tiny.Net", "models/deep.py:Net"):
        with pytest.raises(ValueError, match=r"`models` is a package of paretrain, not your .*Name the file, such as"):
            build(name)


def test_files_are_compared_without_running_them(folder: Path) -> None:
    (folder / "my_nets" / "tiny.py").write_text("raise SystemExit('ran')\n")
    assert dict(python_files("my_nets.tiny.Net")) == {"my_nets/tiny.py": folder / "my_nets" / "tiny.py"}
    assert dict(python_files("my_nets/tiny.py:Net")) == {"my_nets/tiny.py": folder / "my_nets" / "tiny.py"}
    assert not dict(python_files("my_nets/none.py:Net")) | dict(python_files("no_nets.Net"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_nets/tiny.py", "expected FILE.py:NAME, such as my_nets/tiny.py:Net"),
        ("my_nets/tiny:Net", "expected FILE.py:NAME"),
        ("my_nets/tiny.py:", "expected FILE.py:NAME"),
        ("my_nets/tyni.py:Net", "tyni.py; did you mean 'tiny.py'?"),
        ("no_nets/tiny.py:Net", "there is no file"),
        ("my_nets/tiny.py:Nett", "tiny.py has no attribute 'Nett'; did you mean 'Net'?"),
        ("my_nets.tiny.Nett", "has no attribute 'Nett'; did you mean 'Net'?"),
        ("my_nets/tiny.py:Options", "is the class Options; expected a torch.nn.Module"),
        ("my_nets/tiny.py:dataclass", "of Python's own module dataclasses"),
        ("my_nets/a.b.py:Net", "has a dot in its name"),
    ],
)
def test_what_is_not_there_is_named(name: str, said: str, folder: Path) -> None:
    (folder / "my_nets" / "a.b.py").write_text(ENCODER)
    with pytest.raises(ValueError) as error:
        build(name)
    assert said in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("subprocess.getoutput", "Python's own module subprocess"),
        ("builtins.exit", "Python's own module builtins"),
        ("os.path.join", "Python's own module os.path"),
        ("antigravity.x", "Python's own module antigravity"),
        ("collections.OrderedDict", "expected a torch.nn.Module"),
        # Names that a module of the user's, or of a library, has imported.
        ("tests.test_user_code.Path", "Python's own module pathlib"),
        ("tests.test_user_code.pytest", "no function and no class, but module"),
        ("tests.test_user_code.Plain", "is the class Plain; expected a torch.nn.Module"),
        ("tests.test_user_code.text", "returns str; expected a torch.nn.Module"),
        ("tests.test_user_code.anything", "gave int; expected a torch.nn.Module"),
        ("tests.test_user_code.Broken", f"KeyError: 'mine' ({__file__}:"),
        ("tests.test_user_code.leaves", f"SystemExit: 0 ({__file__}:"),
        ("tests.test_user_code.Empty", "its parameter weight has no entries"),
        ("tests.test_user_code.Missing", "has no attribute 'Missing'"),
        (".", "cannot be imported"),
        ("..a", "cannot be imported"),
        ("a.", "cannot be imported"),
        ("a" + ".a" * 3000, "cannot be imported"),
    ],
)
def test_what_is_no_encoder_is_named(name: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        build(name)
    assert said in str(error.value)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def (:\n", "SyntaxError: invalid syntax \\("),
        ("import no_such_thing\n", "No module named 'no_such_thing'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(
    code: str, said: str, as_file: bool, folder: Path
) -> None:
    (folder / "faulty.py").write_text(code)
    with pytest.raises(ValueError, match=said) as error:
        build("faulty.py:Encoder" if as_file else "faulty.Encoder")
    assert str(error.value).endswith(f" ({folder / 'faulty.py'}:{code.count(chr(10))})")
    assert str(error.value).count(f"{folder}") == 1


def test_an_error_that_knows_its_exit_code_is_left_as_it_is() -> None:
    class StopError(Exception):
        exit_code = 143

    def stops() -> None:
        raise StopError

    with pytest.raises(StopError):
        call(stops, doing="it failed")
