"""SPOILERS. The bugs of lessons/hunt.py, which program holds which, and their stories.

Whoever wants to hunt reads no further. A slip changes a few lines of a mended part.
"""

import ast
import random
from typing import NamedTuple

from hunting.program import SUSPECTS, mended, program, solution_of


class Slip(NamedTuple):
    part: str
    right: str  # lines of the mended part
    wrong: str  # what stands in their place
    story: str = ""  # "": that of the suspect of this name in lessons/solutions

    def text(self) -> str:
        """The part with the slip in it."""
        return mended(self.part).replace(self.right, self.wrong)


SLIPS = {
    "advantages_do_not_cancel": Slip(
        "collect",
        "[prompt for prompt in prompts for _ in range(group_size)]",
        "list(prompts) * group_size",
    ),
    "agreement_costs": Slip(
        "contrast",
        "(group[:, None] == group) & ~itself\n    positives = candidates & correct\n",
        "group[:, None] == group\n    positives = candidates & correct & ~itself\n",
    ),
    "never_stops": Slip(
        "finish", "is_eos.cumsum(1) - is_eos > 0", "is_eos.cumsum(1) > 0"
    ),
    "one_word_stands_still": Slip("finish", "tokens, ~ended", "tokens, tokens != PAD"),
    "penalty_is_not_the_kl": Slip("penalty", "torch.expm1(-d) + d", "torch.expm1(d) - d"),
    "ratio_is_not_one": Slip(
        "score",
        """(hidden) / temperature  # [N, T, V]
    chosen = logits.gather(-1, tokens[..., None])[..., 0]  # [N, T]
    logprobs = chosen - logits.logsumexp(-1)
    with torch.no_grad():
        distribution = logits.log_softmax(-1)""",
        """(hidden)  # [N, T, V]
    chosen = logits.gather(-1, tokens[..., None])[..., 0]  # [N, T]
    logprobs = chosen - logits.logsumexp(-1)
    with torch.no_grad():
        distribution = (logits / temperature).log_softmax(-1)""",
    ),
    "runs_away": Slip("loss", "torch.minimum(", "torch.maximum("),
    "short_prompts_suffer": Slip(
        "generate", "states[torch.arange(len(tokens)), lengths - 1]", "states[:, -1]"
    ),
    "step_depends_on_the_cut": Slip(
        "backward",
        """    weights = token_weights(mask, "token_mean")  # [N, T]
    for rows in pieces:
        loss = loss_of(rows, weights[rows])
""",
        """    for rows in pieces:
        weights = token_weights(mask[rows], "token_mean")  # [rows, T]
        loss = loss_of(rows, weights) / len(pieces)
""",
    ),
    # not in the warm-up; the first is on the page of lesson 15
    "of_the_page": Slip(
        "loss",
        "torch.minimum(A * ratio, A * clipped)",
        "A * clipped",
        """Solution: the clip on both sides.

Without the minimum a token has no gradient outside the clip range, on whichever side it
is. So a good token that an update has pushed down by accident is not pulled up again. On
policy nothing is to be seen.
""",
    ),
    "recorded_without_temperature": Slip(
        "generate",
        "logprobs.append(distribution.gather(1, token))",
        "logprobs.append(model.logits(hidden).log_softmax(1).gather(1, token))",
        """Solution: the sampler drew at one temperature and recorded at another.

The token came from the distribution at temperature 0.7, its log-prob from the one at 1.
Scoring was right, so the gradient by enumeration was, too: only `ratio` saw it.
""",
    ),
    "one_group_for_all": Slip(
        "collect",
        "group_advantages(rewards, group_size)",
        "group_advantages(rewards, len(rows))",
        """Solution: one group for the whole batch.

The baseline was the mean over all prompts, not over the rollouts of one. Every rollout of
an easy prompt came out good, every one of a hard prompt bad, and the two sums to 0 only
together.
""",
    ),
    "rows_in_place_of_tokens": Slip(
        "backward",
        '"token_mean"',
        '"sequence_mean"',
        """Solution: a mean over rows, where the docstring and the name say tokens.

GRPO as published does this on purpose (lesson 12). Here it was not meant: a token of a
short row weighed more. No cut changes it, so only the sum over all completions shows it.
""",
    ),
    "strangers_are_candidates": Slip(
        "contrast",
        "(group[:, None] == group) & ~itself",
        "~itself",
        """Solution: rollouts of other prompts were candidates, and positives, too.

The comparison of prompts had gone. With it went what a positive is, a right answer to the
same question.
""",
    ),
}


def order() -> dict[int, tuple[str, ...]]:
    """Number of a program: its slips. A fixed order that nobody can read here."""
    double = [
        ("recorded_without_temperature", "step_depends_on_the_cut"),
        ("one_group_for_all", "runs_away"),
        ("rows_in_place_of_tokens", "one_word_stands_still"),
        ("strangers_are_candidates", "ratio_is_not_one"),
        (),
    ]
    of_the_warm_up = [name for pair in double for name in pair if name in SUSPECTS]
    alone = [name for name in SLIPS if name not in (*of_the_warm_up, "of_the_page")]
    single = [(name,) for name in alone] + [()]
    lot = random.Random("hunt")
    return dict(enumerate(lot.sample(single, 10) + lot.sample(double, 5), 1))


PROGRAMS = order()


def program_with(names: tuple[str, ...]) -> str:
    """The text of the program that holds these slips."""
    return program(**{SLIPS[name].part: SLIPS[name].text() for name in names})


def story(name: str) -> str:
    """What was wrong, and why it matters."""
    return SLIPS[name].story or ast.get_docstring(ast.parse(solution_of(name)))
