"""Plain torch DistributedDataParallel.

torchrun --nproc_per_node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
from torch import nn
from toy import NUM_TASKS, Network, batches, loss_sums, small_encoder

from paretrain import Balancer

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()

model = nn.parallel.DistributedDataParallel(Network(small_encoder(), width=32))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
balancer = Balancer(tasks=NUM_TASKS)

for x, labels in batches(rank, world_size):
    sums, counts = loss_sums(model(x, balancer.split), labels)
    balancer.total(sums=sums, counts=counts).backward()  # one ordinary backward; balancer.alpha now holds α
    optimizer.step()
    optimizer.zero_grad()

if rank == 0:
    print("alpha", *(f"{weight:.6f}" for weight in balancer.alpha.tolist()))
dist.destroy_process_group()
