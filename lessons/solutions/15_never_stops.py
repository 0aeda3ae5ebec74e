"""Solution: the mask ended one token too early, before the eos.

A cumulative sum counts the eos itself: "an eos so far" is already true there, and the
decision to stop was neither rewarded nor punished. Taking off the token's own count
leaves "an eos before this one". Whoever takes the lengths from texts, where the eos
has been taken out, gets the same bug.
"""

from torch import Tensor

PAD = 0


def finish(tokens: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Drawn tokens as completions: (tokens, blanked behind the end; mask), [N, T].

    The sampler draws T tokens for every row, whatever they are. A completion ends with
    its first eos; one without an eos is full. The mask (bool) is true for the tokens of
    the completion: those are trained. Any id may stand behind the end.
    """
    is_eos = (tokens == eos_id).long()  # [N, T]
    ended = is_eos.cumsum(1) - is_eos > 0  # behind the first eos, not at it
    tokens = tokens.masked_fill(ended, PAD)
    return tokens, ~ended
