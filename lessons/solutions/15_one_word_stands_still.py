"""Solution: the mask asked for the padding's id, and 0 is also a word.

Every 0 that the policy had sampled was taken for padding and left out of the loss. A
mask is made from lengths, never from ids; then any id may pad. Many real models pad
with their eos, and there the same line forgets how to stop.
"""

import torch
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
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(width) < lengths[:, None]
