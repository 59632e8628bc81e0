import argparse
import os
from pathlib import Path

from studies.coupling.run import run


def main() -> None:
    """Parse the command line and run the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.coupling", description=run.__doc__)
    parser.add_argument("data", type=Path, help="folder with the ARFF files of mulan's multi-target collection")
    parser.add_argument("--out", type=Path, required=True, help="folder for page.html, numbers.csv and the figure")
    parser.add_argument("--draws", type=int, default=20, help="random divisions of each table's rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    print(run(arguments.data, arguments.out, arguments.draws, arguments.processes))


if __name__ == "__main__":  # the processes of the study import this module too
    main()
