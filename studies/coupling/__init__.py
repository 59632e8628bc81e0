"""Real tables: what coupling the tasks wins, and what theory predicted, `python -m studies.coupling DATA --out DIR`."""

from studies.coupling.run import run

__all__ = ["run"]
