"""Prompt contrast, an extension of our own: not in the CLIPO paper, off by default.

CLIPO asks of a right answer how close it is to the other right answers. It rewards agreement, and where most rollouts
agree on the same false step it spreads that step. Prompt contrast asks how much more likely the answer is under its own
prompt than under other prompts. A word that the prompt does not call for, made up or shared by all, is as likely under
any prompt and earns nothing. (Pointwise mutual information with the source; van der Poel et al. 2022, arXiv 2210.13210,
use it at decoding time against hallucinated summaries.) How a policy could earn it without merit: lessons/results.md.

B prompts, G rollouts per prompt, N = B * G rows, T completion tokens, K other prompts.
"""

import dataclasses
import math

import torch
from torch import Tensor

from minclipo.extensions.micro_batches import rollout_logprobs
from minclipo.model import GPT
from minclipo.sampler import Rollouts

LIMIT = 6.0  # nats that one token can earn or lose: otherwise one impossible token would outweigh all others


def own_prompt_gain(
    model: GPT,
    rollouts: Rollouts,
    others: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 0,
) -> Tensor:
    """How much more likely each rollout is under its own prompt than under `others` prompts drawn from the batch: [N],
    nats per token. `temperature` is that of rollouts.logprobs. Equal rollouts of a prompt gain exactly the same."""
    drawn = draw_other_prompts(len(rollouts.prompts), others, generator)  # [K, B]
    other_logprobs = logprobs_under(
        model, rollouts, drawn, temperature=temperature, micro_batch_tokens=micro_batch_tokens
    )  # [K, N, T]
    return first_of_equals(prompt_contrast(rollouts.logprobs, other_logprobs, rollouts.mask), rollouts)


def prompt_contrast(own_logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """How much more likely each completion is under its own prompt than under others, in nats per token: [N].

        g_i = mean_t clamp(log p(y_t | x_i, y_<t) - log (1/K) sum_k p(y_t | x_k, y_<t), -LIMIT, LIMIT)

    An answer that is less likely under its own prompt than under others has a negative gain; with a weight above
    1 / LIMIT it may earn less than a wrong one. own_logprobs [N, T], other_logprobs [K, N, T], mask [N, T] bool.
    Padding is never read.
    """
    assert own_logprobs.shape == mask.shape == other_logprobs.shape[1:], (
        "own_logprobs and mask must be [N, T], other_logprobs [K, N, T]"
    )
    mean_of_others = other_logprobs.logsumexp(0) - math.log(len(other_logprobs))  # [N, T]
    gain = (own_logprobs - mean_of_others).clamp(-LIMIT, LIMIT).masked_fill(~mask, 0.0)
    return gain.sum(1) / mask.sum(1).clamp(min=1)


def first_of_equals(values: Tensor, rollouts: Rollouts) -> Tensor:
    """values [N] of the rollouts, where those with the same prompt and text all have the value of their first.

    Equal rows may be scored in different passes, which round differently; where nothing else tells a group's rewards
    apart, `group_advantages` would blow that difference up to advantages of 1.
    """
    seen: dict[tuple, int] = {}
    texts = zip(rollouts.group.tolist(), map(tuple, rollouts.completion_ids()))
    return values[[seen.setdefault(text, row) for row, text in enumerate(texts)]]


def draw_other_prompts(prompts: int, others: int, generator: torch.Generator | None = None) -> Tensor:
    """K different other prompts for each of B, as places [K, B]; every prompt is used equally often, never for itself.

    The B prompts are put in a circle in random order; the k-th other prompt of each is the one k places on.
    """
    assert 1 <= others < prompts, f"{others} others cannot be drawn: a batch of {prompts} prompts has {prompts - 1}"
    device = None if generator is None else generator.device
    circle = torch.randperm(prompts, generator=generator, device=device)
    drawn = torch.empty((others, prompts), dtype=torch.long, device=device)
    for k in range(others):
        drawn[k, circle] = circle.roll(-1 - k)
    return drawn


def logprobs_under(
    model: GPT, rollouts: Rollouts, others: Tensor, *, temperature: float = 1.0, micro_batch_tokens: int = 0
) -> Tensor:
    """Log-probs [K, N, T] of the completions as if they answered the prompts `others` [K, B] of the batch, without
    gradient; at most `micro_batch_tokens` tokens per forward pass, 0: no limit."""
    swapped = lambda places: dataclasses.replace(rollouts, prompts=[rollouts.prompts[place] for place in places])
    scored = lambda made: rollout_logprobs(model, made, temperature=temperature, micro_batch_tokens=micro_batch_tokens)
    return torch.stack([scored(swapped(places)) for places in others.tolist()])
