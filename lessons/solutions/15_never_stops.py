"""Solution: the mask ended one token too early, before the eos.

A cumulative sum counts the eos itself: "an eos so far" is already true there, and the decision to stop was neither
rewarded nor punished. Taking off the token's own count leaves "an eos before this one". Whoever takes the lengths from
texts, where the eos has been taken out, gets the same bug.
"""

from torch import Tensor

PAD = 0  # any id would do: what lies outside the mask is never read


def finish(tokens: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Rows of drawn tokens as completions: (tokens [N, T], blanked behind the end with any id, mask [N, T] bool).

    The sampler draws T tokens for every row, whatever they are. A completion ends with its first eos; one without an
    eos is full. The mask is true for the tokens of the completion: those are trained.
    """
    is_eos = (tokens == eos_id).long()  # [N, T]
    ended = is_eos.cumsum(1) - is_eos > 0  # behind the first eos, not at it
    return tokens.masked_fill(ended, PAD), ~ended
