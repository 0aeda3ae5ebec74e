"""Exercise 2: from logits to words, and where completions end.

Minutes: 40. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/02_sampling.py` tells right from
wrong; with --solution it checks lessons/solutions/02_sampling.py, which is there to be
read afterwards. The hardest function is the first; draw and completion_mask take a few
lines each. N rows (completions), T words of a completion, V words in the vocabulary.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def next_word(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Log-probs [N, V] of the distribution to draw from, from logits [N, V].

    They are -inf for what is cut, and never NaN. What stays sums to 1.

    1. Divide by the temperature. Temperature 0 means that the likeliest word of each row
       has probability 1, whatever the cuts.
    2. top_k: the k likeliest words stay. None, or more than V: all stay.
    3. top_p: of what is left, made to sum to 1 again, the likeliest words stay until
       their probability reaches top_p. The word that crosses it stays too. None: all.

    No two logits of a row are equal.

    Each row has an order of its own, and both cuts are easy in that order: the k
    likeliest are the first k columns, and a cumulative sum says what the likelier words
    have. So sort, cut, and put every column back:

        ordered, order = logits.sort(dim=-1, descending=True)  # [N, V] each
        back = torch.empty_like(ordered).scatter(-1, order, ordered)

    order[i, j] says where the number ordered[i, j] stood in row i. scatter writes it
    there, back[i, order[i, j]] = ordered[i, j], so that back equals logits. Change
    ordered between the two lines, and each change arrives at its own word:

        logits      0.2  0.7  0.1
        ordered     0.7  0.2  0.1      order  1  0  2
        cut to two  0.7  0.2  -inf
        back        0.2  0.7  -inf
    """
    raise NotImplementedError(
        "Sort each row, decide what to cut, and bring the decision back to the old order."
    )


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """One word per row, [N] whole numbers, from logprobs [N, V], some of them -inf.

    It is the first word whose cumulative probability exceeds the row's uniform number,
    uniform [N], 0 <= uniform < 1.

    A word of probability 0 is never drawn. Sums of rounded numbers may end a little below
    1: if the uniform number lies above that, the last word with any probability is drawn.
    """
    raise NotImplementedError(
        "What does your draw do with uniform = 0, and what with 0.9999999?"
    )


def completion_mask(completions: Tensor, eos_ids: list[int]) -> Tensor:
    """[N, T] bool, true for what counts of completions [N, T].

    That is all up to and including the first word out of eos_ids. What follows may be
    anything, those ids included. A row without any of them counts as a whole.
    """
    raise NotImplementedError("How many ends stand before a word? Does it count itself?")


# The checks. Reading them is allowed.


def check_next_word(next_word):
    # The likeliest first: 1, 3, 4, 0, 2
    logits = torch.tensor([[0.1, 0.5, 0.05, 0.2, 0.15]]).log()  # [1, 5]
    uncut = next_word(logits.clone(), 1.0, None, None)
    expect(uncut, logits, "temperature 1, no cuts: the log-softmax")
    half = [[0.030769, 0.769231, 0.007692, 0.123077, 0.069231]]
    two, one = [[0, 0.714286, 0, 0.285714, 0]], [[0, 1, 0, 0, 0]]
    cold = "temperature 0.5, top-p 0.9: the temperature comes first, three stay"
    both = "top-k 2, top-p 0.7: after top-k the first has 0.714 and is enough"
    for knobs, wanted, what in (
        ((0.5, None, None), half, "temperature 0.5: squares"),
        ((1.0, 2, None), two, "top-k 2: two stay and sum to 1"),
        ((1.0, 9, None), logits.exp(), "top-k 9 of five words: all stay"),
        ((1.0, None, 0.6), two, "top-p 0.6: 0.5 is not enough, the next one stays too"),
        ((1.0, None, 0.01), one, "top-p 0.01: the likeliest always stays"),
        ((0.5, None, 0.9), [[0, 0.8, 0, 0.128, 0.072]], cold),
        ((1.0, 2, 0.7), one, both),
    ):
        expect(next_word(logits.clone(), *knobs).exp(), wanted, what)
    rows = torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.1, 0.2]]).log()
    what = "two rows in different orders, top-p 0.65: each row is cut by itself"
    expect(next_word(rows, 1.0, None, 0.65).exp(), [[0, 2 / 3, 1 / 3], [1, 0, 0]], what)
    found, inf = next_word(logits.clone(), 1.0, 2, None), torch.inf
    wanted = [[-inf, -0.336472, -inf, -1.252763, -inf]]
    expect(found, wanted, "log-probs, with -inf for what is cut")
    greedy = [[-inf, 0, -inf, -inf, -inf]]
    what = "temperature 0: log-prob 0 for the likeliest, -inf for the others"
    expect(next_word(logits.clone(), 0, None, None), greedy, what)
    found = next_word(logits.clone(), 0, 3, 0.9)
    expect(found, greedy, "temperature 0 with cuts: the same")
    found = next_word(torch.tensor([[900.0, 0.0]]), 0.1, None, None).exp()
    expect(found, [[1, 0]], "logits 9000 apart: no inf, no NaN")


