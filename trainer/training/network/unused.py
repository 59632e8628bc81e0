"""Parameters that no output depends on, by a slip or since they came with weights: name them, or refuse them."""

from collections.abc import Collection, Sequence

from trainer.config.strategies import StrategyName
from trainer.errors import UserError

MAX_SHOWN = 6


def say_unused(names: Sequence[str]) -> str:
    """Return a sentence about parameters that no output depends on."""
    shown = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
    return f"no task's output depends on {len(names)} parameter{'s' if len(names) > 1 else ''}: {shown}"


def refuse_unused(names: Sequence[str], used: Collection[str], strategy: StrategyName, processes: int) -> None:
    """Refuse unused parameters where they stop a training.

    Args:
        names: of the unused parameters.
        used: names of the others that are trained.
        strategy: parallel.strategy.
        processes: parallel.processes.

    Raises:
        UserError: DDP would wait for their gradients.
    """
    if names and strategy == "ddp" and processes > 1:
        patterns = ", ".join(sorted({_pattern(name, used) for name in names}))
        raise UserError(
            f"{say_unused(names)}. DDP would wait for their gradients. Take them out of the module, or train without "
            f"them: 'model.freeze=[{patterns}]'"
        )


def _pattern(name: str, used: Collection[str]) -> str:
    """Return the widest pattern for a name that matches no used parameter."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        part = ".".join(parts[:depth])
        if not any(other.startswith(f"{part}.") for other in used):
            return f"{part}.*"
    return name
