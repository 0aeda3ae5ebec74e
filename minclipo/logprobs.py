"""How likely are given completions? With gradient: this is what every policy loss differentiates.

Each prompt is computed once, however many completions continue it. Logits exist for one chunk of tokens at a time. A
batch that is too large for the memory can be cut up without changing its gradient (`micro_batches`).

B prompts, N rows (completions), T completion tokens (padded on the right), P prompt tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minclipo.model import GPT, additive_mask, attention
from minclipo.sampler import Rollouts, pad_right, sampling_logprobs

CHUNK_LOGITS = 2**25  # logits that exist at a time, 128 MiB in float32: memory does not grow with the batch


class SharedPrompts:
    """The layout of training: N completions of B prompts as one row of tokens, in which every prompt stands once.

    All layers but attention treat a token alike wherever it stands, and see one long row [1, M], M = B * P + N * T. In
    attention the prompts see themselves, and a completion sees its own prompt and itself.

    Arguments: prompts [B, P] and completions [N, T], padded on the right; lengths [B] of the prompts without padding;
    owner [N], which prompt each completion continues; dtype that the model computes in.
    """

    def __init__(self, prompts: Tensor, lengths: Tensor, completions: Tensor, owner: Tensor, dtype: torch.dtype):
        self.tokens = torch.cat([prompts.flatten(), completions.flatten()])[None]  # [1, M]
        self.shapes, self.owner = (prompts.shape, completions.shape), owner
        (B, P), (N, T), device = *self.shapes, owner.device
        start = lengths.index_select(0, owner)[:, None]  # [N, 1], the position of a completion's first token
        prompt, own = torch.arange(P, device=device), torch.arange(T, device=device)
        self.positions = torch.cat([prompt.expand(B, P).flatten(), (start + own).flatten()])[None]  # [1, M]
        no_padding, causal = prompt < start, own <= own[:, None]  # [N, P], [T, T]
        visible = torch.cat([no_padding[:, None].expand(N, T, P), causal.expand(N, T, T)], 2)
        self.mask = additive_mask(visible[:, None], dtype)  # [N, 1, T, P + T]

    def place(self, tokens: Tensor) -> Tensor:
        return self.positions

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., M, C] of all tokens as prompts [B, ..., P, C] and completions [N, ..., T, C]."""
        M = self.shapes[0].numel()
        parts = x[..., :M, :], x[..., M:, :]
        return tuple(part.unflatten(-2, shape).movedim(-3, 0) for part, shape in zip(parts, self.shapes))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all tokens: q [1, H, M, C], k and v [1, K, M, C] -> [1, H, M, C]."""
        (q_prompt, q_own), (k_prompt, k_own), (v_prompt, v_own) = (self.split(x[0]) for x in (q, k, v))
        # index_select, not [owner]: its gradient is added up in the same order every time.
        k_all = torch.cat([k_prompt.index_select(0, self.owner), k_own], 2)  # [N, K, P + T, C]
        v_all = torch.cat([v_prompt.index_select(0, self.owner), v_own], 2)
        outputs = attention(q_prompt, k_prompt, v_prompt), attention(q_own, k_all, v_all, self.mask)
        return torch.cat([y.movedim(0, 1).flatten(1, 2) for y in outputs], 1)[None]


def completion_hidden(
    model: GPT, prompts: list[list[int]], completions: Tensor, mask: Tensor, owner: Tensor | None = None
) -> Tensor:
    """The hidden states [N, T, D] that predict the completions' tokens, with gradient; each prompt is computed once.

    prompts: B ragged lists; completions [N, T], padded on the right; mask [N, T] bool, true for the tokens of each row;
    owner [N], which prompt each completion continues (default: each its own).
    """
    assert completions.shape == mask.shape and mask.dtype == torch.bool, "completions and a bool mask must be [N, T]"
    assert not (mask[:, 1:] & ~mask[:, :-1]).any(), "mask must be true for the first tokens of each row only"
    assert all(prompts), "prompts must not be empty: give each at least one token (a bos token, say)"
    tokens, lengths = pad_right(prompts, mask.device)  # [B, P], [B]
    places = torch.arange(len(tokens), device=mask.device)
    owner = places if owner is None else owner
    assert owner.shape == mask.shape[:1], f"owner must name a prompt for each of {len(mask)} rows; found {len(owner)}"
    if mask.shape[1] == 1:  # one token each, which the end of the prompt predicts
        return model(tokens)[places, lengths - 1].index_select(0, owner)[:, None]  # [N, 1, D]
    inputs = completions.masked_fill(~mask, 0)[:, :-1]  # the last token predicts nothing
    layout = SharedPrompts(tokens, lengths, inputs, owner, model.embed_tokens.weight.dtype)
    prompt_hidden, hidden = layout.split(model(layout.tokens, layout)[0])  # [B, P, D], [N, T - 1, D]
    first = prompt_hidden[places, lengths - 1].index_select(0, owner)[:, None]  # [N, 1, D]
    return torch.cat([first, hidden], 1)  # [N, T, D]


def completion_logprobs(
    model: GPT,
    prompts: list[list[int]],
    completions: Tensor,
    mask: Tensor,
    owner: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probs of given completions at `temperature`, with gradient, and the entropy of each prediction, without.

    Returns (logprobs [N, T], entropy [N, T] in nats), float32, 0 at padding. Arguments as in `completion_hidden`.
    """
    assert 0 < temperature < float("inf"), f"temperature must be positive, found {temperature}"
    hidden = completion_hidden(model, prompts, completions, mask, owner)[mask]  # [M, D], M real tokens
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    parts = [
        checkpoint(token_logprobs, model, *part, temperature, use_reentrant=False, preserve_rng_state=False)
        for part in zip(hidden.split(chunk), completions[mask].split(chunk))
    ]
    logprobs, entropy = (torch.cat(values) for values in zip(*parts))  # [M] each
    padding = torch.zeros(mask.shape, device=mask.device, dtype=logprobs.dtype)
    return padding.masked_scatter(mask, logprobs), padding.masked_scatter(mask, entropy)


