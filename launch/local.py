"""Start the processes of one run, or of one command, on this machine."""

from collections.abc import Sequence
from pathlib import Path

from launch.node.accelerated import accelerate_launch
from launch.node.restarts import run_with_restarts

ACCELERATE_CONFIG = Path(__file__).parent / "accelerate" / "processes.yaml"


def launch(processes: int, arguments: Sequence[str], run_dir: Path, max_restarts: int) -> int:
    """Run `python -m trainer.train *arguments` in several processes. Return the exit code of the first that failed.

    Args:
        processes: number of processes.
        arguments: the configuration file and overrides.
        run_dir: folder of the run.
        max_restarts: how often to restart after a fault; see `launch.node.restarts`.
    """
    command = [*_options(processes), "-m", "trainer.train", *arguments]
    return run_with_restarts(lambda restart: accelerate_launch(command, restart, run_dir), run_dir, max_restarts)


def launch_command(processes: int, words: Sequence[str]) -> int:
    """Run `paretrain *words` in several processes. Return the exit code of the first that failed."""
    return accelerate_launch([*_options(processes), "-m", "trainer", *words])


def _options(processes: int) -> list[str]:
    return ["--config_file", str(ACCELERATE_CONFIG), "--num_processes", str(processes)]
