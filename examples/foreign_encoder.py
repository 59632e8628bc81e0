"""An encoder of another library: a transformers ViT built from a configuration, on one process.

python examples/foreign_encoder.py
"""

import torch
from torch import Tensor, nn
from toy import NUM_TASKS, Network, batches, loss_sums
from transformers import ViTConfig, ViTModel

from paretrain import Balancer


class ViTEncoder(nn.Module):
    """A ViT whose class token is z, (B, D). Any tensor whose entries depend on their own samples alone would do."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=16,
            patch_size=4,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        # Recompute activations in the backward. Reentrant checkpointing would run the balancer's collectives twice.
        self.vit.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the last hidden state of the class token."""
        return self.vit(x_BCHW).last_hidden_state[:, 0]


torch.manual_seed(0)
model = Network(ViTEncoder(), width=32).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
balancer = Balancer(tasks=NUM_TASKS)

for x, labels in batches(rank=0, world_size=1):
    sums, counts = loss_sums(model(x, balancer.split), labels)
    balancer.total(sums=sums, counts=counts).backward()
    optimizer.step()
    optimizer.zero_grad()

print("alpha", *(f"{weight:.6f}" for weight in balancer.alpha.tolist()))
