"""The other way to use the contrastive loss: as a loss. Its gradient flows through the hidden states into the policy.

CLIPO's loss only prices rollouts: the policy learns from the tokens that it drew. Here the loss bends the hidden states
themselves, as is usual in contrastive learning, and the rewards are those of the outcome check.
"""

import torch
from torch import Tensor

from minclipo.contrastive import center_by_group, contrastive_loss
from minclipo.logprobs import MicroBatch, completion_hidden
from minclipo.model import upcast
from minclipo.sampler import Rollouts
from minclipo.trainer import Trainer


class DirectContrast(Trainer):
    """Trainer whose contrastive_weight weighs the mean contrastive loss of each mini-batch in the policy's own loss."""

    def contrast(self, rollouts: Rollouts, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Updates the head as usual, but pays no rollout."""
        if self.config.micro_batch_tokens:
            raise ValueError("micro_batch_tokens must be 0: rollouts in different micro-batches are never compared")
        reward, loss = super().contrast(rollouts, correct)
        return torch.zeros_like(reward), loss

    def loss_of(self, part: MicroBatch, *others) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss_of(part, *others)
        return loss + self.config.contrastive_weight * self.contrast_of(part), metrics

    def contrast_of(self, part: MicroBatch) -> Tensor:
        """Mean contrastive loss of these rows among themselves, with gradient."""
        config, group = self.config, part.rows // self.config.group_size  # [rows]
        # These states predict the tokens, where sampling pools the states after them: one place earlier.
        pooled = mean_pool(completion_hidden(self.model, part), part.mask)  # [rows, D]
        embeddings = self.head(center_by_group(pooled, group) if config.contrastive_center else pooled)  # [rows, E]
        found = contrastive_loss(
            embeddings,
            self.last.correct[part.rows],
            group,
            loss=config.contrastive_loss,
            level=config.contrastive_level,
            temperature=config.contrastive_temperature,
            similarity=config.contrastive_similarity,
            anchors=config.contrastive_anchors,
            generator=self.generator,
        )
        return found.mean


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state over the masked tokens, [N, D] in float32 at least, from hidden [N, T, D] and mask [N, T]."""
    return (upcast(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
