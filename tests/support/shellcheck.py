import subprocess
import sys
from pathlib import Path


def shellcheck(path: Path) -> str:
    """What shellcheck has against a script."""
    return subprocess.run([Path(sys.executable).parent / "shellcheck", path], capture_output=True, text=True).stdout
