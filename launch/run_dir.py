"""Print a run's folder: python -m launch.run_dir CONFIG [a.b=c ...]. The launch scripts ask it before they start."""

import sys
from pathlib import Path

from trainer.config.file import load_config
from trainer.errors import UserError, run_command
from trainer.runtime.stopping import refuse_stopped


def main() -> None:
    """Read the configuration, and refuse a run that somebody has stopped.

    Raises:
        UserError: the configuration cannot be read, or the stop file stands.
    """
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m launch.run_dir configs/digits.yaml [a.b=c ...]")
    run_dir = load_config(Path(sys.argv[1]), sys.argv[2:]).run_dir.absolute()
    refuse_stopped(run_dir)
    print(run_dir)


if __name__ == "__main__":
    sys.exit(run_command(main))
