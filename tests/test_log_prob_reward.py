"""The rival of agreement in lessons/experiments: a right rollout pays for being unlikely."""

import sys
from pathlib import Path

import torch
from conftest import small_gpt

EXPERIMENTS = Path(__file__).parent.parent / "lessons" / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
from log_prob_reward import LogProbReward  # noqa: E402

from minclipo.config import TrainConfig  # noqa: E402
from minclipo.toy import TASK, toy_tokenizer  # noqa: E402


def test_the_price_is_the_rollouts_own_surprise():
    """Catches: the wrong sign, wrong rollouts that pay, a price that padding or a neighbour changes, no floor."""
    trainer = LogProbReward(
        small_gpt(vocab_size=122), toy_tokenizer(), TASK, TrainConfig(group_size=3, max_new_tokens=5)
    )
    rollouts = trainer.sample([TASK.draw("log prob", 0)])
    assert rollouts.logprobs.masked_select(~rollouts.mask).abs().sum() == 0
    rollouts.logprobs[:] = torch.tensor([[-1.0], [-0.5], [-9.0]]) * rollouts.mask / rollouts.mask.sum(1, keepdim=True)
    price, surprise = trainer.contrast(rollouts, torch.tensor([True, False, True]))
    torch.testing.assert_close(price, torch.tensor([-0.1, 0.0, -0.5]))
    assert surprise.item() == 3.5
