"""Suspect: it never learns to stop.

Minutes: 5. Difficulty: easy.

"The words get better and better, but the completions run on until they are full. A
right answer that stops earns more than one that goes on, so the policy has every
reason to learn it."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_never_stops.py
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor

PAD = 0


def finish(tokens: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Drawn tokens as completions: (tokens, blanked behind the end; mask), [N, T].

    The sampler draws T tokens for every row, whatever they are. A completion ends with
    its first eos; one without an eos is full. The mask (bool) is true for the tokens of
    the completion: those are trained. Any id may stand behind the end.
    """
    is_eos = (tokens == eos_id).long()  # [N, T]
    ended = is_eos.cumsum(1) > 0
    tokens = tokens.masked_fill(ended, PAD)
    return tokens, ~ended


# The check. Reading it is allowed; it knows the symptom only.


def check_finish(finish):
    eos = 4
    drawn = torch.tensor(
        [[1, 2, eos, 3, eos], [eos, 1, 1, 1, 1], [0, 3, 0, 1, 2], [2, 2, 2, 2, eos]]
    )
    logprobs = torch.zeros(4, 5, requires_grad=True)
    tokens, mask = finish(drawn.clone(), eos)
    expect_true(
        tokens.shape == mask.shape == drawn.shape and mask.dtype == torch.bool,
        "tokens and mask are [N, T]",
    )
    logprobs.masked_fill(~mask, 0.0).sum().backward()
    trained = logprobs.grad != 0
    expect(
        trained[2],
        [True] * 5,
        "a full row of ordinary words: which log-probs get a gradient",
    )
    where = "which log-probs get a gradient in a row that draws"
    expect(
        trained[0],
        [True, True, True, False, False],
        f"{where} word, word, eos, and two more tokens",
    )
    expect(trained[1], [True, False, False, False, False], f"{where} eos first")
    expect(trained[3], [True] * 5, f"{where} eos last")
    expect(
        tokens[mask],
        drawn[mask],
        "the tokens under the mask against those that were drawn",
    )
    expect_true(
        bool(((tokens >= 0) & (tokens <= eos)).all()),
        "there are tokens that the model has no word for",
    )


if __name__ == "__main__":
    report(globals())