def token_logprobs(model: GPT, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-prob of each token [M], entropy of its prediction [M]) from hidden states [M, D] and tokens [M]."""
    distribution = sampling_logprobs(model.logits(hidden), temperature)  # [M, V]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)  # [M]
    return distribution.gather(-1, tokens[:, None])[:, 0], entropy


def rows_logprobs(model: GPT, rollouts: Rollouts, rows: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`completion_logprobs` of some rows [any number] of the rollouts, [rows, width] each, as wide as the longest."""
    mask = rollouts.mask[rows]
    width = int(mask.sum(1).max())
    place: dict[int, int] = {}  # prompt -> its place among the prompts of these rows
    owner = [place.setdefault(prompt, len(place)) for prompt in rollouts.group[rows].tolist()]
    prompts, owner = [rollouts.prompts[prompt] for prompt in place], torch.tensor(owner, device=mask.device)
    completions = rollouts.completions[rows, :width]
    return completion_logprobs(model, prompts, completions, mask[:, :width], owner, temperature=temperature)


@torch.no_grad()
def rollout_logprobs(
    model: GPT, rollouts: Rollouts, *, temperature: float = 1.0, micro_batch_tokens: int = 0
) -> Tensor:
    """Log-probs of all rollouts under their prompts, [N, T], without gradient; at most that many tokens per pass."""
    scored = torch.zeros_like(rollouts.logprobs)
    for rows in micro_batches(rollouts, torch.arange(len(scored), device=scored.device), micro_batch_tokens):
        logprobs, _ = rows_logprobs(model, rollouts, rows, temperature=temperature)
        scored[rows, : logprobs.shape[1]] = logprobs
    return scored


def micro_batches(rollouts: Rollouts, rows: Tensor, tokens: int) -> list[Tensor]:
    """Split row indices [any number] into parts of at most `tokens` tokens in `rows_logprobs`, padding included; 0: one
    part. Rows of a prompt come together, since they share its computation. A row that is too long is a part by itself.
    """
    if not tokens:
        return [rows]
    G, lengths, parts, last = rollouts.group_size, rollouts.mask.sum(1).tolist(), [], None
    B = P = T = 0  # of the part that grows: number of prompts, longest prompt, longest completion
    for row in sorted(rows.tolist()):
        prompt, length = len(rollouts.prompts[row // G]), lengths[row]
        B, P, T = B + (row // G != last), max(P, prompt), max(T, length)
        if not parts or B * P + (len(parts[-1]) + 1) * T > tokens:
            parts.append([])
            B, P, T = 1, prompt, length
        parts[-1].append(row)
        last = row // G
    return [torch.tensor(part, device=rows.device) for part in parts]
