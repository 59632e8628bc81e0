"""Start the processes of one run on this machine."""

from collections.abc import Sequence
from pathlib import Path

from launch.accelerated import accelerate_launch

ACCELERATE_CONFIG = Path(__file__).parent / "accelerate" / "cpu.yaml"


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m trainer.train *arguments` in `processes` processes. Returns the exit code of the first to fail."""
    options = ["--config_file", str(ACCELERATE_CONFIG), "--num_processes", str(processes)]
    return accelerate_launch([*options, "-m", "trainer.train", *arguments])
