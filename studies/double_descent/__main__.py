import argparse
import os
from pathlib import Path

from studies.double_descent.run import run


def main() -> None:
    """Parse the command line and run the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.double_descent", description=run.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for page.html, numbers.csv and the figures")
    parser.add_argument("--quick", action="store_true", help="smaller problems, fewer replicates: about a minute")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    print(run(arguments.out, arguments.quick, arguments.processes))


if __name__ == "__main__":  # the processes of the study import this module too
    main()
