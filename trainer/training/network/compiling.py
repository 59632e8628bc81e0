"""Compile the network with torch.compile, in parts that its strategy can run."""

import torch
import torch._functorch.config
from torch import nn

from models import MultiTaskModel
from models.blocks import blocks

KINDS_OF_CALL = 4
"""Upper bound of how often one part is compiled: in training and in evaluation, for two kinds of shapes."""


def compile_network(network: MultiTaskModel, *, by_blocks: bool) -> None:
    """Compile encoder and heads in place; what they compute changes within rounding.

    Args:
        network: before it is distributed.
        by_blocks: compile the encoder's blocks one by one, and leave what is between them as it is. FSDP2 gathers the
            parameters of each block in hooks, which no graph can contain.
    """
    # The parameter space and the monitor call backward several times on one graph.
    torch._functorch.config.donated_buffer = False
    parts: list[nn.Module] = blocks(network.encoder) if by_blocks else []
    if parts:
        from torch._dynamo import config  # It takes seconds to load.

        # Blocks share the code of `nn.Module.__call__`. With torch's limit of 8 graphs for one piece of code, most of
        # ResNet-50's blocks would run as they are, with no more than a warning.
        config.recompile_limit = max(config.recompile_limit, KINDS_OF_CALL * len(parts))
    for part in [*(parts or [network.encoder]), network.heads]:
        part.compile()
