"""How likely are given completions? With gradient: this is what every policy loss differentiates.

Each prompt is computed once, however many completions continue it; the vocabulary is never there for more than a chunk
of tokens; and a batch that is too large for the memory can be cut up without changing its gradient (`micro_batches`).

B prompts, N rows (completions), T completion tokens (padded on the right), P prompt tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minclipo.model import GPT, SharedPrompts, upcast
from minclipo.sampler import Rollouts, checked_prompts, pad_right, sampling_logprobs

# Logits that exist at a time, 128 MiB in float32: a chunk of tokens, computed again in backward. So the vocabulary's
# share of the memory does not grow with the batch.
CHUNK_LOGITS = 2**25


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state over the masked tokens, [N, D] float32 or wider, from hidden [N, T, D] and mask [N, T].

    What `sample` sums up token by token. In bfloat16 a long sum stagnates (tests/test_golden.py shows how far off).
    """
    return (upcast(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def completion_hidden(model: GPT, prompts: list[list[int]], completions: Tensor, mask: Tensor) -> Tensor:
    """The hidden states [N, T, D] that predict the completions' tokens, with gradient; each prompt is computed once.

    prompts: N ragged lists, one a row, equal ones wherever rows share their prompt; completions [N, T], padded on the
    right; mask [N, T] bool.
    """
    if completions.ndim != 2 or completions.shape != mask.shape or len(prompts) != len(completions) or not mask.numel():
        raise ValueError(
            f"prompts, completions and mask must agree and not be empty: found {len(prompts)} prompts, "
            f"completions {tuple(completions.shape)}, mask {tuple(mask.shape)}"
        )
    prompts = checked_prompts(prompts, model.config.vocab_size)
    places = torch.arange(mask.shape[1], device=mask.device)
    if mask.dtype != torch.bool or not torch.equal(mask, places < mask.sum(1, keepdim=True)):
        raise ValueError(f"mask must be bool and true for the first tokens of each row only; its type is {mask.dtype}")
    chosen = completions[mask]
    if len(chosen) and not (0 <= chosen.min() and chosen.max() < model.config.vocab_size):
        raise ValueError(f"completions has a token id outside 0..{model.config.vocab_size - 1}")
    distinct: dict[tuple, int] = {}  # prompt -> its place among the B distinct ones
    rows = torch.tensor([distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts], device=mask.device)
    tokens, lengths = pad_right([list(prompt) for prompt in distinct], mask.device)  # [B, P], [B]
    places = torch.arange(len(tokens), device=mask.device)
    if mask.shape[1] == 1:  # one token each, which the end of the prompt predicts
        return model(tokens)[places, lengths - 1].index_select(0, rows)[:, None]  # [N, 1, D]
    inputs = completions.masked_fill(~mask, 0)[:, :-1]  # the last token predicts nothing
    shared = SharedPrompts(tokens, lengths, inputs, rows)
    prompt_hidden, hidden = shared.split(model(shared.tokens, shared)[0])  # [B, P, D], [N, T - 1, D]
    first = prompt_hidden[places, lengths - 1].index_select(0, rows)[:, None]  # [N, 1, D]
    return torch.cat([first, hidden], 1)  # [N, T, D]


def completion_logprobs(
    model: GPT, prompts: list[list[int]], completions: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probs of given completions at `temperature`, with gradient, and the entropy of each prediction, without.

    Returns (logprobs [N, T], entropy [N, T] in nats), float32, 0 at padding. Arguments as in `completion_hidden`.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, found {temperature}")
    hidden = completion_hidden(model, prompts, completions, mask)[mask]  # [M, D], M real tokens
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    parts = [
        checkpoint(_token_logprobs, model, *part, temperature, use_reentrant=False, preserve_rng_state=False)
        for part in zip(hidden.split(chunk), completions[mask].split(chunk))
    ]
    logprobs, entropy = (torch.cat(values) for values in zip(*parts))  # [M] each
    padding = torch.zeros(mask.shape, device=mask.device, dtype=logprobs.dtype)
    return padding.masked_scatter(mask, logprobs), padding.masked_scatter(mask, entropy)


def _token_logprobs(model: GPT, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-prob of each token [C], entropy of its prediction [C]) from C hidden states [C, D] and tokens [C]."""
    distribution = sampling_logprobs(model.logits(hidden), temperature)  # [C, V]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)  # [C]
    return distribution.gather(-1, tokens[:, None])[:, 0], entropy


@torch.no_grad()
def rollout_logprobs(
    model: GPT, rollouts: Rollouts, *, temperature: float = 1.0, micro_batch_tokens: int = 0
) -> Tensor:
    """Log-probs of all rollouts under their prompts, [N, T], without gradient; at most that many tokens a pass."""
    scored = torch.zeros_like(rollouts.logprobs)
    for rows in micro_batches(rollouts, torch.arange(len(scored), device=scored.device), micro_batch_tokens):
        width = int(rollouts.mask[rows].sum(1).max())  # no padding beyond the longest of these rows
        prompts = [rollouts.prompts[i // rollouts.group_size] for i in rows.tolist()]
        completions, mask = rollouts.completions[rows, :width], rollouts.mask[rows, :width]
        scored[rows, :width], _ = completion_logprobs(model, prompts, completions, mask, temperature=temperature)
    return scored


def micro_batches(rollouts: Rollouts, rows: Tensor, tokens: int) -> list[Tensor]:
    """Split row indices [any number] into parts of at most `tokens` tokens in `completion_logprobs`, padding included.

    0: one part. Rows of a prompt come together, since they share its computation. A row that is longer than `tokens` by
    itself makes a part of its own.
    """
    if not tokens:
        return [rows]
    lengths = rollouts.mask.sum(1).tolist()
    parts: list[list[int]] = []
    for row in sorted(rows.tolist()):
        grown = [*parts[-1], row] if parts else [row]
        if parts and _padded_tokens(rollouts, grown, lengths) <= tokens:
            parts[-1] = grown
        else:
            parts.append([row])
    return [torch.tensor(part, device=rows.device) for part in parts]


def _padded_tokens(rollouts: Rollouts, rows: list[int], lengths: list[int]) -> int:
    """Tokens of a forward pass over these rows: their distinct prompts, padded, and their completions, padded."""
    prompts = {row // rollouts.group_size for row in rows}
    longest_prompt = max(len(rollouts.prompts[prompt]) for prompt in prompts)
    return len(prompts) * longest_prompt + len(rows) * max(lengths[row] for row in rows)
