"""paretrain: many tasks on one shared encoder, balanced exactly, on any number of processes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.balance import Balancer

__all__ = ["Balancer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `paretrain --help` does not wait for torch.
    if name == "Balancer":
        from trainer.balance import Balancer

        return Balancer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
