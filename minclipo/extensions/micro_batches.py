"""A batch that is too large for the memory, cut up without changing its gradient.

N rows (completions), T completion tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minclipo.extensions.processes import added, count, several, share
from minclipo.extensions.sharding import is_sharded
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.model import GPT
from minclipo.sampler import Rollouts


def micro_batches(rollouts: Rollouts, rows: Tensor, tokens: int) -> list[MicroBatch]:
    """Some rows [any number] of the rollouts, in the micro-batches that `cut` makes of them."""
    parts = cut(rollouts, rows, tokens)
    return [MicroBatch.some(rollouts, torch.tensor(part, device=rows.device)) for part in parts]


def cut(rollouts: Rollouts, rows: Tensor, tokens: int) -> list[list[int]]:
    """The rows in parts of at most `tokens` tokens, padding and prompts counted; 0: in one. Rows of a prompt come
    together, since they share its computation. A row that is too long is alone."""
    if not tokens:
        return [rows.tolist()]
    G, lengths, parts, last = rollouts.group_size, rollouts.mask.sum(1).tolist(), [], None
    B = P = T = 0  # of the part that grows: number of prompts, longest prompt, longest completion
    for row in sorted(rows.tolist()):
        prompt, length = len(rollouts.prompts[row // G]), lengths[row]
        B, P, T = B + (row // G != last), max(P, prompt), max(T, length)
        if not parts or B * P + (len(parts[-1]) + 1) * T > tokens:
            parts.append([])
            B, P, T = 1, prompt, length
        parts[-1].append(row)
        last = row // G
    return parts


def passes(model: GPT, rollouts: Rollouts, rows: Tensor, tokens: int) -> list[MicroBatch]:
    """This process's share of a mini-batch, `rows` of the rollouts, in micro-batches of at most `tokens` tokens.

    The processes of a sharded model fetch each block's weights together, so all must make equally many passes. Who has
    fewer micro-batches than the others repeats the last one; who has no row passes another's; neither counts.
    """
    if several():  # rows of a prompt come together, since they share its computation
        rows = rows.sort().values
    own, most = share(rows), 0
    parts = micro_batches(rollouts, own, tokens) if len(own) else []
    if is_sharded(model):
        most = max(len(cut(rollouts, share(rows, process), tokens)) for process in range(count()))
    spare = parts[-1] if parts else MicroBatch.some(rollouts, rows[:1])
    return parts + [replace(spare, counts=0)] * (max(1, most) - len(parts))


def scored(model: GPT, rollouts: Rollouts, parts: list[MicroBatch], *, temperature: float = 1.0) -> Tensor:
    """Log-probs [N, T] of those rollouts that are in `parts`, the others' 0. Where gradients are on, they are prepared
    for and dropped, so that compiled kernels are those of the update and round likewise."""
    found = torch.zeros_like(rollouts.logprobs)
    for part in parts:
        logprobs, entropy = batch_logprobs(model, part, temperature=temperature)
        logprobs, entropy = logprobs.detach(), None  # lets the part's activations go, before the next has its own
        found[part.rows, : logprobs.shape[1]] = logprobs
    return found


@torch.no_grad()
def rollout_logprobs(
    model: GPT, rollouts: Rollouts, *, temperature: float = 1.0, micro_batch_tokens: int = 0
) -> Tensor:
    """Log-probs of all rollouts under their prompts, [N, T], without gradient; at most that many tokens per pass. Each
    process passes its share of them."""
    rows = share(torch.arange(len(rollouts.mask), device=rollouts.mask.device))
    return added(scored(model, rollouts, micro_batches(rollouts, rows, micro_batch_tokens), temperature=temperature))
