"""Combining tasks and double descent: theory against simulation, `python -m studies.double_descent --out DIR`."""

from studies.double_descent.run import run

__all__ = ["run"]
