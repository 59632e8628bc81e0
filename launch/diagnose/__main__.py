"""Run the command line: python -m launch.diagnose RUN."""

import sys

from launch.diagnose.diagnosis import main
from trainer.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
