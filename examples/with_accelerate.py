"""Hugging Face Accelerate; the same lines under DeepSpeed and FSDP.

accelerate launch --config_file launch/accelerate/processes.yaml --num_processes 2 examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from toy import NUM_TASKS, Network, batches, loss_sums, small_encoder

from paretrain import Balancer

accelerator = Accelerator(cpu=True)
rank, world_size = accelerator.process_index, accelerator.num_processes

network = Network(small_encoder(), width=32)
model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1))
balancer = Balancer(tasks=NUM_TASKS)

# The batches are already divided among the ranks, so they do not go through prepare().
for x, labels in batches(rank, world_size):
    sums, counts = loss_sums(model(x, balancer.split), labels)
    accelerator.backward(balancer.total(sums=sums, counts=counts))
    optimizer.step()
    optimizer.zero_grad()

accelerator.print("alpha", *(f"{weight:.6f}" for weight in balancer.alpha.tolist()))
accelerator.end_training()
