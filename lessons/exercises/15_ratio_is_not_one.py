"""Suspect: the ratio is not 1.

Minutes: 5. Difficulty: easy.

"We train at temperature 0.7. I score tokens that were sampled a moment ago, with the
same weights, before any update: their ratios should all be 1. They scatter around it.
The training runs, and the reward goes up."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_ratio_is_not_one.py
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor

from minclipo.logprobs import MicroBatch, completion_hidden
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.sampler import sample


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
    logits = model.logits(hidden)  # [N, T, V]
    chosen = logits.gather(-1, tokens[..., None])[..., 0]  # [N, T]
    logprobs = chosen - logits.logsumexp(-1)  # log_softmax of the chosen tokens
    with torch.no_grad():
        distribution = (logits / temperature).log_softmax(-1)  # [N, T, V]
        entropy = -(distribution.exp() * distribution).sum(-1)  # [N, T]
    return logprobs, entropy


# The check. Reading it is allowed; it knows the symptom only.


def check_score(score):
    model = init_weights(
        GPT(GPTConfig(6, 16, 1, 2, 2, 32)), torch.Generator().manual_seed(0)
    ).double()
    model.embed_tokens.weight.data.mul_(5)  # so that the logits differ
    for temperature in (1.0, 0.7, 1.5):
        draw = dict(
            temperature=temperature,
            eos_ids=[],
            generator=torch.Generator().manual_seed(0),
        )
        rollouts = sample(model, [[1, 2], [3, 4, 5]], 2, 3, **draw)
        logprobs, entropy = score(
            model, [[1, 2]] * 2 + [[3, 4, 5]] * 2, rollouts.completions, temperature
        )
        expect_true(
            logprobs.requires_grad and not entropy.requires_grad,
            "log-probs with gradient, entropy without",
        )
        ratio = (logprobs - rollouts.logprobs).exp()
        expect(
            ratio,
            torch.ones_like(ratio),
            f"sampled at temperature {temperature}, nothing has moved: the ratios",
        )
        logprobs, entropy = score(
            model, [[1, 2]] * 6, torch.arange(6)[:, None], temperature
        )
        expect(
            logprobs.exp().sum(),
            1.0,
            f"temperature {temperature}: the probabilities of all six words, summed",
        )
        expect(
            entropy[0, 0],
            -(logprobs.exp() * logprobs).sum(),
            f"temperature {temperature}: the entropy",
        )


if __name__ == "__main__":
    report(globals())
