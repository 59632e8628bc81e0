"""Small runs, as in tests/e2e. What needs two hosts and a Slurm of its own runs in a box only: make test-launch."""

import os

from tests.e2e.conftest import config, digits, paretrain, run_dir

__all__ = ["config", "digits", "paretrain", "run_dir"]

collect_ignore = [] if "BOX" in os.environ else ["cluster"]
