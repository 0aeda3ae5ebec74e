"""Solution: the temperature divided the logits of the entropy, but not those of the
log-probs.

The tokens were sampled from one distribution and scored under another, so that even a
policy that had not moved had ratios other than 1, and a gradient that belongs to a
policy nobody samples from. Dividing the logits once, before anything is made of them,
leaves no second place to forget.
"""

import torch
from torch import Tensor

from minclipo.logprobs import MicroBatch, completion_hidden
from minclipo.model import GPT


def score(
    model: GPT, prompts: list[list[int]], tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log-prob of each token, entropy of its prediction), [N, T], at the temperature.

    prompts: N ragged lists, which tokens [N, T] continue. What stands behind the end of a
    row is scored, too, and masked later. The log-probs carry gradient, the entropy (in
    nats) does not.
    """
    everything = torch.ones_like(tokens, dtype=torch.bool)
    batch = MicroBatch.of(prompts, tokens, everything)
    hidden = completion_hidden(model, batch)  # [N, T, D]
    logits = model.logits(hidden) / temperature  # [N, T, V]
    chosen = logits.gather(-1, tokens[..., None])[..., 0]  # [N, T]
    logprobs = chosen - logits.logsumexp(-1)  # log_softmax of the chosen tokens
    with torch.no_grad():
        distribution = logits.log_softmax(-1)  # [N, T, V]
        entropy = -(distribution.exp() * distribution).sum(-1)  # [N, T]
    return logprobs, entropy
