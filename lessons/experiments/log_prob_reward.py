"""The simplest rival of agreement: a right rollout pays for being unlikely. No head, no hidden states, no other rollouts."""

from torch import Tensor

from minclipo.contrastive import contrastive_reward
from minclipo.sampler import Rollouts
from minclipo.trainer import Trainer


class LogProbReward(Trainer):
    """Trainer with L_i = -log pi(y_i | x) in the place of the contrastive loss; weight and floor are those of CLIPO."""

    def contrast(self, rollouts: Rollouts, correct: Tensor) -> tuple[Tensor, Tensor]:
        surprise = -rollouts.logprobs.sum(1)  # [N]; 0 at padding
        return contrastive_reward(surprise, correct, weight=0.1), surprise.mean()
