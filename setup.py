"""What setup.cfg cannot say: the commit goes into the wheel, as trainer/code_version.json."""

import json
import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def commit() -> dict[str, object] | None:
    """Return the commit from PARETRAIN_COMMIT, or else from git; None where neither knows it."""
    if given := os.environ.get("PARETRAIN_COMMIT"):
        return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}
    git = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], **git).stdout.strip()
        return {"commit": head, "dirty": bool(subprocess.run(["git", "status", "--porcelain"], **git).stdout)}
    except (OSError, subprocess.CalledProcessError):
        return None


class BuildWithCommit(build_py):
    """Write the commit beside the modules of a wheel; an editable installation asks git itself."""

    def run(self) -> None:
        """Copy the modules, and add the file."""
        super().run()
        found = commit()
        if found and not self.editable_mode:
            (Path(self.build_lib) / "trainer" / "code_version.json").write_text(json.dumps(found) + "\n")


setup(cmdclass={"build_py": BuildWithCommit})
