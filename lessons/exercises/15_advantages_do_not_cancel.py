"""Suspect: the advantages do not cancel.

Minutes: 10. Difficulty: medium.

"Lesson 5 says that the advantages of a prompt's rollouts sum to 0. I added ours up:
those of the whole batch do, those of a single prompt do not. With one prompt in the
batch all is well. The reward goes up in either case."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_advantages_do_not_cancel.py
"""

from collections.abc import Callable

import torch
from checking import expect, expect_true, report
from torch import Tensor

from minclipo.grpo import group_advantages


def collect(
    prompts: list, group_size: int, draw: Callable, grade: Callable
) -> tuple[list, list, Tensor]:
    """Rollouts of each prompt, and how much better each was than its prompt's others.

    draw(prompts): one completion for each of the prompts it is given, in one batch.
    grade(prompt, completion): the reward of a completion. Returns N = B * group_size
    rows: (prompts [N], completions [N], advantages [N]).
    """
    rows = list(prompts) * group_size  # N prompts
    completions = draw(rows)
    rewards = torch.tensor([grade(*row) for row in zip(rows, completions)])  # [N]
    return rows, completions, group_advantages(rewards, group_size)


# The check. Reading it is allowed; it knows the symptom only.


def check_collect(collect):
    # "hard": the first completion is right; "easy": all but the last; "odd": none
    right = {("hard", 0), ("easy", 0), ("easy", 1), ("easy", 2)}
    grade = lambda prompt, completion: float(completion in right)
    for prompts in (["hard"], ["easy", "hard", "odd"]):
        drawn = {prompt: 0 for prompt in prompts}

        def draw(asked):
            numbered = []
            for prompt in asked:
                numbered.append((prompt, drawn[prompt]))
                drawn[prompt] += 1
            return numbered

        rows, completions, advantages = collect(prompts, 4, draw, grade)
        case = f"prompts: {len(prompts)}, rollouts of each: 4"
        expect(len(rows), 4 * len(prompts), f"{case}: rows")
        expect_true(
            all(row == completion[0] for row, completion in zip(rows, completions)),
            "a row's completion belongs to another prompt",
        )
        for prompt in prompts:
            own = torch.tensor(
                [float(a) for row, a in zip(rows, advantages) if row == prompt]
            )
            expect(
                own.sum(),
                0.0,
                f"{case}: the sum of the advantages of the prompt {prompt!r}",
            )
        found = {completion: float(a) for completion, a in zip(completions, advantages)}
        expect(found["hard", 0], 1.5, f"{case}: one right rollout of four, its advantage")
        expect(
            found.get(("odd", 0), 0.0),
            0.0,
            f"{case}: four equal rewards, their advantage",
        )


if __name__ == "__main__":
    report(globals())
