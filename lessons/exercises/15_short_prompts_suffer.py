"""Suspect: short prompts suffer.

Minutes: 10. Difficulty: medium.

"Alone, every prompt is answered as it should be. In a batch the longest still is, and
the shorter ones begin with words that make no sense there. Training goes on all the
same, and the reward rises; but it stays well below 1."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_short_prompts_suffer.py
"""

import torch
from checking import expect, report
from torch import Tensor

from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT, GPTConfig, init_weights
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
    hidden = states[:, -1]  # [N, D]
    cache.lengths = lengths  # without the padding
    drawn, logprobs = [], []
    for _ in range(max_new_tokens):
        distribution = sampling_logprobs(model.logits(hidden), temperature)  # [N, V]
        token = torch.multinomial(distribution.exp(), 1, generator=generator)  # [N, 1]
        drawn.append(token)
        logprobs.append(distribution.gather(1, token))
        hidden = model(token, cache)[:, 0]  # [N, D]
    return torch.cat(drawn, 1), torch.cat(logprobs, 1)


# The check. Reading it is allowed; it knows the symptom only.


def check_generate(generate):
    model = init_weights(
        GPT(GPTConfig(6, 16, 2, 2, 2, 32)), torch.Generator().manual_seed(0)
    ).double()
    model.embed_tokens.weight.data.mul_(5)  # so that the logits differ
    for prompts in ([[1, 2]], [[1, 2], [5, 4, 3, 2, 1]], [[1, 2, 3], [4], [5, 5, 1, 2]]):
        tokens, logprobs = generate(
            model, prompts, 3, 0.7, torch.Generator().manual_seed(0)
        )
        everything = torch.ones_like(tokens, dtype=torch.bool)
        plain, _ = completion_logprobs(
            model, prompts, tokens, everything, temperature=0.7
        )
        lengths = " and ".join(str(len(prompt)) for prompt in prompts)
        expect(
            logprobs,
            plain,
            f"prompts of {lengths} tokens: log-probs of sampling, against a plain pass",
        )

    dice = torch.Generator().manual_seed(0)
    greedy = lambda rows: generate(model, rows, 3, 0.0, dice)[0]
    alone = torch.cat([greedy([prompt]) for prompt in prompts])
    expect(
        greedy(prompts),
        alone,
        "always the likeliest token: three prompts together, against each alone",
    )


if __name__ == "__main__":
    report(globals())
