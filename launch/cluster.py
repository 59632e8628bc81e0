"""Ask Slurm what it offers, before a job is submitted: GPUs of a partition, the size of arrays.

Each question has the answer None where this machine has no Slurm, or Slurm does not say.
"""

import re
import subprocess


def has_gpus(partition: str | None) -> bool | None:
    """Return whether every node of a partition has GPUs; None: the default partition."""
    chosen = [f"--partition={partition}"] if partition else []
    said = _asked(["sinfo", "--noheader", "--format=%P %G", *chosen])
    if said is None:
        return None
    rows = [line.split(maxsplit=1) for line in said.splitlines()]
    resources = [row[1] for row in rows if len(row) == 2 and (partition or row[0].endswith("*"))]
    return all("gpu" in resource for resource in resources) if resources else None


def max_array_size() -> int | None:
    """Return how many jobs an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _asked(["scontrol", "show", "config"]) or "", re.MULTILINE)
    return int(found[1]) if found else None


def _asked(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