def check_draw(draw):
    third = torch.tensor([0.2, 0.5, 0.3]).log()
    found = draw(third.expand(5, 3), torch.tensor([0.1, 0.25, 0.65, 0.75, 0.99]))
    expect(
        found,
        [0, 1, 1, 2, 2],
        "probabilities 0.2, 0.5, 0.3, uniform 0.1, 0.25, 0.65, 0.75, 0.99",
    )
    expect_true(not torch.as_tensor(found).is_floating_point(), "words are whole numbers")
    rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    expect(
        draw(rows, torch.tensor([0.5, 0.5])),
        [0, 1],
        "two rows: each has its own distribution",
    )
    gap = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log()
    expect(
        draw(gap, torch.tensor([0.0])),
        [1],
        "uniform 0: the first word has probability 0 and is never drawn",
    )
    expect(
        draw(gap, torch.tensor([0.6])),
        [3],
        "probabilities 0, 0.5, 0, 0.5, 0, uniform 0.6: word 3",
    )
    short = torch.tensor([[0.3, 0.6999, 0.0]]).log()  # sums to 0.9999
    expect(
        draw(short, torch.tensor([0.99995])),
        [1],
        "a sum of 0.9999, uniform 0.99995: the last word that can be drawn",
    )
    many = draw(third.expand(3000, 3), torch.linspace(0, 0.9999, 3000))
    expect(
        torch.as_tensor(many).bincount(minlength=3) / 3000,
        [0.2, 0.5, 0.3],
        "as often as its probability says",
        tolerance=0.01,
    )


def check_completion_mask(completion_mask):
    rows = torch.tensor([[5, 6, 0, 0], [0, 5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 0]])
    found = completion_mask(rows, [0])
    expect_true(
        found is not None and found.dtype == torch.bool,
        "the mask should be a tensor of bool",
    )
    found = found.long()
    expect(
        found[0],
        [1, 1, 1, 0],
        "5 6 eos eos: the first eos belongs to the completion, the second does not",
    )
    expect(
        found[1],
        [1, 0, 0, 0],
        "eos 5 6 7: what follows the end does not count, whatever it is",
    )
    expect(found[2], [1, 1, 1, 1], "5 6 7 8, no eos: the whole row counts")
    expect(found[3], [1, 1, 1, 1], "5 6 7 eos: an eos at the end of the row counts")
    two = completion_mask(rows, [6, 0]).long()
    expect(
        two,
        [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
        "two ids that end, 6 and 0",
    )
    other = completion_mask(rows, [8, 7]).long()
    expect(
        other,
        [[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]] * 2,
        "8 and 7 end, 0 is a word like any other",
    )
    expect(
        completion_mask(rows, []).long(),
        [[1] * 4] * 4,
        "no id ends anything: all rows count as a whole",
    )


if __name__ == "__main__":
    report(globals())
