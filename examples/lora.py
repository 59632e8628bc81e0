"""LoRA on two domains of text with Hugging Face Trainer: α weighs the domains at the last hidden state.

python examples/lora.py

The tasks share the head, which is frozen as all but the adapters. A sample is of one domain, so the gradients of the
domains are orthogonal, and α weighs each by one over its squared length.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, Trainer, TrainingArguments

from paretrain import Balancer
from paretrain.integrations.hugging_face import BalancedTrainer

VOCABULARY, LENGTH = 32, 12
DOMAINS = {"upwards": 1, "in threes": 3}
"""By how much each token is above the one before."""


class LanguageModel(nn.Module):
    """A tiny Llama with LoRA adapters, and a frozen head that all domains share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        self.encoder = get_peft_model(LlamaModel(config), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        self.head = nn.Linear(32, VOCABULARY).requires_grad_(False)
        self.balancer = Balancer(tasks=list(DOMAINS))

    def forward(self, tokens: Tensor, domain: Tensor) -> dict[str, Any]:
        """Return the mean loss of each domain over its tokens, and how many there are."""
        views = self.balancer.split(self.encoder(tokens).last_hidden_state)
        means, counts = [], []
        for number, view in enumerate(views):
            mine = domain == number
            logits, following = self.head(view[mine, :-1]), tokens[mine, 1:]
            means.append(F.cross_entropy(logits.flatten(0, 1), following.flatten()))
            counts.append(following.numel())
        return {"means": means, "counts": counts}


class DomainTrainer(BalancedTrainer, Trainer):
    """The model returns its losses."""

    def task_losses(self, outputs: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return them as they are."""
        losses: Mapping[str, Any] = outputs
        return losses


def text(num_samples: int) -> list[dict[str, Tensor]]:
    """Return sequences of either domain."""
    generator = torch.Generator().manual_seed(1)
    domains = torch.randint(len(DOMAINS), (num_samples,), generator=generator)
    starts = torch.randint(VOCABULARY, (num_samples, 1), generator=generator)
    steps = torch.tensor(list(DOMAINS.values()))[domains, None]
    tokens = (starts + steps * torch.arange(LENGTH)) % VOCABULARY
    return [{"tokens": row, "domain": domain} for row, domain in zip(tokens, domains, strict=True)]


args = TrainingArguments(
    output_dir="runs/lora",
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    max_steps=30,
    learning_rate=0.02,
    use_cpu=True,
    report_to="none",
    save_strategy="no",
    logging_steps=10,
    disable_tqdm=True,
    remove_unused_columns=False,
)
model = LanguageModel()
trainer = DomainTrainer(model, args, train_dataset=text(512))
trainer.balancer = model.balancer
trainer.train()
print("alpha", *(f"{weight:.6f}" for weight in model.balancer.alpha.tolist()))
