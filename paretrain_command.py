"""The `paretrain` command, and the check that nothing hides the packages behind it.

`models`, `trainer` and `launch` are common names: Python may find a folder of the user's, or another installed package,
in place of ours. This module has a name that nobody else uses, so it can say which file hides ours, and what to type.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
"""The folder that holds our packages: a checkout or site-packages."""
PACKAGES = ("paretrain", "trainer", "models", "launch")
EXIT_USER_ERROR = 2
SECONDS_FOR_RANK_0 = 10.0
"""Time in which rank 0 says an error that all ranks have, before another rank says it."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable: Python does not put the current folder in front of sys.path."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the command line. Returns its exit code."""
    if message := hidden():
        say(message)
        return EXIT_USER_ERROR
    from trainer.cli import main as run

    return run(arguments)


def hidden() -> str | None:
    """Return the sentence about the first of our packages that another file hides; None if there is none."""
    for name in PACKAGES:
        found = _found(name)
        if found is not None and found not in (ROOT / name, ROOT / name / "__init__.py"):
            return f"{found} hides the package `{name}` of paretrain. {_advice(name, found)}"
    return None


def refuse_hidden() -> None:
    """End a process that `python -m` has just started, and refuse any other import, if one of our packages is hidden.

    Raises:
        ImportError: one is hidden, and this is not the start of a command.
    """
    message = hidden()
    if message is None:
        return
    if sys.argv[:1] != ["-m"]:  # Its value while `python -m` still looks for the module to run.
        raise ImportError(message)
    say_by_one_rank(message)
    sys.exit(EXIT_USER_ERROR)


def say_by_one_rank(message: str) -> None:
    """Print an error that all ranks have as rank 0. The other ranks wait to be ended, and print it if nobody ends them.

    A launcher ends all ranks when the first one ends: a rank that ended at once could silence rank 0.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SECONDS_FOR_RANK_0)
    say(message)


def safe_path() -> dict[str, str]:
    """Return the environment by which a Python process finds our packages before those of the current folder."""
    variables = {SAFE_PATH: "1"}
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() == ROOT:
        # `python -m` in a checkout that is not installed: the current folder is where we were found.
        variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *_python_path()]))
    return variables


def _found(name: str) -> Path | None:
    """Return the file or folder that `import name` finds."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return Path(str(places[0])).resolve() if places else None


def _advice(name: str, found: Path) -> str:
    folder = next((parent.parent for parent in [found, *found.parents] if parent.name in (name, f"{name}.py")), found)
    if folder in [Path(entry).resolve() for entry in _python_path()]:
        return "It is found by PYTHONPATH: type env -u PYTHONPATH before the command, or take that folder out of it"
    if folder == Path.cwd():
        return (
            f"Type {SAFE_PATH}=1 before the command, as in {SAFE_PATH}=1 accelerate launch ... -m trainer.train ..., "
            "or start the installed command: accelerate launch --no_python ... paretrain train ..."
        )
    return "It belongs to another installed package: install paretrain in an environment of its own (python -m venv)"


def _python_path() -> Iterator[str]:
    path = os.environ.get("PYTHONPATH", "")
    yield from path.split(os.pathsep) if path else ()


def say(message: str) -> None:
    """Print an error on stderr at once."""
    print(f"paretrain: error: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
