"""What needs two hosts and a Slurm of its own runs in a box only: make test-launch."""

import os

collect_ignore = [] if "BOX" in os.environ else ["cluster"]
