"""Suspect: one word stands still.

Minutes: 5. Difficulty: easy.

"Our words are digits, 0 to 3, and an eos with the id 4. A 1, 2 or 3 is learnt at once
where it earns something; a 0 comes late, and only because the other words go down. And
the log counts fewer tokens than we have sampled."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_one_word_stands_still.py
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
    width = tokens.shape[1]
    rows = [
        row[: row.index(eos_id) + 1] if eos_id in row else row for row in tokens.tolist()
    ]  # N ragged lists
    padded = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])  # [N, T]
    return padded, padded != PAD


# The check. Reading it is allowed; it knows the symptom only.


def check_finish(finish):
    eos = 4
    drawn = torch.tensor(
        [[1, 2, eos, 3, eos], [0, 0, eos, 1, 0], [0, 3, 0, 1, 2], [2, 2, 2, 3, 0]]
    )
    tokens, mask = finish(drawn.clone(), eos)
    expect_true(
        tokens.shape == mask.shape == drawn.shape and mask.dtype == torch.bool,
        "tokens and mask are [N, T]",
    )
    expect(
        mask[0],
        [True, True, True, False, False],
        "the mask of a row that draws 1, 2, eos, and two more tokens",
    )
    expect(
        mask.sum(),
        3 + 3 + 5 + 5,
        "tokens with a place in the loss, where 16 were sampled up to the ends",
    )
    logprobs = torch.zeros(4, 5, requires_grad=True)
    logprobs.masked_fill(~mask, 0.0).sum().backward()
    for word in range(5):
        sampled = int((drawn[:2, :3] == word).sum() + (drawn[2:] == word).sum())
        trained = int(((drawn == word) & (logprobs.grad != 0)).sum())
        expect(trained, sampled, f"how many of the sampled {word}s get a gradient")
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
