"""Is a completion right? Two checks, and who may see them.

The *outcome* check looks at the final answer only. It is the verifiable reward: every method trains on it.
The *step* check looks at the way there. It serves measurement, and the oracle that shows what process labels would buy;
GRPO and CLIPO never see it (tested in tests/test_trainer.py).

Neither evaluates text: words are compared with the words that a right solution has.
"""

from minclipo.tasks.chain import ChainProblem


def check_outcome(problem: ChainProblem, completion: str, finished: bool) -> bool:
    """True if the completion ends with "# ANSWER", the answer is right, and eos followed (`finished`)."""
    words = completion.split()
    return finished and words[-2:] == ["#", str(problem.totals[-1])]


def check_steps(problem: ChainProblem, completion: str) -> list[bool]:
    """For each step that the problem calls for: does the completion quote the right operand and the right total there?

    A missing step is False. Surplus words, between the steps and "# ANSWER" or after it, add a False at the end.
    """
    words = completion.split()
    end = words.index("#") if "#" in words else len(words)
    body, answer = words[:end], words[end:]
    expected = [[f"{operand:+d}", str(total)] for operand, total in zip(problem.operands, problem.totals)]
    verdicts = [body[2 * i : 2 * i + 2] == step for i, step in enumerate(expected)]
    surplus = len(body) > 2 * len(expected) or len(answer) > 2
    return verdicts + [False] * surplus


def is_faithful(problem: ChainProblem, completion: str) -> bool:
    """True if every step is right. An outcome-correct completion that is not faithful is called hallucinated."""
    return all(check_steps(problem, completion))
