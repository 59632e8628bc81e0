"""A copy of the code that a submission runs, so that a job that is requeued days later runs the same.

    RUN/code/DIGEST/
        paretrain/ trainer/ models/ launch/ paretrain_command.py    this project
        user_code/                                                  the user's Python files that were loaded
        config/                                                     the configuration file

The digest is that of all files: a later submission of the same code takes the same copy, of other code another one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paretrain_command import PACKAGES, ROOT
from trainer.code_version import FILE, code_version
from trainer.config.schema import Experiment
from trainer.errors import UserError
from trainer.files import sha256
from trainer.runtime.agreement import names_of_code
from trainer.user_code import imported, loaded_files

CODE = "code"
USER_CODE = "user_code"
CONFIG = "config"
MARK = "pyproject.toml"
"""A file beside launch/ tells its scripts that Python is to find the packages there."""


@dataclass(frozen=True)
class FrozenCode:
    """A copy that exists or is to be made.

    Attributes:
        folder: of the copy.
        files: what it holds: the path in the copy -> the file.
    """

    folder: Path
    files: Mapping[str, Path]

    @property
    def config(self) -> Path:
        """Return the configuration file in the copy."""
        return self.folder / next(name for name in self.files if name.startswith(f"{CONFIG}/"))

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment in which the scripts and the trainer use the copy."""
        return {"PARETRAIN_LAUNCH": str(self.folder / "launch"), "PARETRAIN_USER_CODE": str(self.folder / USER_CODE)}

    def write(self) -> None:
        """Make the copy, if it does not exist yet.

        Raises:
            UserError: it cannot be written.
        """
        if self.folder.exists():
            return
        aside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        try:
            for name, file in self.files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, aside / name)
            (aside / USER_CODE).mkdir(exist_ok=True)
            (aside / MARK).write_text("# A copy of paretrain's code. launch/node/entry.sh looks for this file.\n")
            (aside / "trainer" / FILE).write_text(f"{json.dumps(code_version())}\n")
            aside.rename(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if not self.folder.exists():  # Else another submission was faster.
                raise UserError(f"the code cannot be copied to {self.folder}: {error}") from None


def frozen_code(folder: Path, config: Path, experiments: Iterable[Experiment]) -> FrozenCode:
    """Return the copy of the code that some runs need. Writes nothing, but imports the user's code.

    Files of the user's outside the folder of the command are not copied, and stay where they are.

    Args:
        folder: the copy lies below it.
        config: the configuration file.
        experiments: the runs.
    """
    files = {f"{CONFIG}/{config.name}": config}
    files |= {path.relative_to(ROOT).as_posix(): path for path in _own_files()}
    names = dict.fromkeys(name for experiment in experiments for name in names_of_code(experiment))
    here = Path.cwd()
    for path in map(Path, loaded_files(imported(names)) if names else ()):
        if path.is_relative_to(here):
            files[f"{USER_CODE}/{path.relative_to(here).as_posix()}"] = path
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {sha256(path)}\n".encode())
    return FrozenCode(folder.absolute() / CODE / digest.hexdigest()[:16], files)


def _own_files() -> Iterable[Path]:
    yield ROOT / "paretrain_command.py"
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc" and path != ROOT / "trainer" / FILE:
                yield path
