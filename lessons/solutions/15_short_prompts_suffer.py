"""Solution: the last column is not every row's last token.

In a batch that is padded on the right, `[:, -1]` of a shorter row is padding, and a
meaningless state chose the first token. The state wanted stands at the row's own
length - 1. From the second token on all was well again: the cache knew the lengths.
"""

import torch
from torch import Tensor

from minclipo.model import GPT
from minclipo.sampler import KVCache, pad_right, sampling_logprobs


@torch.no_grad()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One completion for each prompt: (tokens, their log-probs), [N, T].

    prompts: N ragged lists. T is max_new_tokens for every row. Rows go on behind an eos;
    what comes after it is to be masked by the caller.
    """
    tokens, lengths = pad_right(prompts)  # [N, P], [N]
    room, dtype = tokens.shape[1] + max_new_tokens, model.embed_tokens.weight.dtype
    cache = KVCache(model.config, len(prompts), room, dtype=dtype)
    states = model(tokens, cache)  # [N, P, D]
    hidden = states[torch.arange(len(tokens)), lengths - 1]  # [N, D]
    cache.lengths = lengths  # without the padding
    drawn, logprobs = [], []
    for _ in range(max_new_tokens):
        distribution = sampling_logprobs(model.logits(hidden), temperature)  # [N, V]
        token = torch.multinomial(distribution.exp(), 1, generator=generator)  # [N, 1]
        drawn.append(token)
        logprobs.append(distribution.gather(1, token))
        hidden = model(token, cache)[:, 0]  # [N, D]
    return torch.cat(drawn, 1), torch.cat(logprobs, 1)
