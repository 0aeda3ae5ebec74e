"""Solution of exercise 6b. Compare Trainer.step and update_on in minclipo/trainer.py."""

import torch
from common import verdicts
from torch import Tensor

from minclipo.grpo import group_advantages, policy_loss
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.model import GPT
from minclipo.sampler import sample
from minclipo.toy import toy_tokenizer

G = 8


def draw(model, problems, generator):
    tokenizer = toy_tokenizer()
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    ends = tokenizer.eos_ids
    return sample(model, prompts, G, 16, eos_ids=ends, generator=generator)


def grpo_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    problems: list,
    generator: torch.Generator,
    updates: int = 2,
) -> Tensor:
    rollouts = draw(model, problems, generator)
    correct, _ = verdicts(problems, rollouts)  # [N]
    advantages = group_advantages(correct.float(), G)  # [N]
    batch = MicroBatch.some(rollouts, torch.arange(len(correct)))
    for _ in range(updates):
        logprobs, _ = batch_logprobs(model, batch)  # [N, T], of the model as it is now
        found = policy_loss(logprobs, rollouts.logprobs, advantages, rollouts.mask)
        optimizer.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return correct
