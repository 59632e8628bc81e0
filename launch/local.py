"""Start the processes of one run on this machine."""

from collections.abc import Sequence
from pathlib import Path

from launch.node.accelerated import accelerate_launch
from launch.node.restarts import run_with_restarts

ACCELERATE_CONFIG = Path(__file__).parent / "accelerate" / "processes.yaml"


def launch(processes: int, arguments: Sequence[str], run_dir: Path, max_restarts: int) -> int:
    """Run `python -m trainer.train *arguments` in `processes` processes. Returns the exit code of the first to fail.

    Args:
        processes: how many.
        arguments: the configuration file and overrides.
        run_dir: the run's folder.
        max_restarts: how often it is started again after a fault; see `launch.node.restarts`.
    """
    options = ["--config_file", str(ACCELERATE_CONFIG), "--num_processes", str(processes)]
    command = [*options, "-m", "trainer.train", *arguments]
    return run_with_restarts(lambda restart: accelerate_launch(command, restart), run_dir, max_restarts)
