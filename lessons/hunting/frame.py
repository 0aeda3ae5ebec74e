"""A training program: GRPO with a contrastive cost, on three prompts, in float64.

Words are 0 to 3, and 4 ends a completion of at most three tokens.
"""

import torch
from parts import backward, collect, contrast, finish, generate, loss, penalty, score

from minclipo.logprobs import MicroBatch, completion_hidden
from minclipo.model import GPT, GPTConfig, init_weights

PAD, EOS, T, G, TEMPERATURE = 0, 4, 3, 32, 0.7
ANSWERS = {(1, 2): [2, 0, EOS], (3,): [1, EOS], (0, 1, 2, 3): [3, 1, 0]}
PROMPTS = [list(prompt) for prompt in ANSWERS]


def share(prompt, tokens):
    """The share of the answer's tokens that are in place."""
    answer = ANSWERS[tuple(prompt)]
    tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    return sum(a == b for a, b in zip(tokens, answer)) / len(answer)


@torch.no_grad()
def vectors(model, rows, tokens, mask):
    """The direction of each rollout's mean hidden state, [N, D]."""
    batch = MicroBatch.of(rows, tokens, torch.ones_like(mask))
    hidden = completion_hidden(model, batch) * mask[..., None]  # [N, T, D]
    return torch.nn.functional.normalize(hidden.sum(1), dim=1)


def gradient(model, rows, tokens, mask, old, advantages, ref, pieces=2, beta=0.02):
    """The gradient of a batch of rows as one vector; it also stays in .grad."""

    def loss_of(some, weights):
        prompts = [rows[i] for i in some]
        logprobs, _ = score(model, prompts, tokens[some], TEMPERATURE)
        kl = (weights * penalty(logprobs, ref[some])).sum()
        return loss(logprobs, old[some], advantages[some], weights) + beta * kl

    model.zero_grad()
    backward(loss_of, mask, list(torch.arange(len(mask)).chunk(pieces)))
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def step(model, reference, optimizer, prompts, generator):
    """One sample, two updates, each on half of it. Returns the mean share in place."""

    def draw(rows):
        drawn, old = generate(model, rows, T, TEMPERATURE, generator)
        tokens, mask = finish(drawn, EOS)
        shares = torch.tensor([share(*row) for row in zip(rows, drawn.tolist())])
        group = torch.tensor([prompts.index(row) for row in rows])
        cost = contrast(vectors(model, rows, tokens, mask), shares == 1, group, 0.5)
        return list(zip(tokens, mask, old, shares, 0.1 * cost))

    rows, completions, advantages = collect(prompts, G, draw, lambda _, y: y[3] - y[4])
    tokens, mask, old, shares, _ = (torch.stack(part) for part in zip(*completions))
    with torch.no_grad():
        ref, _ = score(reference, rows, tokens, TEMPERATURE)
    for some in torch.randperm(len(rows), generator=generator).chunk(2):
        some_rows = [rows[i] for i in some]
        batch = (tokens[some], mask[some], old[some], advantages[some], ref[some])
        gradient(model, some_rows, *batch)
        optimizer.step()
    return shares.mean().item()


def tiny(seed):
    config = GPTConfig(5, 16, 1, 2, 2, 32)
    return init_weights(GPT(config), torch.Generator().manual_seed(seed)).double()


def train(prompts=PROMPTS, steps=60, seed=0):
    """(the trained model, the mean reward of each step)"""
    model, reference = tiny(seed), tiny(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    return model, [
        step(model, reference, optimizer, prompts, generator) for _ in range(steps)
    ]


if __name__ == "__main__":
    for number, reward in enumerate(train()[1], 1):
        print(f"step {number:3}   reward {reward:.3f}")
