"""The other way to use the contrastive loss: as a loss. Its gradient flows through the hidden states into the policy.

CLIPO's loss only prices rollouts: the policy learns from which tokens it drew. Here the loss bends the hidden states
themselves, as contrastive learning usually does, and the rewards stay the outcome's.
"""

import torch
from torch import Tensor

from minclipo.contrastive import center_by_group, contrastive_loss
from minclipo.logprobs import completion_hidden, mean_pool
from minclipo.sampler import Rollouts
from minclipo.trainer import Trainer


class DirectContrast(Trainer):
    """Trainer whose contrastive_weight weighs the mean contrastive loss of each mini-batch in the policy's own loss."""

    def contrast(self, rollouts: Rollouts, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Updates the head as ever, but no rollout is paid."""
        if self.config.micro_batch_tokens:
            raise ValueError("micro_batch_tokens must be 0: rollouts in different micro-batches are never compared")
        self.correct = correct
        reward, loss = super().contrast(rollouts, correct)
        return torch.zeros_like(reward), loss

    def loss_of(self, rollouts, advantages, weights, rows) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss_of(rollouts, advantages, weights, rows)
        config = self.config
        prompts = [rollouts.prompts[i // rollouts.group_size] for i in rows.tolist()]
        mask, group = rollouts.mask[rows], rollouts.group[rows]
        # These states predict the tokens, where sampling pools the states after them: one place earlier.
        pooled = mean_pool(completion_hidden(self.model, prompts, rollouts.completions[rows], mask), mask)  # [rows, D]
        embeddings = self.head(center_by_group(pooled, group) if config.contrastive_center else pooled)  # [rows, E]
        found = contrastive_loss(embeddings, self.correct[rows], group, **self.contrastive_options())
        return loss + config.contrastive_weight * found.mean, metrics
