"""Lightning Fabric, which starts its own processes.

python examples/with_fabric.py
"""

import torch
from lightning_fabric import Fabric
from toy import NUM_TASKS, Network, batches, loss_sums, small_encoder

from paretrain import Balancer

fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
fabric.launch()

network = Network(small_encoder(), width=32)
model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
balancer = Balancer(tasks=NUM_TASKS)

for x, labels in batches(fabric.global_rank, fabric.world_size):
    sums, counts = loss_sums(model(x, balancer.split), labels)
    fabric.backward(balancer.total(sums=sums, counts=counts))
    optimizer.step()
    optimizer.zero_grad()

fabric.print("alpha", *(f"{weight:.6f}" for weight in balancer.alpha.tolist()))
