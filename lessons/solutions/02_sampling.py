"""Solution of exercise 2.

Compare sampling_logprobs, draw_token and Decoder in minclipo/sampler.py.
"""

import torch
from torch import Tensor


def next_word(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    if temperature == 0:
        temperature, top_k = 1.0, 1  # the one likeliest word; any cut leaves it in
    ordered, order = (logits / temperature).sort(dim=-1, descending=True)  # [N, V] each
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    if top_p is not None:
        shares = ordered.softmax(-1)
        before = shares.cumsum(-1) - shares  # what the likelier words have; first: 0
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered.log_softmax(-1))


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    cumulative = logprobs.exp().cumsum(-1)  # [N, V]
    first = (cumulative <= uniform[:, None]).sum(-1)  # [N]: so many words lie below it
    places = torch.arange(logprobs.shape[1], device=logprobs.device)
    possible = logprobs > -torch.inf  # [N, V]
    last = places.where(possible, 0).amax(-1)  # [N]: the last word with any probability
    return torch.minimum(first, last)


def completion_mask(completions: Tensor, eos_ids: list[int]) -> Tensor:
    ids = torch.tensor(eos_ids, dtype=completions.dtype, device=completions.device)
    ends = torch.isin(completions, ids).long()
    return ends.cumsum(1) - ends == 0  # no end before this word; its own does not count
